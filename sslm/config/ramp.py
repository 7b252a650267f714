"""A number that grows during a run: `32, 64 from 1e9 tokens` is 32, and 64 as soon as a step begins at 1e9 tokens.

Points of a run are told in tokens, as papers do: unlike steps, they stay where they are if batches are others.
"""

import bisect
import itertools
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from operator import attrgetter
from typing import NamedTuple

from sslm.system.errors import UserError, short

NUMBER = r"(\d{1,18}(?:\.\d{1,18})?(?:[eE]\+?\d{1,2})?)"


class Stage(NamedTuple):
    """A number, and the tokens of the run from which on it holds."""

    from_tokens: int
    number: int


@dataclass(frozen=True)
class Ramp:
    """A number that may grow during a run."""

    stages: tuple[Stage, ...]
    """In order; the first holds from 0 tokens on."""

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(stage.number for stage in self.stages)

    @property
    def largest(self) -> int:
        return self.stages[-1].number

    @property
    def common_divisor(self) -> int:
        """Largest number that divides all of them."""
        return math.gcd(*self.numbers)

    def at(self, tokens: int) -> int:
        """Return the number that holds after so many tokens of the run."""
        return self.stages[bisect.bisect_right(self.stages, tokens, key=attrgetter("from_tokens")) - 1].number

    @property
    def setting(self) -> int | str:
        """The number itself if it never changes, else all as text, as config.yaml has them."""
        (_, first), *later = self.stages
        return ", ".join([str(first), *(f"{n} from {tokens} tokens" for tokens, n in later)]) if later else first


def parse_ramp(name: str, value: int | str) -> Ramp:
    """Parse the value of a setting that may grow.

    Raises:
        UserError: it says something else, or does not grow.

    >>> parse_ramp("batch_size", "32, 64 from 1e6 tokens").setting
    '32, 64 from 1000000 tokens'
    """
    if isinstance(value, int):
        return Ramp((Stage(0, value),))
    first, *later = value.split(",")
    parts = [_parse_stage(part) for part in (f"{first} from 0 tokens", *later)]
    stages = tuple(stage for stage in parts if stage is not None and stage.number > 0)
    grows = all(min(b.from_tokens - a.from_tokens, b.number - a.number) > 0 for a, b in itertools.pairwise(stages))
    if len(stages) < len(parts) or not grows:
        several = "several, each larger and later than the one before, such as '32, 64 from 1e9 tokens'"
        raise UserError(f"--{name} {short(value)}: expected a whole number above 0, or {several}")
    return Ramp(stages)


def parse_lengths(value: int | str) -> Ramp:
    """Parse --seq_len, whose shorter sequences are pieces of the longest.

    Raises:
        UserError: it says something else, or one does not divide the longest.
    """
    ramp = parse_ramp("seq_len", value)
    for number in ramp.numbers:
        if number > 0 and ramp.largest % number:
            divisors = [n for n in range(1, number + 1) if ramp.largest % n == 0]
            wrong = f"windows of {ramp.largest} tokens can't be cut into sequences of {number}"
            raise UserError(f"--seq_len {ramp.setting}: {wrong}; give a divisor such as {divisors[-1]}")
    return ramp


def _parse_stage(text: str) -> Stage | None:
    found = re.fullmatch(f"{NUMBER} from {NUMBER} tokens", " ".join(text.split()), re.ASCII)
    number, tokens = (Fraction(part) for part in found.groups()) if found else (Fraction(), Fraction(1, 2))
    return Stage(int(tokens), int(number)) if number.denominator == tokens.denominator == 1 else None
