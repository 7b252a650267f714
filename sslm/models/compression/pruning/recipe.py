"""What is to be pruned: how much of it, judged by what, in which pattern."""

import re
from dataclasses import dataclass
from typing import get_args

from sslm.config.prune import UNITS, Method, Pattern
from sslm.system.errors import UserError, nearest, short

WITHIN = re.compile(r"(\d):(\d)")


@dataclass(frozen=True)
class Pruning:
    """How a model is pruned.

    Args:
        sparsity: share of the weights of the blocks' linear layers, of the heads, neurons or layers, that goes.
        method: what tells which matter least: their magnitude; magnitude times the norm of their inputs (Wanda, Sun et
            al. 2023, arXiv:2306.11695); or movement, that training moves them towards zero (Sanh et al. 2020,
            arXiv:2005.07683), which only training can tell.
        pattern: which go together: each alone; 2 of each 4 (or 4 of each 8) that one output reads; a head of attention,
            a neuron of the feed-forward network, or a whole layer.

    Raises:
        UserError: a value is out of its range.
    """

    sparsity: float
    method: Method = "magnitude"
    pattern: Pattern = "unstructured"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("method", self.method, get_args(Method)),
            ("pattern", self.pattern, get_args(Pattern)),
        ):
            if value not in known:
                raise UserError(f"prune.{name} {short(value)}: expected {', '.join(known)}{nearest(value, known)}")
        if not 0 < self.sparsity < 1:
            raise UserError(f"prune.sparsity {self.sparsity}: expected a share above 0 and below 1, such as 0.5")
        if self.within is not None and self.sparsity != 0.5:
            what = f"prune.pattern {self.pattern} is a sparsity of 0.5"
            raise UserError(f"prune.sparsity {self.sparsity}: {what}; give that, or another pattern")

    @property
    def within(self) -> int | None:
        """Number of neighbours of which half go (4 of 2:4); None if the pattern is another."""
        found = WITHIN.fullmatch(self.pattern)
        return int(found[2]) if found else None

    @property
    def is_structured(self) -> bool:
        """Whether whole heads, neurons or layers go, so that matrices become smaller."""
        return self.pattern in UNITS
