"""What a student learns from a teacher's layers (TinyBERT, Jiao et al. 2020, arXiv:1909.10351, equations 7 to 10).

Student's layer m is compared with teacher's layer g(m); layer 0 is the embeddings. At each place the losses are

    hidden states    mean over width of (W h - h')²       W, learnt, if the widths differ; another W for the embeddings
    attention        mean over heads and visible places of (a - a')², of scores before the softmax

summed over the pairs of layers, and over a row's places: the scored ones, or of a stack that scores none of its own (a
classifier, an encoder that a decoder reads) all tokens' mean, as often as the row has targets.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sslm.models.layer_states import Said, Scores
from sslm.system.errors import UserError, short

LayerMap = tuple[tuple[int, int], ...]
"""Pairs of a student's and a teacher's layer; 0 is the embeddings, n what comes out of block n."""


class LayerWeights(NamedTuple):
    """What the losses of layers are multiplied by; 0: they are not computed."""

    hidden: float = 0.0
    attention: float = 0.0

    @property
    def are_used(self) -> bool:
        return self.hidden > 0 or self.attention > 0


def parse_layer_map(text: str) -> LayerMap:
    """Parse what `--distill.layer_map` takes.

    Raises:
        UserError: it says something else.

    >>> parse_layer_map("0:0, 1:2, 2:4")
    ((0, 0), (1, 2), (2, 4))
    """
    pairs = [re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", part.strip(), re.ASCII) for part in text.split(",")]
    found = tuple((int(pair[1]), int(pair[2])) for pair in pairs if pair is not None)
    students = [student for student, _ in found]
    if len(found) < len(pairs) or students != sorted(set(students)):
        expected = "expected STUDENT:TEACHER of layers, the student's rising, such as 0:0,1:2,2:4; 0 is the embeddings"
        raise UserError(f"--distill.layer_map {short(text)}: {expected}")
    return found


def uniform_map(student: int, teacher: int) -> LayerMap:
    """Pair each of a student's layers with one of a teacher's, evenly.

    >>> uniform_map(2, 4)
    ((0, 0), (1, 2), (2, 4))
    """
    return tuple((layer, round(layer * teacher / student)) for layer in range(student + 1))


def layer_losses(
    student: Sequence[Said],
    teacher: Sequence[Said],
    places: Sequence[Tensor],
    num_targets: Tensor,
    weights: LayerWeights,
) -> Tensor:
    """Sum each row's weighted losses over stacks and pairs of layers.

    Args:
        student: of each stack, with states as wide as the teacher's.
        teacher: likewise; layers in the same order.
        places: of each stack, [rows, length] whether a place is compared.
        num_targets: [rows]

    Returns:
        [rows] in fp32 at least.
    """
    rows = torch.zeros(len(num_targets), device=num_targets.device)
    for ours, theirs, counted in zip(student, teacher, places, strict=True):
        hidden = [hidden_distance(*pair) for pair in zip(ours.hidden, theirs.hidden, strict=True)]
        scores = [score_distance(*pair) for pair in zip(ours.scores, theirs.scores, strict=True)]
        weighted = [weights.hidden * each for each in hidden] + [weights.attention * each for each in scores]
        share = num_targets / counted.sum(1).clamp(min=1)
        for each in weighted:
            rows = rows + torch.where(counted, each, 0.0).sum(1) * share
    return rows


def hidden_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """[rows, length, width] each -> [rows, length] mean squared difference."""
    wide = torch.promote_types(student.dtype, torch.float32)
    return (student.to(wide) - teacher.to(wide)).square().mean(-1)


def score_distance(student: Scores, teacher: Scores) -> Tensor:
    """[rows, heads, length, length] each -> [rows, length] mean squared difference of what a place sees."""
    wide = torch.promote_types(student.values.dtype, torch.float32)
    apart = (student.values.to(wide) - teacher.values.to(wide)).square()
    visible = (student.visible & teacher.visible).expand_as(apart)
    return torch.where(visible, apart, 0.0).sum((1, 3)) / visible.sum((1, 3)).clamp(min=1)
