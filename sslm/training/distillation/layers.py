"""Which layers of a student are compared with which of its teacher, and whether they can be."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from sslm.config.distill import DistillConfig
from sslm.models.blocks import stacks
from sslm.models.layer_losses import LayerMap, LayerWeights, parse_layer_map, uniform_map
from sslm.models.layer_states import LayerStates, Shape, shapes_of
from sslm.parallel.materialise import fill
from sslm.system.errors import UserError, one_line
from sslm.system.random_words import key64


class LayerPlan(NamedTuple):
    """What is compared, of each stack of blocks."""

    maps: list[LayerMap]
    widths: list[tuple[int, int]] | None
    """Of the student's and of the teacher's states; None if they are the same."""

    def watch(self, model: PreTrainedModel, weights: LayerWeights, *, is_teacher: bool) -> LayerStates:
        """Let a model show its layers; a student's states as wide as its teacher's."""
        states, blocks = weights.hidden > 0, weights.attention > 0
        hidden = [[pair[is_teacher] for pair in pairs if states] for pairs in self.maps]
        scores = [[pair[is_teacher] for pair in pairs if blocks and all(pair)] for pairs in self.maps]
        return LayerStates(
            model, hidden=hidden, scores=scores, widths=self.widths if states and not is_teacher else None
        )


def weights_of_layers(how: DistillConfig) -> LayerWeights:
    return LayerWeights(how.hidden_weight, how.attention_weight)


def plan_layers(
    student: PreTrainedModel, depths: Sequence[int], teacher: PreTrainedModel, how: DistillConfig
) -> LayerPlan:
    """Pair the layers of two models, after a try on a few tokens.

    Args:
        student: one of the student's make, with weights; it may have few of the layers.
        depths: blocks of each of the student's stacks.
        teacher: the model to learn from.

    Raises:
        UserError: they can't be compared.
    """
    attention = how.attention_weight > 0
    flag = "--distill.attention_weight" if attention else "--distill.hidden_weight"
    ours, theirs = (_shapes(model, flag, attention) for model in (student, teacher))
    if len(ours) != len(theirs):
        both = "an encoder and a decoder, the other one of the two"
        raise UserError(f"{flag}: of teacher and student one has {both}; leave it out")
    for shape, other in zip(ours, theirs, strict=True) if attention else ():
        if shape.heads != other.heads:
            what = f"compares head by head, the teacher has {other.heads} in a layer and the student {shape.heads}"
            raise UserError(f"{flag}: {what}; give --model.num_attention_heads {other.heads}, or leave it out")
    maps = [_map(how.layer_map, depth, shape.depth) for depth, shape in zip(depths, theirs, strict=True)]
    if attention and not any(all(pair) for pairs in maps for pair in pairs):
        raise UserError(f"--distill.layer_map {how.layer_map}: embeddings have no attention; give more, such as 1:1")
    widths = [(shape.width, other.width) for shape, other in zip(ours, theirs, strict=True)]
    return LayerPlan(maps, widths if any(one != other for one, other in widths) else None)


def _shapes(model: PreTrainedModel, flag: str, attention: bool) -> list[Shape]:
    kind = model.config.model_type
    try:
        shapes = shapes_of(model, scores=attention)
    except Exception as error:  # each architecture has its own way to call its blocks
        why = one_line(error)
        raise UserError(f"{flag}: {kind}'s layers can't be told apart ({why}); leave it out") from None
    if attention and any(shape.heads is None for shape in shapes):
        what = f"{kind}'s attention, if it has any, is not SDPA's, whose scores are compared"
        raise UserError(f"{flag}: {what}; leave it out")
    return shapes


def _map(asked: str | None, student: int, teacher: int) -> LayerMap:
    if asked is None:
        return uniform_map(student, teacher)
    pairs = parse_layer_map(asked)
    for who, layer, depth in (("student", pairs[-1][0], student), ("teacher", max(t for _, t in pairs), teacher)):
        if layer > depth:
            what = f"the {who} has layers 0 (embeddings) to {depth}"
            raise UserError(f"--distill.layer_map {asked}: {what}, there is no {layer}")
    return pairs


@torch.no_grad()
def draw_projections(states: LayerStates, seed: int) -> None:
    """Give the projections of a student's states, which may be sharded, weights that follow from the seed alone."""
    for name, weight in states.named_parameters():
        generator = torch.Generator().manual_seed(key64(seed, "projection", name) >> 1)
        whole = torch.randn(weight.shape, generator=generator, device="cpu") * weight.shape[1] ** -0.5
        fill(weight, whole)


def depths_of(model: PreTrainedModel) -> list[int]:
    """Count the blocks of each of a model's stacks."""
    return [len(stack) for stack in stacks(model)]
