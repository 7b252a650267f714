"""The optimizer that a run asks for."""

from collections.abc import Mapping

from torch import nn

from sslm.config import GroupConfig, OptimConfig
from sslm.runs.checkpoints.optimizer_states import hidden_matrices
from sslm.training.optimizers.adamw import AdamW
from sslm.training.optimizers.base import Optimizer
from sslm.training.optimizers.groups import parameter_groups, set_learning_rate
from sslm.training.optimizers.lion import Lion
from sslm.training.optimizers.muon import Muon

OPTIMIZERS: dict[str, type[Optimizer]] = {kind.name: kind for kind in (AdamW, Muon, Lion)}
"""By their names in `--optim.name`."""
RATES = {"lion": 0.1}
"""What a run's default learning rate is multiplied by, if not 1."""


def build_optimizer(
    module: nn.Module,
    optim: OptimConfig,
    seed: int = 0,
    rates: Mapping[nn.Parameter, float] | None = None,
    own: Mapping[nn.Parameter, GroupConfig] | None = None,
) -> Optimizer:
    """Make the optimizer of a module whose weights are where they will be trained.

    Args:
        seed: of the rounding.
        rates: what each parameter's learning rate is multiplied by (`layer_decay.rates`); None: all have the same.
        own: parameters with a rate or a weight decay of their own (`by_name.group_of`).
    """
    assert optim.lr is not None
    hidden = hidden_matrices(module) if optim.name == "muon" else None
    groups = parameter_groups(module, optim.weight_decay, own, rates, hidden)
    set_learning_rate(groups, optim.lr)
    betas = optim.beta1, optim.beta2
    return OPTIMIZERS[optim.name](groups, lr=optim.lr, betas=betas, eps=optim.eps, seed=seed)
