"""What was measured, of each model and each text or task."""

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
