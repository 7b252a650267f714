"""Causal language modelling: predict each token from those before it (Radford et al. 2018, GPT).

A window of seq_len + 1 tokens gives seq_len predictions. With seq_len 4:

    window     7 1 5 2 9
    input_ids  7 1 5 2
    labels     1 5 2 9

The next window starts with the 9, so that every token of a shard but its first is predicted once an epoch. If documents
are kept apart (a 1 ends one), each sees itself only, and its first token is not predicted:

    labels     1 -100 2 9
    segments   0 0 1 1
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sslm.data.stream.recipe import IGNORED, Arrays, Examples, Recipe
from sslm.data.stream.vocabulary import Vocabulary
from sslm.models.blocks import evaluating
from sslm.models.build import check_causal
from sslm.models.head import sample
from sslm.training.module import Objective
from sslm.training.samples import CONTINUED, NUM_SAMPLES, on_one_line

PROMPT_TOKENS, SAMPLE_TOKENS = 12, 40


@dataclass(frozen=True)
class CausalLMRecipe(Recipe):
    """Causal language modelling has no settings yet."""

    keeps_documents = True

    @property
    def predicts_next_token(self) -> bool:
        return True

    def window_len(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        return seq_len + 1

    def stride(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        return seq_len

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        inputs, labels = examples.tokens[:, :-1], examples.tokens[:, 1:]
        documents, is_token = examples.documents, examples.is_token
        if documents is not None:  # a document's first token is predicted from nothing: not at all
            labels = np.where((documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0), labels, IGNORED)
            return {"input_ids": inputs, "labels": labels, "segment_ids": documents[:, :-1]}
        if is_token is not None:
            labels = np.where(is_token[:, 1:], labels, IGNORED)
        return {"input_ids": inputs, "labels": labels}


class CausalLM(Objective):
    """Next-token prediction with any decoder of transformers."""

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    default_model: ClassVar[dict[str, Any]] = {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "tie_word_embeddings": True,
    }
    default_lr: ClassVar[float] = 4e-3
    recipe_class = CausalLMRecipe

    def check_model(self, model: PreTrainedModel) -> None:
        check_causal(model)

    def loss_metrics(self, loss: Tensor, data: Any) -> dict[str, Tensor]:
        metrics = super().loss_metrics(loss, data)
        if data is not None and (bytes_per_target := data.held_out.bytes_per_target):
            metrics["bits_per_byte"] = loss / math.log(2) / bytes_per_target
        return metrics

    @property
    def samples_in_words(self) -> str:
        return CONTINUED

    def samples(self, data: Any) -> list[str]:
        if data.tokenizer is None:
            return []
        held_out = data.held_out.tokens
        spread = [held_out[i * len(held_out) // NUM_SAMPLES] for i in range(NUM_SAMPLES)]
        length = min(PROMPT_TOKENS, data.seq_len // 2, *map(len, spread))
        prompts = torch.from_numpy(np.stack([row[:length] for row in spread])).to(self.device)
        with evaluating(self.network), self.trainer.precision_plugin.val_step_context():
            tokens = sample(self.network, prompts, data.seq_len, SAMPLE_TOKENS, self.seed).tolist()
        decode = data.tokenizer.decode
        return [on_one_line(f"{decode(row[:length])} >> {decode(row[length:])}") for row in tokens]
