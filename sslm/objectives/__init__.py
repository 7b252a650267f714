"""What a model is trained to do: one file per objective, registered below by its name in snake case.

The classes are Lightning modules, and importing Lightning takes seconds: they are imported when chosen.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from sslm.system import other_names
from sslm.system.errors import UserError, nearest

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
    if name not in OBJECTIVES:
        close, allowed = nearest(name, OBJECTIVES, other_names.OBJECTIVES), ", ".join(OBJECTIVES)
        raise UserError(f"--objective {name}: there is no such objective{close}; allowed: {allowed}")
    objective: type[Objective] = getattr(import_module(f"sslm.objectives.{name}"), OBJECTIVES[name])
    return objective
