"""Settings of pruning while training."""

from dataclasses import dataclass
from typing import Literal

from sslm.config.setting import NOT_NEGATIVE, POSITIVE, Range, Section, setting

Method = Literal["magnitude", "movement", "wanda"]
Pattern = Literal["unstructured", "2:4", "4:8", "heads", "neurons", "layers"]
UNITS = ("heads", "neurons", "layers")
"""Patterns in which matrices become smaller."""


@dataclass(frozen=True)
class PruneConfig(Section):
    """Pruning while a model is trained: more and more of its blocks' weights become 0, and stay so."""

    prefix = "prune"

    sparsity: float | None = setting(None, Range("a share above 0 and below 1", lambda number: 0 < number < 1))
    """Share of the blocks' weights, heads, neurons or layers that is 0 in the end (0.8); null: none is pruned."""
    method: Method = setting("magnitude")
    """What tells which go: magnitude; movement: training moved them towards 0 (Sanh et al. 2020, arXiv:2005.07683); or
    wanda: magnitude times the norm of what they read (Sun et al. 2023, arXiv:2306.11695)."""
    pattern: Pattern = setting("unstructured")
    """Which go together: unstructured, each alone; 2:4, 4:8, half of each 4 or 8 that an output reads (sparsity 0.5);
    heads, neurons, layers: as a whole, and the exported model's matrices are smaller."""
    begin: int = setting(0, NOT_NEGATIVE, may_change="if named")
    """Optimizer step after which pruning begins; it is fast first, and slower and slower (cubic; Zhu & Gupta 2017,
    arXiv:1710.01878)."""
    end: int | None = setting(None, POSITIVE, may_change="if named")
    """Optimizer step at which the sparsity is reached; default: when a fifth of the steps is left."""
