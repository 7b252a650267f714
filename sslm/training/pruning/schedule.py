"""When how much is pruned: a pure function of the step, so that nothing of it is saved."""

from typing import NamedTuple

from sslm.config.prune import PruneConfig
from sslm.models.compression.pruning.recipe import WITHIN, Pruning
from sslm.system.errors import UserError

STAGES = 100
"""Times that more is pruned, at most: each looks at all of the weights."""
JUMP = 0.02
"""If more than this share goes at once, losses before are no measure of those after."""


class Schedule(NamedTuple):
    """Pruning from one step to another, fast first (Zhu & Gupta 2017, arXiv:1710.01878)."""

    pruning: Pruning
    begin: int
    """Optimizer steps that are done before it begins."""
    end: int
    """Optimizer steps that are done when all is pruned."""

    def sparsity(self, done: int) -> float:
        """Share that is pruned once so many steps are done.

        >>> schedule = Schedule(Pruning(0.8), begin=100, end=300)
        >>> [round(schedule.sparsity(done), 4) for done in (100, 150, 200, 300, 999)]
        [0.0, 0.4625, 0.7, 0.8, 0.8]
        """
        share = min(max((done - self.begin) / (self.end - self.begin), 0.0), 1.0)
        return self.pruning.sparsity * (1 - (1 - share) ** 3)

    def is_stage(self, done: int) -> bool:
        """Whether more is pruned when so many steps are done.

        >>> [done for done in range(12) if Schedule(Pruning(0.5), begin=2, end=6).is_stage(done)]
        [3, 4, 5, 6]
        """
        return self._stage(done) > self._stage(done - 1)

    def jumps(self, done: int) -> bool:
        """Whether so much is pruned when so many steps are done that the loss may be another."""
        if not self.is_stage(done):
            return False
        length, before = self.end - self.begin, self._stage(done) - 1
        had = self.sparsity(self.begin + before * length // min(STAGES, length))
        is_fine = self.pruning.pattern in ("unstructured", "neurons")
        return not is_fine or self.sparsity(done) - had > JUMP

    def _stage(self, done: int) -> int:
        """Stages that are over when so many steps are done."""
        length = self.end - self.begin
        return min(max(done - self.begin, 0), length) * min(STAGES, length) // length


def schedule_of(asked: PruneConfig, total_steps: int) -> Schedule | None:
    """Make the schedule of a run of so many steps, or return None if nothing is to be pruned.

    Raises:
        UserError: settings don't go together.
    """
    sparsity = asked.sparsity
    if sparsity is None and WITHIN.fullmatch(asked.pattern):
        sparsity = 0.5
    if sparsity is None:
        default = PruneConfig()
        names = ("method", "pattern", "begin", "end")
        if other := next((name for name in names if getattr(asked, name) != getattr(default, name)), None):
            raise UserError(f"--prune.{other} {getattr(asked, other)}: prunes nothing; give --prune.sparsity 0.5, too")
        return None
    end = max(round(0.8 * total_steps), asked.begin + 1) if asked.end is None else asked.end
    if asked.begin >= end:
        raise UserError(f"--prune.begin {asked.begin}: is not before --prune.end {end}; give a smaller one")
    if end > total_steps:
        which = f"--prune.end {end}" if asked.end is not None else f"--prune.begin {asked.begin}"
        raise UserError(f"{which}: the run ends at step {total_steps}, before all is pruned; give a smaller one")
    return Schedule(Pruning(sparsity, asked.method, asked.pattern), asked.begin, end)
