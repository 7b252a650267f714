"""What a model is trained to do: one file per objective, registered below by its name in snake case.

The classes are Lightning modules, and importing Lightning takes seconds: they are imported when chosen.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from sslm.system import other_names
from sslm.system.errors import UserError, nearest

if TYPE_CHECKING:
    from sslm.training.module import Objective

OBJECTIVES = {
    "causal_lm": "CausalLM",
    "masked_lm": "MaskedLM",
    "span_corruption": "SpanCorruption",
    "denoising": "Denoising",
    "token_order": "TokenOrder",
    "classification": "Classification",
    "regression": "Regression",
    "tagging": "Tagging",
    "extraction": "Extraction",
    "text_to_text": "TextToText",
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
