"""What came of each recipe."""

from dataclasses import dataclass
from typing import Any

from sslm.cli.compress.flags import MostLoss


@dataclass(frozen=True)
class Result:
    """A model, the original or a smaller one."""

    name: str
    size: int
    """Bytes of the weights' files."""
    parameters: int
    nonzero: float
    """Share of the parameters that are not 0."""
    in_memory: float | None
    """The figure before the model was written; None of the original."""
    reloaded: float
    """The figure of what a new process has loaded."""
    scores: dict[str, dict[str, float]]
    """All figures after reloading: name of a text or `rows` -> name of a figure -> its value."""
    tokens_per_second: float
    peak_bytes: int
    is_kept: bool = True
    """Whether it is good enough, and was written."""


@dataclass(frozen=True)
class Results:
    """The original and what was made of it."""

    model: str
    metric: str
    higher_is_better: bool
    at_most_loss: MostLoss | None
    versions: dict[str, str]
    device: str
    original: Result
    smaller: list[Result]

    def change(self, result: Result) -> float:
        """Tell how much larger a result's figure is than the original's, as a share of that."""
        before = self.original.reloaded
        return (result.reloaded - before) / abs(before) if before else float("nan")

    @property
    def all(self) -> list[Result]:
        return [self.original, *self.smaller]

    def record(self) -> dict[str, Any]:
        """Return what compress.json has."""
        models = [{**vars(result), "change": self.change(result)} for result in self.all]
        most = None if self.at_most_loss is None else str(self.at_most_loss)
        return {**vars(self), "at_most_loss": most, "original": models[0], "smaller": models[1:]}
