"""What all ranks know of a step before they take it, by the step's one small collective, on the CPU."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sslm.data.module import DataModule
from sslm.data.stream.amendments import Amendment
from sslm.data.stream.batches import StepBatch
from sslm.system.collectives import gather_json


class StepTotals(NamedTuple):
    """What the ranks' batches and requests come to."""

    scored: list[int]
    """Targets of the global batch, per source."""
    num_read: int
    """Places of the global batch's inputs that hold tokens."""
    digest: int
    """Of the global batch, modulo 2^64."""
    any_bad: bool
    """Whether a rank met a bad shard."""
    stop: bool
    """Whether a rank asked to end the run with this step."""
    save: bool
    """Whether a rank asked for a checkpoint after this step."""
    save_failed: bool
    """Whether a rank could not write the last checkpoint."""

    @property
    def all_scored(self) -> int:
        """At least 1: a batch without any target has loss 0."""
        return max(sum(self.scored), 1)


def agree(
    batch: StepBatch, stop: bool, save: bool, save_failed: bool, is_leader: bool, group: dist.ProcessGroup | None
) -> StepTotals:
    """Add up the ranks' batches and requests; all ranks call it together.

    Args:
        batch: this rank's share of the global batch.
        stop: whether this rank asks to end the run.
        save: whether this rank asks for a checkpoint.
        save_failed: whether this rank could not write the last checkpoint.
        is_leader: whether this rank speaks for its share; the ranks of a tensor-parallel group have one share together.
        group: all ranks, on the CPU (gloo), or None with one process.
    """
    counts, bad = int(is_leader), bool(batch.get("bad"))
    scored, digest = [counts * int(n) for n in batch["scored"]], counts * _as_int64(batch["digest"])
    totals: list[int] = [*scored, counts * batch["num_read"], digest, bad, stop, save, save_failed]
    if group is not None:
        everyone = torch.tensor(totals, dtype=torch.int64)
        dist.all_reduce(everyone, group=group)
        totals = everyone.tolist()
    *scored, num_read, digest, any_bad, stops, saves, failures = totals
    return StepTotals(scored, num_read, digest % (1 << 64), any_bad > 0, stops > 0, saves > 0, failures > 0)


def agree_on_bad_shards(
    bad: Sequence[str] | None, data: DataModule, step: int, group: dist.ProcessGroup | None, write: bool
) -> list[Amendment]:
    """Amend the stream from this step on, on all ranks alike.

    Args:
        bad: (source, file, reason) of the shard that this rank met, or None if it met none.
        write: whether this rank writes the amendments down; the others wait for it.
    """
    found = gather_json(bad, group)
    shards = {(source, file): reason for source, file, reason in filter(None, reversed(found))}
    amendments = data.amend(shards, step, write=write)
    if group is not None:
        dist.barrier(group=group)
    return amendments


def agree_on_outcome(loss: Tensor, grad_norm: Tensor, is_leader: bool) -> Tensor:
    """The global batch's mean loss and the first rank's gradient norm, [2] in fp64, on the device; the host goes on.

    All ranks call it together.

    Args:
        loss: this share's part of the mean.
        grad_norm: of the whole model.
        is_leader: as in `agree`.
    """
    nothing = torch.zeros_like(loss)
    are_several = dist.is_initialized() and dist.get_world_size() > 1
    is_first = not are_several or dist.get_rank() == 0
    both = torch.stack([loss if is_leader else nothing, grad_norm.to(loss) if is_first else nothing])
    if are_several:
        dist.all_reduce(both)
    return both


def _as_int64(word: int) -> int:
    """Reinterpret 64 unsigned bits as signed: sums wrap around alike."""
    return word - (1 << 64) if word >= 1 << 63 else word
