"""The optimizer that a run asks for."""

from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from sslm.config import GroupConfig, OptimConfig
from sslm.runs.checkpoints.optimizer_states import hidden_matrices
from sslm.system.errors import UserError
from sslm.training.optimizers.adafactor import Adafactor
from sslm.training.optimizers.adamw import AdamW
from sslm.training.optimizers.adamw_8bit import AdamW8bit
from sslm.training.optimizers.base import Optimizer
from sslm.training.optimizers.by_name import check_groups
from sslm.training.optimizers.groups import parameter_groups, set_learning_rate
from sslm.training.optimizers.lion import Lion
from sslm.training.optimizers.muon import Muon
from sslm.training.optimizers.schedule_free import ScheduleFree

KINDS: tuple[type[Optimizer], ...] = (AdamW, AdamW8bit, ScheduleFree, Muon, Lion, Adafactor)
OPTIMIZERS = {kind.name: kind for kind in KINDS}
"""By their names in `--optim.name`."""
RATES = {"lion": 0.1, "adafactor": 10.0}
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


def check_optimizer(optim: OptimConfig, model: PreTrainedModel) -> None:
    """Refuse an optimizer that does not go with a model, or with other settings.

    Raises:
        UserError: says why, and what to type instead.
    """
    if optim.name == "muon" and not hidden_matrices(model):
        what = f"{model.config.model_type} has no matrices in blocks that can be told apart"
        raise UserError(f"--optim.name muon: {what}; give another optimizer")
    if optim.name == "schedule_free" and optim.average_decay is not None:
        raise UserError("--optim.average_decay: schedule_free has an average of its own; leave it out")
    if optim.name == "schedule_free" and optim.beta1 == 0:
        raise UserError("--optim.beta1 0.0: schedule_free's average has this weight; give 0.9")
    if optim.groups is not None:
        check_groups(optim.groups, model)
