"""A recurrent language model, which transformers has none of: embedding, LSTM layers, head (Zaremba et al. 2014).

Importing this registers it with transformers' Auto classes as `sslm_lstm`.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, initialization
from transformers.modeling_outputs import CausalLMOutput

from sslm.models.masks import positions_within


@strict
class LstmConfig(PreTrainedConfig):
    """Settings of `LstmForCausalLM`.

    Args:
        hidden_size: units of each layer.
        embedding_size: of a token; None: hidden_size.
        dropout: of the embedding's output and of each layer's, one mask for all of a row's tokens.
        tie_word_embeddings: head and embedding share their weights; needs embedding_size equal to hidden_size.
        initializer_range: standard deviation of the embedding's and the head's first weights.
    """

    model_type = "sslm_lstm"

    vocab_size: int = 50257
    hidden_size: int = 650
    embedding_size: int | None = None
    num_hidden_layers: int = 2
    dropout: float | int = 0.0
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """transformers calls this with every config.

        Raises:
            ValueError: settings that don't go together.
        """
        if self.tie_word_embeddings and self.embedding_size != self.hidden_size:
            raise ValueError(f"embedding_size {self.embedding_size} and hidden_size {self.hidden_size} differ, so head and embedding "
                             f"can't share weights; give tie_word_embeddings false")  # fmt: skip
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}; expected at least 0 and less than 1")
        if min(self.hidden_size, self.embedding_size or 0) < 1:
            raise ValueError(f"hidden_size {self.hidden_size}, embedding_size {self.embedding_size}; expected at least 1")


class LstmForCausalLM(PreTrainedModel):
    """Predicts each token from the state that those before it have left; a row begins with a state of zeros."""

    config_class = LstmConfig
    _tied_weights_keys = {"lm_head.weight": "embedding.weight"}  # noqa: RUF012  # as transformers declares it

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config)
        sizes = [config.embedding_size or config.hidden_size] + [config.hidden_size] * config.num_hidden_layers
        self.embedding = nn.Embedding(config.vocab_size, sizes[0])
        self.layers = nn.ModuleList(nn.LSTM(a, b, batch_first=True) for a, b in zip(sizes, sizes[1:], strict=False))
        self.dropout = VariationalDropout(config.dropout)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding = value

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, segment_ids: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutput:
        """Logits [batch, seq_len, vocab_size].

        Args:
            labels: the tokens again; the mean loss of predicting each from those before it is returned too.
            segment_ids: [batch, seq_len] which document of its row a token belongs to; each begins with a state of zeros.
        """
        documents = None if segment_ids is None else Documents.of(segment_ids)
        hidden = self.dropout(self.embedding(input_ids))
        for layer in self.layers:
            hidden = self.dropout(run(layer, hidden, documents))
        logits = self.lm_head(hidden)
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
        return CausalLMOutput(loss=loss, logits=logits)

    def _init_weights(self, module: nn.Module) -> None:
        """As torch draws them, but forget gates are open at first (Jozefowicz et al. 2015)."""
        super()._init_weights(module)
        if isinstance(module, nn.LSTM):
            bound = module.hidden_size**-0.5
            initialization.uniform_(module.weight_ih_l0, -bound, bound)
            initialization.uniform_(module.weight_hh_l0, -bound, bound)
            gates = torch.zeros(4, module.hidden_size)
            initialization.copy_(module.bias_hh_l0, gates.flatten())
            gates[1] = 1  # input, forget, cell, output
            initialization.copy_(module.bias_ih_l0, gates.flatten())


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
    """A batch's documents as torch packs sequences: the first token of each, longest first, the second of each, …"""

    order: Tensor
    """[batch · seq_len] the token at each place of the packed data."""
    place: Tensor
    """[batch · seq_len] each token's place there."""
    batch_sizes: Tensor
    """How many documents have a first token, a second, …; on the CPU."""

    @classmethod
    def of(cls, segment_ids: Tensor) -> "Documents":
        position = positions_within(segment_ids).flatten()
        document = (position == 0).cumsum(0) - 1
        lengths = document.bincount()
        rank = lengths.argsort(descending=True, stable=True).argsort()
        order = (position * len(lengths) + rank[document]).argsort()
        return cls(order, order.argsort(), position.bincount().cpu())


def run(layer: nn.LSTM, hidden: Tensor, documents: Documents | None) -> Tensor:
    """[batch, seq_len, size] -> [batch, seq_len, hidden_size], each row or each document from a state of zeros."""
    if documents is None:
        return layer(hidden)[0]  # type: ignore[no-any-return]
    packed = PackedSequence(hidden.flatten(0, 1)[documents.order], documents.batch_sizes)
    return layer(packed)[0].data[documents.place].view(*hidden.shape[:2], -1)  # type: ignore[no-any-return]


AutoConfig.register(LstmConfig.model_type, LstmConfig)
AutoModelForCausalLM.register(LstmConfig, LstmForCausalLM)
