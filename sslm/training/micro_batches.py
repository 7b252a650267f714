"""A device's share of a step, cut into what goes through the model at a time."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from sslm.data.stream.batches import StepBatch
from sslm.system.errors import UserError


class MicroBatch(NamedTuple):
    """Consecutive examples of this device's share that go through the model together."""

    tensors: dict[str, Tensor]
    sources: Tensor
    """[rows] number of each row's source."""
    position: int
    """Of its first example."""
    is_last: bool


def check_batch(batch: StepBatch) -> None:
    """Refuse a loader's batch that no data module has made into a step's.

    Raises:
        UserError: the trainer was given loaders alone.
    """
    if "scored" not in batch:
        raise UserError("this batch is not a step's: give the trainer datamodule=DataModule(…), not its loaders")


def micro_batches(batch: StepBatch, size: int | None) -> Iterator[MicroBatch]:
    """A share's micro-batches of `size` rows in order of position; the whole share if that is None."""
    rows = len(batch["sources"])
    size = size or rows
    for start in range(0, rows, size):
        here, end = slice(start, start + size), start + size
        tensors = {name: tensor[here] for name, tensor in batch["tensors"].items()}
        yield MicroBatch(tensors, batch["sources"][here], batch["first_position"] + start, end >= rows)
