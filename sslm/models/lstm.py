"""A recurrent language model, which transformers has none of: embedding, LSTM layers, head (Zaremba et al. 2014).

Importing this file registers the model with transformers' Auto classes as `sslm_lstm`. An exported folder has a copy of
the file, and loads where sslm is not installed: so nothing of sslm is imported here.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutput


@strict
class LstmConfig(PreTrainedConfig):
    """Settings of `LstmForCausalLM`.

    Args:
        hidden_size: units of each layer.
        embedding_size: numbers of a token's embedding; None stands for hidden_size.
        dropout: probability for units of the embedding's and of each layer's output, alike for all of a row's tokens.
        tie_word_embeddings: whether head and embedding share their weights; their sizes must be equal.
        initializer_range: standard deviation of the embedding's and the head's first weights.
    """

    model_type = "sslm_lstm"

    vocab_size: int = 50257
    hidden_size: int = 650
    embedding_size: int | None = None
    num_hidden_layers: int = 2
    dropout: float | int = 0.0
    tie_word_embeddings: bool = True
    initializer_range: float = 0.1
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    def validate_architecture(self) -> None:
        """Raise ValueError if the settings don't go together: transformers asks every config to."""
        if self.tie_word_embeddings and self.embedding_size != self.hidden_size:
            raise ValueError(
                f"embedding_size {self.embedding_size} and hidden_size {self.hidden_size} differ, so head and "
                "embedding can't share weights; give tie_word_embeddings false"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}; expected at least 0 and less than 1")
        if min(self.hidden_size, self.embedding_size or 0) < 1:
            raise ValueError(
                f"hidden_size {self.hidden_size}, embedding_size {self.embedding_size}; expected at least 1"
            )


State = list[tuple[Tensor, Tensor]]
"""Of each layer, what it has written last and what it keeps, both [1, batch, hidden_size]."""


@dataclass
class LstmOutput(CausalLMOutput):
    """What a model that is asked for it leaves beside logits."""

    state: State | None = None


class LstmForCausalLM(PreTrainedModel, GenerationMixin):
    """Predicts each token from the state that those before it have left; a row begins with a state of zeros."""

    config_class = LstmConfig
    supports_gradient_checkpointing = True
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}  # noqa: RUF012  # as transformers declares it

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        sizes = [config.embedding_size or config.hidden_size] + [config.hidden_size] * config.num_hidden_layers
        self.embed_tokens = nn.Embedding(config.vocab_size, sizes[0])
        self.layers = nn.ModuleList(LstmLayer(size, units, batch_first=True) for size, units in pairwise(sizes))
        self.dropout = VariationalDropout(config.dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        segment_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        state: State | None = None,
        use_cache: bool = False,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> LstmOutput:
        """Logits [batch, seq_len, vocab_size], and the mean loss if there are labels.

        `labels` are the tokens again, each to be predicted from those before it. `segment_ids` [batch, seq_len] tell
        each token's document in its row; each document begins with a state of zeros. `attention_mask`, [batch,
        seq_len], is 0 at the padding before a row. `state` is what earlier tokens have left; with `use_cache` it
        is returned, and the mask is heeded. Only the last `logits_to_keep` logits are made, or all if it is 0.
        """
        if use_cache or state is not None:  # as `generate` calls it, for one process and no gradient
            hidden, state = self._carried(self.embed_tokens(input_ids), attention_mask, state)
        else:
            documents = None if segment_ids is None else Documents.of(segment_ids)
            hidden = self.dropout(self.embed_tokens(input_ids))
            for layer in self.layers:
                hidden = self.dropout(layer(hidden, documents))
        logits = self.lm_head(hidden[:, -logits_to_keep:])
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
        return LstmOutput(loss=loss, logits=logits, state=state if use_cache else None)

    def _carried(self, hidden: Tensor, attention_mask: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        """[batch, seq_len, hidden_size] behind a state, and the state after it; padding before a row leaves none."""
        padding = torch.zeros_like(hidden[:, 0, 0], dtype=torch.long)
        if state is None and attention_mask is not None:
            padding = attention_mask.long().argmax(1)
        place = torch.arange(hidden.shape[1], device=hidden.device)
        lengths = (len(place) - padding).cpu()
        hidden = _rolled(hidden, place + padding[:, None])
        left: State = []
        layer: Any
        for n, layer in enumerate(self.layers):
            packed: Any = pack_padded_sequence(self.dropout(hidden), lengths, batch_first=True, enforce_sorted=False)
            packed, after = nn.LSTM.forward(layer, packed, None if state is None else state[n])
            hidden = pad_packed_sequence(packed, batch_first=True, total_length=len(place))[0]
            left.append(after)
        return _rolled(self.dropout(hidden), place - padding[:, None]), left

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Whether transformers' cache of keys and values is ours."""
        return False

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, state: State | None = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Choose what `generate` runs next: the prompt, or the last token behind a state."""
        inputs = {"use_cache": kwargs.get("use_cache", True), "logits_to_keep": kwargs.get("logits_to_keep", 0)}
        if state is not None:
            return {"input_ids": input_ids[:, -1:], "state": state, **inputs}
        return {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}

    def _update_model_kwargs_for_generation(  # type: ignore[override]
        self, outputs: Any, model_kwargs: Any, **kwargs: Any
    ) -> dict[str, Any]:
        more: dict[str, Any] = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        return more | ({} if outputs.state is None else {"state": outputs.state})

    @staticmethod
    def _reorder_cache(state: State, beams: Tensor) -> State:
        return [(hidden.index_select(1, beams), cell.index_select(1, beams)) for hidden, cell in state]

    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights as torch does, but with forget gates open at first (Jozefowicz et al. 2015)."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, nn.LSTM):
            bound = module.hidden_size**-0.5
            for name, parameter in module.named_parameters():
                if name.startswith("weight"):
                    initialization.uniform_(parameter, -bound, bound)
                else:
                    gates = torch.zeros(4, module.hidden_size)  # input, forget, cell, output
                    gates[1] = float(name.startswith("bias_ih"))
                    initialization.copy_(parameter, gates.flatten())


def _rolled(hidden: Tensor, places: Tensor) -> Tensor:
    """[batch, seq_len, size] with each row's places [batch, seq_len] in another order; they go round."""
    return hidden.gather(1, (places % hidden.shape[1])[..., None].expand_as(hidden))


class LstmLayer(GradientCheckpointingLayer, nn.LSTM):
    """One layer, recomputed and sharded as a unit. Its weights have the names that torch gives them."""

    def forward(self, hidden: Tensor, documents: "Documents | None" = None) -> Tensor:  # type: ignore[override]
        """[batch, seq_len, size] -> [batch, seq_len, hidden_size], each row or each document from a state of zeros."""
        if torch.is_autocast_enabled(hidden.device.type):
            # autocast does this by itself, but too late for torch 2.13 on CPUs, which looks for a kernel before
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        through = super().forward
        if documents is None:
            return through(hidden)[0]
        flat = hidden.flatten(0, 1)
        outputs = [through(flat[rectangle])[0].flatten(0, 1)[inside] for rectangle, inside in documents.groups]
        return torch.cat(outputs)[documents.order].view(*hidden.shape[:2], -1)


class VariationalDropout(nn.Module):
    """Dropout that keeps or drops a unit for all of a row's tokens (Gal and Ghahramani 2016)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return hidden
        return hidden * F.dropout(hidden.new_ones(hidden.shape[0], 1, hidden.shape[2]), self.p)


class Documents(NamedTuple):
    """A batch's documents as rows of their own, in groups of like length.

    A group goes through a layer as one rectangle: a document's row is filled up with the tokens that happen to follow,
    whose outputs nobody takes. Lengths in a group differ by less than a factor of two. (`PackedSequence` fills nothing
    up, but its backward pass costs seq_len times as much on CPUs.)
    """

    groups: list[tuple[Tensor, Tensor]]
    """[documents, longest] places in the flattened batch; and those of the flattened rectangle that hold a document."""
    order: Tensor
    """[batch · seq_len] place of each token's output among those of all groups, one after the other."""

    @classmethod
    def of(cls, segment_ids: Tensor) -> "Documents":
        """Group the documents of a batch, [batch, seq_len]."""
        changes = segment_ids.diff(dim=1, prepend=segment_ids[:, :1] - 1)  # a row's first token begins a document
        starts = changes.flatten().nonzero()[:, 0]
        end = starts.new_tensor([segment_ids.numel()])
        lengths = starts.diff(append=end)
        num_bits = (lengths - 1).double().frexp().exponent
        groups, tokens = [], []
        for group in sorted(set(num_bits.tolist())):
            in_group = num_bits == group
            offset = torch.arange(int(lengths[in_group].max()), device=starts.device)
            rectangle = starts[in_group, None] + offset
            inside = offset < lengths[in_group, None]
            groups.append((rectangle.clamp(max=segment_ids.numel() - 1), inside.flatten().nonzero()[:, 0]))
            tokens.append(rectangle[inside])
        return cls(groups, torch.cat(tokens).argsort())


AutoConfig.register(LstmConfig.model_type, LstmConfig)
AutoModelForCausalLM.register(LstmConfig, LstmForCausalLM)
# what is saved from now on has a copy of this file beside it
LstmConfig.register_for_auto_class()  # type: ignore[no-untyped-call]
LstmForCausalLM.register_for_auto_class("AutoModelForCausalLM")  # type: ignore[no-untyped-call]
