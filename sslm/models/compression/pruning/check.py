"""Whether a model can be pruned as asked, found out before anything is done."""

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sslm.models.architecture import auto_class_named, brief
from sslm.models.blocks import evaluating
from sslm.models.build import shallow_model
from sslm.models.compression.pruning.masks import number_pruned
from sslm.models.compression.pruning.matrices import matrices
from sslm.models.compression.pruning.recipe import Pruning
from sslm.models.compression.pruning.shrink import shrink
from sslm.models.compression.pruning.skipping import skip_unless
from sslm.models.compression.pruning.units import Size, groups, resized
from sslm.models.probe import probe_tokens
from sslm.system.errors import UserError


def check_pruning(model: PreTrainedModel, pruning: Pruning) -> None:
    """Refuse what can't be; only shapes and config are read, so the model may be on the meta device.

    Raises:
        UserError: says why, and what to give instead.
    """
    found = matrices(model)
    if (within := pruning.within) is not None:
        for name, matrix in found.items():
            shape = tuple(model.get_parameter(name).shape)
            if shape[matrix.input_dim] % within:
                what = f"{name} has {shape[matrix.input_dim]} inputs, which {within} does not divide"
                raise UserError(f"prune.pattern {pruning.pattern}: {what}; give unstructured")
    elif not pruning.is_structured:
        shapes = {name: model.get_parameter(name).shape for name in found}
        by_row = pruning.method == "wanda"
        most = max(shapes[name][found[name].input_dim] if by_row else shapes[name].numel() for name in found)
        if number_pruned(pruning.sparsity, most) == 0:
            what = f"is less than one weight of the {most:,} that are compared"
            raise UserError(f"prune.sparsity {pruning.sparsity}: {what}; give {1 / most:.3g} or more")
    if pruning.is_structured:
        for size in {group.size.words: group.size for group in groups(model, pruning.pattern)}.values():
            _check_number(model, pruning, size)
        _check_computes_the_same(model, pruning)


def _check_number(model: PreTrainedModel, pruning: Pruning, size: Size) -> None:
    if number_pruned(pruning.sparsity, size.number) == 0:
        least = f"give {1 / size.number:.3g} or more" if size.number > 1 else "give another pattern"
        raise UserError(
            f"prune.sparsity {pruning.sparsity}: is less than one of {size.number} {pruning.pattern}; {least}"
        )
    if _takes(model, size, kept := size.number - number_pruned(pruning.sparsity, size.number)):
        return
    shares = [f"{1 - n / size.number:.4g}" for n in range(size.number - 1, 0, -1) if _takes(model, size, n)]
    what = f"{model.config.model_type} takes no {size.words} that leaves {kept} of {size.number} {pruning.pattern}"
    raise UserError(f"prune.sparsity {pruning.sparsity}: {what}; give {' or '.join(shares) or 'another pattern'}")


def _takes(model: PreTrainedModel, size: Size, number: int) -> bool:
    try:
        resized(model.config, size, number)
    except Exception:  # each architecture refuses in its own way
        return False
    return True


@torch.no_grad()
def _check_computes_the_same(model: PreTrainedModel, pruning: Pruning) -> None:
    """Try on a model of few layers that what is pruned and what is shrunken computes the same."""
    config = copy.deepcopy(model.config)
    trial = shallow_model(config, auto_class_named(type(model).__name__))
    with evaluating(trial):
        try:
            mask_every_other(trial, pruning.pattern)
            smaller = shrink(trial)
            before, after = outputs(trial), outputs(smaller)
            same = smaller is not trial and torch.allclose(
                before, after, rtol=1e-3, atol=1e-4 * float(before.abs().max())
            )
            why = "the smaller model computes something else"
        except Exception as error:  # each architecture trips over its own
            same, why = False, brief(error)
    if not same:
        kind = model.config.model_type
        raise UserError(f"prune.pattern {pruning.pattern}: {kind} can't be made smaller so ({why}); give unstructured")


def mask_every_other(model: PreTrainedModel, pattern: str) -> None:
    """Prune the units of even numbers of a model, in place, whatever they are worth."""
    for group in groups(model, pattern):
        kept = torch.arange(group.size.number) % 2 == 1
        for name, place in group.places.items():
            weight = model.get_parameter(name)
            weight.mul_(place.of_weight(kept, weight.shape))
        if pattern == "layers":
            for number in range(0, group.size.number, 2):
                skip_unless(model.get_submodule(f"{group.name}.{number}"), lambda: None)


def outputs(model: PreTrainedModel) -> Tensor:
    """Logits of a few tokens."""
    ids = probe_tokens(model)
    both = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    return torch.as_tensor(model(input_ids=ids, use_cache=False, **both)[0]).float()
