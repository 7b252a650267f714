"""What a model is trained to do: one file per objective, registered below by its name in snake case.

The classes are Lightning modules, and importing Lightning takes seconds: they are imported when chosen. Objectives of
other packages are entry points of the group `sslm.objectives`, or named as `package.module:Class`.
"""

import sys
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from sslm.system import other_names
from sslm.system.errors import UserError, nearest, one_line, short

if TYPE_CHECKING:
    from sslm.training.module import Objective

PRETRAINING = {
    "causal_lm": "CausalLM",
    "masked_lm": "MaskedLM",
    "span_corruption": "SpanCorruption",
    "denoising": "Denoising",
    "token_order": "TokenOrder",
}
FINE_TUNING = {
    "classification": "Classification",
    "regression": "Regression",
    "tagging": "Tagging",
    "extraction": "Extraction",
    "text_to_text": "TextToText",
}
OBJECTIVES = PRETRAINING | FINE_TUNING
BEST = {
    "classification": ("val/f1_macro", "highest"),
    "regression": ("val/pearson", "highest"),
    "tagging": ("val/f1", "highest"),
    "extraction": ("val/f1", "highest"),
    "text_to_text": ("val/loss", "lowest"),
}
"""What tells a fine-tuned model's best checkpoint."""


def usual_settings(name: object) -> dict[str, dict[str, str]]:
    """Settings that suit an objective better than the defaults of all, as YAML has them: section -> key -> value."""
    if not isinstance(name, str) or name not in BEST:
        return {}
    metric, best_is = BEST[name]
    return {
        "": {"max_epochs": "3", "batch_size": "32", "val_every": "200"},
        "data": {"val_sequences": "100000"},
        "optim": {"weight_decay": "0.01"},
        "checkpoint": {"keep_last": "1", "keep_best": "1", "best_metric": metric, "best_is": best_is, "export": "best"},
    }


def load_objective(name: str) -> "type[Objective]":
    """The objective of that name.

    Raises:
        UserError: there is none.
    """
    if name in OBJECTIVES:
        objective: type[Objective] = getattr(import_module(f"sslm.objectives.{name}"), OBJECTIVES[name])
        return objective
    if ":" in name:
        module, _, attribute = name.partition(":")
        if module not in sys.modules:
            what = "is named by settings, which import nothing: name it on the command line too"
            raise UserError(f"--objective {short(name)}: {what}, or install it as an entry point of sslm.objectives")
        return _checked(name, getattr(sys.modules[module], attribute, None))
    installed = {point.name: point for point in entry_points(group="sslm.objectives")}
    if name in installed:
        try:
            return _checked(name, installed[name].load())
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"--objective {name}: {installed[name].value} can't be imported ({one_line(error)})"
            ) from None
    known = [*OBJECTIVES, *installed]
    close = nearest(name, known, other_names.OBJECTIVES)
    allowed = f"{', '.join(known)}, or your own as package.module:Class"
    raise UserError(f"--objective {short(name)}: there is no such objective{close}; allowed: {allowed}")


def import_own(name: str) -> None:
    """Import the module of an objective that a command line names as `package.module:Class`; settings import nothing.

    Raises:
        UserError: it can't be imported.
    """
    module, colon, _ = name.partition(":")
    if colon:
        try:
            import_module(module)
        except Exception as error:  # whatever that code does
            where = "it has to be installed, or its folder to be in PYTHONPATH"
            raise UserError(
                f"--objective {short(name)}: {module} can't be imported ({one_line(error)}); {where}"
            ) from None


def _checked(name: str, found: object) -> "type[Objective]":
    from sslm.training.module import Objective

    if not (isinstance(found, type) and issubclass(found, Objective)):
        raise UserError(f"--objective {short(name)}: is no subclass of sslm.training.module.Objective")
    return found
