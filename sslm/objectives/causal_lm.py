"""Causal language modelling: predict each token from those before it (Radford et al. 2018, GPT).

A window of seq_len + 1 tokens gives seq_len predictions. With seq_len 4:

    window     7 1 5 2 9
    input_ids  7 1 5 2
    labels     1 5 2 9

The next window starts with the 9, so that every token of a shard but its first is predicted once an epoch.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from sslm.data.module import val_windows
from sslm.data.recipe import Arrays, Recipe
from sslm.models.build import check_causal
from sslm.models.head import sample
from sslm.objectives.base import Objective

NUM_SAMPLES, PROMPT_TOKENS, SAMPLE_TOKENS = 2, 12, 40


@dataclass(frozen=True)
class CausalLMRecipe(Recipe):
    """Causal language modelling has no settings yet."""

    def window_len(self, seq_len: int) -> int:
        return seq_len + 1

    def stride(self, seq_len: int) -> int:
        return seq_len

    def make_batch(
        self, windows: NDArray[np.int64], positions: NDArray[np.int64], epochs: NDArray[np.int64], seed: int
    ) -> Arrays:
        return {"input_ids": windows[:, :-1], "labels": windows[:, 1:]}


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
    recipe_class = CausalLMRecipe

    def check_model(self, model: PreTrainedModel) -> None:
        check_causal(model)

    def samples(self, data: Any) -> list[str]:
        numbers = val_windows(data.val_stream, NUM_SAMPLES)
        length = min(PROMPT_TOKENS, data.seq_len // 2)
        prompts = torch.from_numpy(data.val_stream.windows(numbers)[:, :length]).to(self.device)
        was_training = self.network.training
        self.network.eval()
        tokens = sample(self.network, prompts, data.seq_len, SAMPLE_TOKENS, self.seed).tolist()
        self.network.train(was_training)
        decode = data.tokenizer.decode
        return [_on_one_line(f"{decode(row[:length])} >> {decode(row[length:])}") for row in tokens]


def _on_one_line(text: str) -> str:
    """A model that knows nothing yet writes control characters too: no terminal is to obey them."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
