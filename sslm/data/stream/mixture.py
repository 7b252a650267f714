"""Mixtures, as a pure function: which source stands at which position, and which of its examples that is.

With whole weights w_i of sum D, every D positions from a stage's start hold exactly w_i examples of source i. After any
number of positions each source is less than one example away from its share (a fair schedule, earliest deadline first:
Baruah et al. 1996, "Proportionate Progress").
"""

import bisect
import functools
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslm.config import SourceConfig
from sslm.system.errors import UserError

Weight = int | float | str
"""A number, or size^EXPONENT for a power of the source's number of tokens."""

MOST_PARTS = 1 << 16
"""Largest sum of weights; finer weights are rounded to so many parts."""


def source_names(sources: Sequence[SourceConfig]) -> list[str]:
    """Name each source: as the user does, else by its path's last part up to a dot; refuse equal names."""
    if len(sources) == 1:
        return [sources[0].name or ""]
    names = [source.name or Path(str(source.path)).name.split(".")[0] for source in sources]
    if twice := [name for name in names if names.count(name) > 1]:
        other = f"{{path: …, name: {twice[0]}-2}}"
        raise UserError(f"--data.sources: two sources are called {twice[0]}; give each a name of its own: {other}")
    return names


def parse_weights(weights: Sequence[Weight], sizes: Sequence[int]) -> tuple[int, ...]:
    """Turn weights as they were typed, one of each source, into whole numbers; `sizes` are the sources' tokens.

    Raises:
        UserError: a weight is negative or unreadable, all are 0, or numbers stand beside powers of the size.

    >>> parse_weights(["size^0.5", "size^0.5"], [900, 100])
    (3, 1)
    """
    powers = [isinstance(weight, str) and weight.startswith("size") for weight in weights]
    if any(powers) and not all(power or weight == 0 for power, weight in zip(powers, weights, strict=True)):
        mixed = f"weights {', '.join(map(str, weights))} mix numbers and powers of the size"
        raise UserError(f"--data.sources: {mixed}, which can't be compared; give all of one kind")
    parsed = [_parse_weight(weight, size) for weight, size in zip(weights, sizes, strict=True)]
    if not any(parsed):
        raise UserError("--data.sources: all weights are 0; give at least one source more")
    return whole_weights(parsed)


def _parse_weight(weight: Weight, size: int) -> Fraction:
    expected = "expected a number of 0 or more, or size^EXPONENT such as size^0.7"
    wrong = UserError(f"--data.sources: weight {weight}: {expected}")
    try:
        if isinstance(weight, str) and weight.startswith("size"):
            base, _, exponent = weight.partition("^")
            parsed = Fraction(size ** float((exponent or "1") if base == "size" else "?"))
        else:
            parsed = Fraction(str(weight))
    except (ValueError, OverflowError, ZeroDivisionError):
        raise wrong from None
    if parsed < 0:
        raise wrong
    return parsed


def whole_weights(weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Find the smallest whole numbers in the same proportions, or the nearest in MOST_PARTS parts, none rounded to 0.

    >>> whole_weights([Fraction("0.7"), Fraction("0.3"), Fraction(0)])
    (7, 3, 0)
    """
    total = sum(weights)
    shares = [weight / total for weight in weights]
    parts = math.lcm(*(share.denominator for share in shares))
    if parts <= MOST_PARTS:
        return tuple(int(share * parts) for share in shares)
    rounded = [max(round(share * MOST_PARTS), 1) if share else 0 for share in shares]
    divisor = math.gcd(*rounded)
    return tuple(part // divisor for part in rounded)


@dataclass(frozen=True)
class Stage:
    """Weights that hold from a position on."""

    position: int
    weights: tuple[int, ...]


@dataclass(frozen=True)
class Mixture:
    """Which source stands at each position."""

    stages: tuple[Stage, ...]
    """In order; the first begins at position 0."""

    def at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find the examples at [n] positions: (source, example's number among that source's), each [n]."""
        if len(self.stages[0].weights) == 1:
            return np.zeros_like(positions), positions
        sources, numbers = np.empty_like(positions), np.empty_like(positions)
        stages = np.searchsorted([stage.position for stage in self.stages], positions, side="right") - 1
        for number in np.unique(stages):
            here = stages == number
            stage = self.stages[number]
            order, ranks = _round(stage.weights)
            rounds, places = np.divmod(positions[here] - stage.position, len(order))
            source = order[places]
            before = np.array(self.examples_before(stage.position))
            sources[here] = source
            numbers[here] = before[source] + rounds * np.array(stage.weights)[source] + ranks[places]
        return sources, numbers

    def examples_before(self, position: int) -> list[int]:
        """Count each source's examples before a position."""
        last = max(bisect.bisect_left([stage.position for stage in self.stages], position) - 1, 0)
        total = np.zeros(len(self.stages[0].weights), np.int64)
        for number, stage in enumerate(self.stages[: last + 1]):
            end = position if number == last else self.stages[number + 1].position
            order, _ = _round(stage.weights)
            rounds, rest = divmod(end - stage.position, len(order))
            total += rounds * np.array(stage.weights) + np.bincount(order[:rest], minlength=len(total))
        return [int(count) for count in total]


@functools.lru_cache(maxsize=64)
def _round(weights: tuple[int, ...]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lay out a round of D = sum(weights) positions: (source, which of its examples in this round), each [D].

    Example j of source i may stand at places ⌊j·D/w_i⌋ … ⌈(j+1)·D/w_i⌉ − 1; each place goes to the example with the
    earliest last place.
    """
    total = sum(weights)
    to_come = [(0, i, 0) for i, weight in enumerate(weights) if weight]
    waiting: list[tuple[int, int, int]] = []
    round_: list[tuple[int, int]] = []
    for place in range(total):
        while to_come and to_come[0][0] <= place:
            _, i, j = heapq.heappop(to_come)
            heapq.heappush(waiting, (-(-(j + 1) * total // weights[i]), i, j))
        _, i, j = heapq.heappop(waiting)
        round_.append((i, j))
        if j + 1 < weights[i]:
            heapq.heappush(to_come, ((j + 1) * total // weights[i], i, j + 1))
    sources, ranks = np.array(round_, np.int64).T
    return np.ascontiguousarray(sources), np.ascontiguousarray(ranks)
