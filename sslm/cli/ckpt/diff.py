"""sslm ckpt diff: what differs between two checkpoints, bit by bit, whatever files their tensors lie in."""

import json
import math
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslm.runs.checkpoints.compare import TensorDifference, compare_tensors
from sslm.runs.checkpoints.folder import files_of, read_state, shards_of
from sslm.runs.checkpoints.shards import Stored, index
from sslm.system.errors import UserError, printable
from sslm.system.files import sha256_of
from sslm.system.terminal import plural, print_table, say, transfer_progress

MOST_ROWS = 20
MISSING = object()
"""Stands for an entry that isn't there."""


@dataclass(frozen=True)
class Differences:
    state: list[str]
    files: list[str]
    tensors: list[str]
    """Tensors that one of them lacks, and those of other shapes or dtypes."""
    values: list[TensorDifference]
    """Largest first; scalars (an optimizer's counters) last."""
    num_tensors: int
    """Tensors in both, of equal shape and dtype."""

    @property
    def any(self) -> bool:
        return bool(self.state or self.files or self.tensors or self.values)


def compare(a: Path, b: Path) -> Differences:
    """Compare two checkpoints; a UserError if one of them can't be read."""
    try:
        state = _differing_keys(read_state(a), read_state(b))
    except RecursionError:
        raise UserError(f"{a}, {b}: no sound state.json (nested too deep)") from None
    of_a, of_b = index(a), index(b)
    both = [n for n in of_a if n in of_b and _kind(of_a[n]) == _kind(of_b[n])]
    with transfer_progress("Comparing", sum(of_a[name].num_bytes for name in both)) as done:
        compared = [compare_tensors(of_a[name], of_b[name], done) for name in both]
    values = [difference for difference in compared if difference.num_different]
    values.sort(key=lambda one: (of_a[one.name].shape == (), not math.isnan(one.largest), -one.largest, one.name))
    return Differences(state, _differing_files(a, b), _differing_tensors(of_a, of_b), values, len(both))


def show(found: Differences) -> None:
    for line in [*found.state, *found.files, *found.tensors]:
        say(printable(line))
    if found.values:
        say(f"{len(found.values)} of {plural(found.num_tensors, 'tensor', exact=True)} with other values:")
        shown = found.values[:MOST_ROWS]
        cells = [(f"{v.largest:.3g}", f"{v.num_different} of {v.num_elements}", v.name) for v in shown]
        print_table(("max |a - b|", "elements", "tensor"), cells, right=(0, 1), wide=(2,))
        if len(found.values) > MOST_ROWS:
            say(f"… and {len(found.values) - MOST_ROWS} more")
    if not found.any:
        say(f"identical ({plural(found.num_tensors, 'tensor', exact=True)})")


def _kind(tensor: Stored) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _differing_tensors(a: dict[str, Stored], b: dict[str, Stored]) -> list[str]:
    lines = [f"only in A: {name} {_kind(tensor)}" for name, tensor in a.items() if name not in b]
    lines += [f"only in B: {name} {_kind(tensor)}" for name, tensor in b.items() if name not in a]
    kinds = [(name, _kind(a[name]), _kind(b[name])) for name in a if name in b]
    return lines + [f"{name}: {was} | {now}" for name, was, now in kinds if was != now]


def _differing_keys(a: Any, b: Any, name: str = "") -> list[str]:
    """A line for each entry of state.json that differs, with the keys that lead to it."""
    if isinstance(a, dict) and isinstance(b, dict):
        pairs = {f"{name}.{key}" if name else key: (a.get(key, MISSING), b.get(key, MISSING)) for key in [*a, *b]}
        return [line for inner, (was, now) in pairs.items() for line in _differing_keys(was, now, inner)]
    if MISSING not in (a, b) and json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True):  # a NaN equals itself
        return []
    was, now = ("nothing" if value is MISSING else reprlib.repr(value) for value in (a, b))
    return [f"state.json: {name}: {was} | {now}"]


def _differing_files(a: Path, b: Path) -> list[str]:
    """Lines for the files beside state.json and the shards: the model's config, its tokenizer."""
    of_a, of_b = _files_beside(a), _files_beside(b)
    lines = [f"only in A: {name}" for name in of_a if name not in of_b]
    lines += [f"only in B: {name}" for name in of_b if name not in of_a]
    return lines + [f"{n}: differs" for n in of_a if n in of_b and sha256_of(of_a[n]) != sha256_of(of_b[n])]


def _files_beside(checkpoint: Path) -> dict[str, Path]:
    others = [f for f in files_of(checkpoint) if f not in shards_of(checkpoint)]
    names = {str(file.relative_to(checkpoint)): file for file in others}
    return {name: file for name, file in names.items() if name not in ("state.json", "manifest.json")}
