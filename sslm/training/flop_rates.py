"""Model FLOPs of a run's tokens, whose sequences may be short at first: attention to fewer places costs less."""

import bisect
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from transformers import PreTrainedModel

from sslm.data.module import DataModule
from sslm.models import flops
from sslm.parallel.planning.budget import row_shapes


class Rate(NamedTuple):
    """FLOPs from some point of a run on."""

    from_tokens: int
    per_token: float
    """Of the run's tokens."""
    per_place: float
    """Of inputs, and of what a decoder behind an encoder writes."""


@dataclass(frozen=True)
class FlopRates:
    """FLOPs of a model, stage by stage."""

    stages: tuple[Rate, ...]

    def spent(self, tokens: int) -> float:
        """FLOPs of a run's first tokens, as if stages began at their tokens and not with the next step.

        >>> FlopRates((Rate(0, 2.0, 2.0), Rate(10, 3.0, 3.0))).spent(12)
        26.0
        """
        ends = [*(stage.from_tokens for stage in self.stages[1:]), tokens]
        parts = ((stage, min(end, tokens) - stage.from_tokens) for stage, end in zip(self.stages, ends, strict=True))
        return sum((max(num, 0) * stage.per_token for stage, num in parts), 0.0)

    def per_place(self, tokens: int) -> float:
        """FLOPs of a place in a step that begins after so many tokens of the run."""
        return self.stages[bisect.bisect_right(self.stages, tokens, key=attrgetter("from_tokens")) - 1].per_place


def flop_rates(model: PreTrainedModel, data: DataModule) -> FlopRates:
    """Work out a model's FLOPs from the shapes of its batches."""
    stages = []
    for from_tokens, seq_len in data.lengths.stages:
        shapes = row_shapes(data, seq_len)
        input_len, target_len = shapes["input_ids"][0], shapes["labels"][0]
        max_scored = data.recipe.max_scored(seq_len, data.vocabulary)
        per_row = flops.flops_per_sequence(model, input_len, target_len, max_scored)
        places = input_len + target_len * model.config.is_encoder_decoder
        stages.append(Rate(from_tokens, per_row * data.pieces_of(seq_len).num / data.seq_len, per_row / places))
    return FlopRates(tuple(stages))
