"""A model without the heads, neurons and layers that are zero: smaller matrices, and a config that says so."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from sslm.models.compression.pruning.units import Group, Place, find_groups, on_meta, resized
from sslm.models.weights import tied_names

Weights = Mapping[str, Tensor]


class Shrunken(NamedTuple):
    """A model on the meta device, and its weights, each under one name."""

    model: PreTrainedModel
    weights: dict[str, Tensor]


def shrink(model: PreTrainedModel) -> PreTrainedModel:
    """Make a model of the units that are not all zero; it computes what the given one does.

    Layers lose the same number of heads, or of neurons: as many as are zero in each, since the config has one number.

    Args:
        model: pruned by `prune`; it stays as it is.

    Returns:
        A model of the same class; the same one if nothing can go.
    """
    tied = tied_names(model)
    config, weights = _shrunken(model, {n: w for n, w in model.state_dict().items() if n not in tied})
    if config is model.config:
        return model
    with no_init_weights():
        smaller: Any = type(model)(config)
    smaller.load_state_dict(weights, strict=False)
    smaller.tie_weights()
    if model.can_generate():
        smaller.generation_config = model.generation_config
    made: PreTrainedModel = smaller.to(device=model.device, dtype=model.dtype).train(model.training)
    return made


def shrink_weights(model: PreTrainedModel, weights: Weights) -> Shrunken:
    """Do the same with weights that are not in the model, which may be on the meta device."""
    config, less = _shrunken(model, weights)
    return Shrunken(model if config is model.config else on_meta(type(model), config), less)


def _shrunken(model: PreTrainedModel, weights: Weights) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
    weights = dict(weights)
    for pattern in ("layers", "heads", "neurons"):
        by_size: dict[str, list[Group]] = defaultdict(list)
        for group in find_groups(model, pattern):
            by_size[group.size.words].append(group)
        for alike in by_size.values():
            model, weights = _without_dead(model, weights, alike)
    return model.config, weights


def _without_dead(
    model: PreTrainedModel, weights: dict[str, Tensor], alike: list[Group]
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Leave out the units of one number of the config that are dead everywhere, as many as the config takes."""
    size, alive = alike[0].size, [_alive(group, weights) for group in alike]
    for number in range(max(1, *(int(each.sum()) for each in alive)), size.number):
        kept = [_most_alive(each, number) for each in alive]
        try:
            smaller = on_meta(type(model), resized(model.config, size, number, kept[0]))
        except Exception:  # each architecture refuses in its own way
            continue
        if size.pattern == "layers":
            return smaller, _of_layers(smaller, weights, alike[0].name, kept[0])
        places = {
            name: (place, units)
            for group, units in zip(alike, kept, strict=True)
            for name, place in group.places.items()
        }
        return smaller, {n: _cut(w, *places[n]) if n in places else w for n, w in weights.items()}
    return model, weights


def _alive(group: Group, weights: Weights) -> Tensor:
    """[number] whether any weight of a unit is another than zero."""
    numbers = [place.sums(weights[name].ne(0).float()) for name, place in group.places.items() if name in weights]
    return torch.stack(numbers).sum(0) > 0


def _most_alive(alive: Tensor, number: int) -> list[int]:
    """The units that are alive and the first of the others, so many together, in order."""
    return sorted(alive.logical_not().to(torch.uint8).argsort(stable=True)[:number].tolist())


def _cut(weight: Tensor, place: Place, units: list[int]) -> Tensor:
    kept = torch.zeros(place.number, dtype=torch.bool, device=weight.device)
    kept[units] = True
    along = place.along(kept, weight.shape[place.dim])
    return weight.index_select(place.dim, along.nonzero().flatten())


def _of_layers(smaller: PreTrainedModel, weights: Weights, stack: str, kept: list[int]) -> dict[str, Tensor]:
    """Weights of the layers that stay, under their new numbers; the first has what it alone had before."""
    tied, taken = tied_names(smaller), {}
    for name in smaller.state_dict():
        if name not in tied:
            head, _, rest = name.removeprefix(f"{stack}.").partition(".")
            former = f"{stack}.{kept[int(head)]}.{rest}" if name.startswith(f"{stack}.") else name
            taken[name] = weights.get(former, weights[name])
    return taken
