"""What was measured, of each model and each text or task."""

import math
from dataclasses import dataclass
from typing import Any

from sslm.models.standard_error import Estimate


@dataclass(frozen=True)
class Model:
    """What is known of a model once it is out of memory."""

    name: str
    objective: str
    architecture: str
    parameters: int
    step: int | None
    tokenizer_sha256: str
    convention: str


@dataclass(frozen=True)
class Scores:
    """What a model came to on one text or task."""

    data: str
    path: str
    figures: dict[str, Estimate]
    counts: dict[str, int]
    """Documents, scored tokens and bytes of a text, or examples of a task."""
    seconds: float
    record: list[dict[str, Any]]
    """What it was made of."""


@dataclass(frozen=True)
class Results:
    """All that was measured."""

    models: list[Model]
    scores: list[list[Scores]]
    """Of each model."""
    versions: dict[str, str]
    device: str


def in_words(figure: Estimate) -> str:
    """Write a figure and its standard error, to two digits of the error.

    >>> in_words(Estimate(3.14159, 0.0123)), in_words(Estimate(30.2, float("nan")))
    ('3.142 ± 0.012', '30.200')
    """
    value, error = figure
    if not math.isfinite(value):
        return "not finite"
    if math.isnan(error):
        return f"{value:,.{max(5 - len(str(int(abs(value)))), 1)}f}"
    digits = 4 if error == 0 else min(max(1 - math.floor(math.log10(error)), 0), 6)
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"
