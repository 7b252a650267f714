"""Where one run leaves another: rows of metrics, then the last checkpoint, tensor by tensor.

How near is near enough is one number, the tolerance: 0 asks for every bit; 1e-5 allows for sums taken in another order; infinity
looks only at what no arithmetic touches, which batches were read and at which rate.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sslm.runs.checkpoints.compare import compare_tensors
from sslm.runs.checkpoints.folder import damage_of, newest_first, read_state, step_of
from sslm.runs.checkpoints.shards import Stored, index
from sslm.runs.folder import RunFolder

IN_ORDER = ("batch_digest", "lr", "train/loss", "grad_norm", "val/loss")
"""Quantities of a step that any topology shares, causes before effects."""
UNTOUCHED = ("batch_digest", "lr")
OF_STATE = ("step", "position", "amendments", "fingerprint", "loss_scale")
DRIFT = 100.0
"""Tolerances by which tensors may differ: Adam makes a step of what rounding leaves of a gradient that should be 0 (a key's bias)."""

Row = Mapping[str, Any]


class Difference(NamedTuple):
    step: int
    quantity: str
    straight: Any
    other: Any

    def __str__(self) -> str:
        return f"step {self.step}: {self.quantity} is {_short(self.other)}, {_short(self.straight)} in the straight run"


class Apart(NamedTuple):
    """How far one tensor is apart in two checkpoints."""

    name: str
    kind: str
    """Of numbers that are alike in size: weights, or one of the optimizer's states."""
    is_same: bool
    """To the last bit."""
    by: float
    """The largest difference; infinity: one lacks it, has it in another shape, or has no number there."""
    size: float
    """The largest number in it."""

    def is_too_far(self, largest: float, tolerance: float) -> bool:
        """Args: largest: number of this kind in the checkpoint."""
        if tolerance == 0:
            return not self.is_same
        return math.isinf(self.by) or self.by > largest * tolerance * DRIFT


@dataclass(frozen=True)
class Compared:
    """Two runs, compared: what differs first, and how far apart they ended."""

    first: Difference | None = None
    tensor: Apart | None = None
    """The first tensor that differs, in order of names."""
    furthest: Apart | None = None
    parameters: int = 0

    @property
    def is_same(self) -> bool:
        return self.first is None and self.tensor is None


def compare(straight: RunFolder, other: RunFolder, tolerance: float = 0.0) -> Compared:
    """Two runs that have ended, by their metrics and their last checkpoints."""
    ours, theirs = (newest_first(run.checkpoints)[0] for run in (straight, other))
    first = first_difference(straight.rows(), other.rows(), tolerance)
    for checkpoint in (ours, theirs):
        if damage := damage_of(checkpoint):
            step = step_of(ours)
            return Compared(first or Difference(step, f"checkpoint {checkpoint}", "whole", f"damaged ({damage})"))
    apart = tensors_apart(ours, theirs)
    parameters = sum(math.prod(one.shape) for name, one in index(ours).items() if name.startswith("model."))
    return Compared(
        first or state_difference(ours, theirs),
        first_too_far(apart, tolerance),
        max(apart, key=lambda one: one.by, default=None),
        parameters,
    )


# ------------------------------------------------------------------------------------------------ rows


def first_difference(straight: Iterable[Row], other: Iterable[Row], tolerance: float = 0.0) -> Difference | None:
    """The first step at which rows of metrics differ, and by which quantity; None: at none.

    >>> rows = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.5}]
    >>> print(first_difference(rows, [rows[0], {"step": 2, "train/loss": 1.25}]))
    step 2: train/loss is 1.25, 1.5 in the straight run
    """
    ours, theirs = _values(straight), _values(other)
    for at in sorted(ours.keys() | theirs.keys(), key=lambda at: (at[0], _rank(at[1]), at[1])):
        if not _is_compared(at[1], tolerance):
            continue
        a, b = ours.get(at, []), theirs.get(at, [])
        if len(a) != len(b):
            return Difference(*at, _times(a), _times(b))
        for x, y in zip(a, b, strict=True):
            if not _is_same(x, y, tolerance):
                return Difference(*at, x, y)
    return None


def _values(rows: Iterable[Row]) -> dict[tuple[int, str], list[Any]]:
    """(step, quantity) -> its values: one, if the step was logged once."""
    values: dict[tuple[int, str], list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step":
                values.setdefault((row["step"], name), []).append(value)
    return values


def _rank(quantity: str) -> int:
    return IN_ORDER.index(quantity) if quantity in IN_ORDER else len(IN_ORDER)


def _is_compared(quantity: str, tolerance: float) -> bool:
    """All but what the clock makes; with rounding, not what it makes jump (a best guess) or grow (a perplexity)."""
    if math.isinf(tolerance):
        return quantity in UNTOUCHED
    if tolerance > 0:
        return quantity in IN_ORDER or quantity.startswith(("train/loss/", "val/loss/"))
    return quantity in (*IN_ORDER, "samples") or "/" in quantity


def _is_same(x: Any, y: Any, tolerance: float) -> bool:
    if isinstance(x, int | float) and isinstance(y, int | float):
        return x == y or (x != x and y != y) or math.isclose(x, y, rel_tol=tolerance)
    return bool(x == y)


def _times(values: list[Any]) -> str:
    return {0: "missing", 1: "there once"}.get(len(values), f"there {len(values)} times")


def _short(value: Any) -> str:
    """
    >>> _short(0.1), _short([1] * 40)
    ('0.1', '[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,…')
    """
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57].rstrip()}…"


# ------------------------------------------------------------------------------------------------ checkpoints


def state_difference(straight: Path, other: Path) -> Difference | None:
    """What state.json says of the data and of the loss's scale."""
    ours, theirs = read_state(straight), read_state(other)
    for key in OF_STATE:
        if ours.get(key) != theirs.get(key):
            return Difference(ours["step"], f"{key} of the checkpoint", ours.get(key), theirs.get(key))
    return None


def tensors_apart(straight: Path, other: Path) -> list[Apart]:
    """Compare each tensor of either checkpoint."""
    ours, theirs = index(straight), index(other)
    return [_apart(name, ours.get(name), theirs.get(name)) for name in sorted(ours.keys() | theirs.keys())]


def first_too_far(apart: Sequence[Apart], tolerance: float) -> Apart | None:
    largest: dict[str, float] = {}
    for one in apart:
        largest[one.kind] = max(largest.get(one.kind, 0.0), one.size)
    return next((one for one in apart if one.is_too_far(largest[one.kind], tolerance)), None)


def _apart(name: str, ours: Stored | None, theirs: Stored | None) -> Apart:
    kind = name.rpartition(".")[2] if name.startswith("optim.") else name.partition(".")[0]
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return Apart(name, kind, False, math.inf, 0.0)
    found = compare_tensors(ours, theirs)
    by = found.largest if math.isfinite(found.largest) else math.inf
    return Apart(name, kind, not found.num_different, by, found.magnitude)
