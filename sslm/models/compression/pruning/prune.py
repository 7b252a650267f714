"""Prune a model once, as it is."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sslm.models.blocks import evaluating
from sslm.models.compression.inputs import input_sums, squares
from sslm.models.compression.pruning.check import check_pruning
from sslm.models.compression.pruning.masks import highest, matrix_mask, number_pruned
from sslm.models.compression.pruning.matrices import Matrix, matrices, modules
from sslm.models.compression.pruning.recipe import Pruning
from sslm.models.compression.pruning.scores import wanda
from sslm.models.compression.pruning.skipping import skip_unless
from sslm.models.compression.pruning.units import Group, groups
from sslm.system.errors import UserError

Score = Callable[[str], Tensor]
"""Name of a matrix -> how much each of its weights matters, in its shape."""


@torch.no_grad()
def prune(model: PreTrainedModel, pruning: Pruning, batches: Iterable[Mapping[str, Any]] = ()) -> dict[str, Tensor]:
    """Set to zero, in place, what matters least, and let layers that are pruned as a whole pass on what they read.

    Args:
        model: a whole one, on one device.
        pruning: how.
        batches: arguments of the model's forward pass, on its device: what `wanda` is calibrated with.

    Returns:
        Name of each weight that is pruned, and a mask of what stays of it.

    Raises:
        UserError: the model can't be pruned so.
    """
    check_prune_once(model, pruning)
    layers, read = matrices(model), dict[str, Tensor]()
    if pruning.method == "wanda":
        with evaluating(model):
            read = input_sums(model, modules(layers), batches, squares)
        if not read:
            raise UserError("prune.method wanda: needs text to calibrate with, and there is none; give magnitude")
    weights = dict(model.named_parameters())

    def score(name: str) -> Tensor:
        weight = weights[name].float()
        return weight.abs() if name not in read else wanda(weight, read[name], layers[name].input_dim)

    masks = dict(_masks(model, pruning, layers, score))
    for name, mask in masks.items():
        weights[name].mul_(mask)
    return masks


def check_prune_once(model: PreTrainedModel, pruning: Pruning) -> None:
    """Refuse what can't be, as `check_pruning` does, and what only training can tell: a UserError."""
    check_pruning(model, pruning)
    if pruning.method == "movement":
        raise UserError("prune.method movement: only training can tell it; give magnitude or wanda")


def _masks(model: PreTrainedModel, pruning: Pruning, layers: Mapping[str, Matrix], score: Score) -> Iterable[Any]:
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    if not pruning.is_structured:
        yield from ((name, mask_of(score(name), matrix, pruning, pruning.sparsity)) for name, matrix in layers.items())
        return
    for group in groups(model, pruning.pattern):
        kept = kept_units(group, pruning.sparsity, layers, score)
        yield from ((name, place.of_weight(kept, shapes[name])) for name, place in group.places.items())
        if pruning.pattern == "layers":
            for number in (~kept).nonzero().flatten().tolist():
                skip_unless(model.get_submodule(f"{group.name}.{number}"), lambda: None)


def mask_of(scores: Tensor, matrix: Matrix, pruning: Pruning, sparsity: float) -> Tensor:
    """Mark what stays of a matrix.

    Args:
        scores: of its weights, in its shape.
        sparsity: share that goes; less than `pruning.sparsity` on the way to it.
    """
    by_row = pruning.method == "wanda"
    return matrix.by_row(matrix_mask(matrix.by_row(scores), sparsity, pruning.within, by_row))


def kept_units(
    group: Group, sparsity: float, layers: Mapping[str, Matrix], score: Score, among: Tensor | None = None
) -> Tensor:
    """[number] which units of a group stay: those whose weights have the highest sums of scores.

    Args:
        among: [number] which are still there; None if all are.
    """
    sums = torch.stack([place.sums(score(name)) for name, place in group.places.items() if name in layers]).sum(0)
    remaining = sums if among is None else sums.masked_fill(~among, -torch.inf)
    return highest(remaining, number_pruned(sparsity, group.size.number))
