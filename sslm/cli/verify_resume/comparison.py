"""Find where one run differs from another: in rows of metrics, then in the last checkpoint, tensor by tensor.

The tolerance says how near is near enough: 0 asks for every bit; 1e-5 allows for sums taken in another order; infinity
compares only what involves no arithmetic: which batches were read and at which learning rate.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sslm.runs.checkpoints.compare import TensorDifference, compare_tensors
from sslm.runs.checkpoints.folder import damage_of, newest_first, read_state, step_of
from sslm.runs.checkpoints.shards import Stored, index
from sslm.runs.folder import RunFolder

IN_ORDER = ("batch_digest", "lr", "train/loss", "grad_norm", "val/loss")
"""Quantities of a step that don't depend on the number of devices, causes before effects."""
UNTOUCHED = ("batch_digest", "lr")
OF_STATE = ("step", "position", "amendments", "fingerprint", "loss_scale")
DRIFT = 100.0
"""How many tolerances tensors may differ by: Adam turns a rounding error of a gradient that should be 0 into a step."""

Row = Mapping[str, Any]


class Difference(NamedTuple):
    step: int
    quantity: str
    straight: Any
    other: Any

    def __str__(self) -> str:
        return f"step {self.step}: {self.quantity} is {_short(self.other)}, {_short(self.straight)} in the straight run"


@dataclass(frozen=True)
class Comparison:
    """What differs first between two runs, and how far apart they ended."""

    first: Difference | None = None
    tensor: TensorDifference | None = None
    """First tensor that differs, in order of names."""
    farthest: TensorDifference | None = None
    parameters: int = 0

    @property
    def is_same(self) -> bool:
        return self.first is None and self.tensor is None


def compare(straight: RunFolder, other: RunFolder, tolerance: float = 0.0) -> Comparison:
    """Compare two runs that have ended, by their metrics and their last checkpoints."""
    ours, theirs = (newest_first(run.checkpoints)[0] for run in (straight, other))
    first = first_difference(straight.rows(), other.rows(), tolerance)
    for checkpoint in (ours, theirs):
        if damage := damage_of(checkpoint):
            damaged = Difference(step_of(ours), f"checkpoint {checkpoint}", "whole", f"damaged ({damage})")
            return Comparison(first or damaged)
    tensors = tensor_differences(ours, theirs)
    return Comparison(
        first or state_difference(ours, theirs),
        first_too_far(tensors, tolerance),
        max(tensors, key=lambda tensor: tensor.largest, default=None),
        sum(math.prod(stored.shape) for name, stored in index(ours).items() if name.startswith("model.")),
    )


# ------------------------------------------------------------------------------------------------ rows


def first_difference(straight: Iterable[Row], other: Iterable[Row], tolerance: float = 0.0) -> Difference | None:
    """Find the first step at which rows of metrics differ, and in which quantity; None if they don't.

    >>> rows = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.5}]
    >>> print(first_difference(rows, [rows[0], {"step": 2, "train/loss": 1.25}]))
    step 2: train/loss is 1.25, 1.5 in the straight run
    """
    ours, theirs = _values(straight), _values(other)
    compared = [key for key in ours.keys() | theirs.keys() if _is_compared(key[1], tolerance)]
    for step, quantity in sorted(compared, key=lambda key: (key[0], _rank(key[1]), key[1])):
        a, b = ours.get((step, quantity), []), theirs.get((step, quantity), [])
        if len(a) != len(b):
            return Difference(step, quantity, _times(a), _times(b))
        for x, y in zip(a, b, strict=True):
            if not _is_same(x, y, tolerance):
                return Difference(step, quantity, x, y)
    return None


def _values(rows: Iterable[Row]) -> dict[tuple[int, str], list[Any]]:
    """Group values by (step, quantity): one value if the step was logged once."""
    values: dict[tuple[int, str], list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                values.setdefault((row["step"], name), []).append(value)
    return values


def _rank(quantity: str) -> int:
    return IN_ORDER.index(quantity) if quantity in IN_ORDER else len(IN_ORDER)


def _is_compared(quantity: str, tolerance: float) -> bool:
    """Leave out what the clock decides and, with a tolerance, what amplifies rounding: accuracies, perplexities."""
    if math.isinf(tolerance):
        return quantity in UNTOUCHED
    if tolerance > 0:
        return quantity in IN_ORDER or quantity.startswith(("train/loss/", "val/loss/"))
    return quantity in (*IN_ORDER, "samples") or "/" in quantity


def _is_same(x: Any, y: Any, tolerance: float) -> bool:
    if isinstance(x, int | float) and isinstance(y, int | float):
        return (x != x and y != y) or math.isclose(x, y, rel_tol=tolerance)
    return bool(x == y)


def _times(values: list[Any]) -> str:
    return {0: "missing", 1: "there once"}.get(len(values), f"there {len(values)} times")


def _short(value: Any) -> str:
    """Cut a value's text to 60 characters.

    >>> _short(0.1), _short([1] * 40)
    ('0.1', '[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,…')
    """
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57].rstrip()}…"


# ------------------------------------------------------------------------------------------------ checkpoints


def state_difference(straight: Path, other: Path) -> Difference | None:
    """Find the first difference in what state.json says of the data and of the loss scale."""
    ours, theirs = read_state(straight), read_state(other)
    for key in OF_STATE:
        if (was := ours.get(key)) != (now := theirs.get(key)):
            return Difference(ours["step"], f"{key} of the checkpoint", was, now)
    return None


def tensor_differences(straight: Path, other: Path) -> list[TensorDifference]:
    """Compare each tensor of either checkpoint: infinity apart if one is missing, not finite, or of another shape."""
    ours, theirs = index(straight), index(other)
    return [_difference(name, ours.get(name), theirs.get(name)) for name in sorted(ours.keys() | theirs.keys())]


def _difference(name: str, ours: Stored | None, theirs: Stored | None) -> TensorDifference:
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return TensorDifference(name, num_elements=0, num_different=1, largest=math.inf, magnitude=0.0)
    found = compare_tensors(ours, theirs)
    return found if math.isfinite(found.largest) else found._replace(largest=math.inf)


def first_too_far(tensors: Sequence[TensorDifference], tolerance: float) -> TensorDifference | None:
    """Find the first tensor that differs by more than the tolerance, relative to the largest number of its kind."""
    if tolerance == 0:
        return next((tensor for tensor in tensors if tensor.num_different), None)
    magnitudes: dict[str, float] = {}
    for tensor in tensors:
        magnitudes[_kind(tensor)] = max(magnitudes.get(_kind(tensor), 0.0), tensor.magnitude)
    for tensor in tensors:
        if math.isinf(tensor.largest) or tensor.largest > magnitudes[_kind(tensor)] * tolerance * DRIFT:
            return tensor
    return None


def _kind(tensor: TensorDifference) -> str:
    """Group of tensors whose numbers are alike in size: the weights, or one of the optimizer's states."""
    return tensor.name.rpartition(".")[2] if tensor.name.startswith("optim.") else tensor.name.partition(".")[0]
