"""A device's share of a step, cut into what goes through the model at a time, without needless padding."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sslm.data.stream.batches import StepBatch
from sslm.system.errors import UserError

WIDTHS = 8
"""Micro-batches that are cut have a multiple of so many columns: tensor cores like that, and shapes are fewer."""


class MicroBatch(NamedTuple):
    """Consecutive examples of this device's share that go through the model together."""

    tensors: dict[str, Tensor]
    sources: Tensor
    """[rows] number of each row's source."""
    position: int
    """Of its first row."""
    is_last: bool


def check_batch(batch: StepBatch) -> None:
    """Refuse a loader's batch that no data module has made into a step's.

    Raises:
        UserError: the trainer was given loaders alone.
    """
    if "scored" not in batch:
        raise UserError("this batch is not a step's: give the trainer datamodule=DataModule(…), not its loaders")


def micro_batches(batch: StepBatch, size: int | None, keeps_shape: bool = False) -> Iterator[MicroBatch]:
    """A share's micro-batches in order of position.

    Args:
        batch: the share.
        size: examples of each, of which short sequences are several rows; None for the whole share.
        keeps_shape: whether all are as wide as the share, also where the rows' ends are padding; else they are cut to
            their longest row, whose length the host knows.
    """
    rows = len(batch["sources"])
    size = size * batch.get("pieces", 1) if size else rows
    for start in range(0, rows, size):
        here, end = slice(start, start + size), start + size
        tensors = {name: tensor[here] for name, tensor in batch["tensors"].items()}
        if not keeps_shape:
            for name, lengths in batch.get("lengths", {}).items():
                longest = max(*lengths[here], 1)  # rows that only fill a batch up have no targets
                tensors[name] = tensors[name][:, : -(-longest // WIDTHS) * WIDTHS]
        if "documents" in batch:
            tensors["document_offsets"] = _offsets(batch["documents"][here], tensors["input_ids"], keeps_shape)
        yield MicroBatch(tensors, batch["sources"][here], batch["first_position"] + start, end >= rows)


def _offsets(starts: list[list[int]], ids: Tensor, keeps_shape: bool) -> Tensor:
    """[documents + 1] where documents begin in joined rows, on their device; the host knows, and waits for nothing."""
    width = ids.shape[1]
    joined = [row * width + start for row, some in enumerate(starts) for start in some if start < width]
    made = torch.tensor([*joined, len(starts) * width], dtype=torch.int32, device="cpu", pin_memory=ids.is_cuda)
    offsets = made.to(ids.device, non_blocking=True)
    if keeps_shape:  # but for this tensor, which compiled code takes at any length
        torch._dynamo.mark_dynamic(offsets, 0)
    return offsets
