"""The host's memory that tensors are copied into, to be written from there while training goes on."""

import weakref
from itertools import accumulate

import torch
from torch import Tensor

from sslm.runs.checkpoints.tensors import Piece
from sslm.system.errors import UserError
from sslm.system.terminal import bytes_in_words

ALIGNMENT = 64
"""Bytes; more than any number has."""


class Buffer:
    """Room for copies of some pieces, in one block that is used again each time.

    If they lie on a GPU the block is pinned, so that they are copied at the link's full speed. Torch's own pinned
    memory comes in powers of two, which would be up to twice as much: this block is as large as the pieces.
    """

    def __init__(self, pieces: list[Piece]) -> None:
        starts = [0, *accumulate(-(-piece.values.nbytes // ALIGNMENT) * ALIGNMENT for piece in pieces)]
        self.block = torch.empty(starts.pop(), dtype=torch.uint8)
        if any(piece.values.is_cuda for piece in pieces):
            pin(self.block)
        self.rooms = {piece.place: self._room(start, piece) for start, piece in zip(starts, pieces, strict=True)}

    def _room(self, start: int, piece: Piece) -> Tensor:
        values = piece.values
        return self.block[start : start + values.nbytes].view(values.dtype).view(values.shape)

    def holds(self, pieces: list[Piece]) -> bool:
        """Whether it was made for pieces like these."""
        kinds = {piece.place: (piece.values.shape, piece.values.dtype) for piece in pieces}
        return kinds == {place: (room.shape, room.dtype) for place, room in self.rooms.items()}

    def copied(self, pieces: list[Piece]) -> list[Piece]:
        """Copy pieces, and return them as they lie here."""
        for piece in pieces:
            self.rooms[piece.place].copy_(piece.values, non_blocking=True)
        if any(piece.values.is_cuda for piece in pieces):
            torch.cuda.current_stream().synchronize()
        return [piece._replace(values=self.rooms[piece.place]) for piece in pieces]


def pin(block: Tensor) -> None:
    """Pin a tensor's memory until the tensor is gone.

    Raises:
        UserError: the system can't pin so much.
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if not block.numel():
        return
    if error := int(runtime.cudaHostRegister(block.data_ptr(), block.nbytes, 0)):
        raise UserError(
            f"{bytes_in_words(block.nbytes)} of the host's memory could not be pinned to copy a checkpoint into (CUDA "
            f"error {error}): free some, or give --checkpoint.sync true, which copies nothing"
        )
    weakref.finalize(block, runtime.cudaHostUnregister, block.data_ptr()).atexit = False
