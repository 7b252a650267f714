"""Which parameters are trained with which weight decay and rate."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from sslm.config import GroupConfig

STATE_SPACE = {"A_log", "D"}
"""How fast a state space model forgets, and its skip connection: never decayed (Gu & Dao 2023, arXiv:2312.00752)."""
RATE = "lr_rate"
"""Key of what a parameter group's learning rate is of the schedule's, 1 if it isn't there."""
HIDDEN = "is_hidden"
"""Key of whether a parameter group has hidden matrices, False if it isn't there."""


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    own: Mapping[nn.Parameter, GroupConfig] | None = None,
    rates: Mapping[nn.Parameter, float] | None = None,
    hidden: Collection[nn.Parameter] | None = None,
) -> list[dict[str, Any]]:
    """Group a module's trained parameters by weight decay (see `exemptions`), and by device mesh.

    Args:
        own: parameters with a rate or a weight decay of their own.
        rates: what a parameter's learning rate is multiplied by, if not 1; None: all have the same.
        hidden: parameters to set apart from the others; None: none.
    """
    groups: dict[tuple[float, DeviceMesh | None, float, bool], list[nn.Parameter]] = {}
    has_rates = rates is not None or own is not None
    for parameter, exempt in sorted(exemptions(module), key=lambda pair: pair[1] is not None):
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        rate, decay = 1.0 if rates is None else rates.get(parameter, 1.0), weight_decay
        if own is not None and (group := own.get(parameter)) is not None:
            rate, decay = rate * group.lr, decay if group.weight_decay is None else group.weight_decay
        key = decay if exempt is None else 0.0, mesh, rate, hidden is not None and parameter in hidden
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": members, "weight_decay": decay}
        | ({RATE: rate} if has_rates else {})
        | ({} if hidden is None else {HIDDEN: is_hidden})
        for (decay, _, rate, is_hidden), members in groups.items()
    ]


def exemptions(module: nn.Module) -> list[tuple[nn.Parameter, str | None]]:
    """List a module's trained parameters, each with the kind that weight decay leaves out, or None if it decays."""
    found: dict[nn.Parameter, str | None] = {}
    for path, layer in module.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.requires_grad:
                found.setdefault(parameter, _exemption(path, layer, name, parameter))
    return list(found.items())


def _exemption(path: str, layer: nn.Module, name: str, parameter: Tensor) -> str | None:
    """Name the kind of a parameter that weight decay leaves out; None if it decays, as matrices and embeddings do.

    Names tell what shapes don't: scales of queries and keys have a row for each head (Cohere), biases one for each
    expert (GPT-OSS), and A_log one for each channel (Mamba). Dimensions of one make no matrix of a vector (RWKV's time
    mixes), unless it is the weight of a layer that has a single output.
    """
    is_norm = "Norm" in type(layer).__name__ or path.rpartition(".")[2] == "norm"
    if is_norm and not isinstance(layer, nn.Embedding):  # there are normed embeddings
        return "norms"
    if "bias" in name:
        return "biases"
    size = parameter.shape if "weight" in name else [length for length in parameter.shape if length > 1]
    return name if len(size) < 2 or name in STATE_SPACE else None


def set_learning_rate(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Give each parameter group its part of a learning rate."""
    for group in groups:
        group["lr"] = lr * group.get(RATE, 1.0)
