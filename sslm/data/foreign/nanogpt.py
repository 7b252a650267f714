"""nanoGPT's files of ids: uint16 and nothing else."""

from pathlib import Path

import numpy as np

from sslm.data.foreign.files import InOnePiece, TokenFile, after, first_bytes, in_one_piece
from sslm.system.errors import UserError


def open_nanogpt(path: Path, end_id: int | None) -> TokenFile:
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path}: is empty; expected uint16 token ids")
    if size % 2:
        raise UserError(
            f"{path}: {size} bytes, an odd number; expected uint16 token ids, so it is cut off or no such file"
        )
    some = np.frombuffer(first_bytes(path, min(size, 1 << 16) & ~3), "<u2").reshape(-1, 2)
    if len(some) >= 64 and some[:, 1].max() <= 3 and some[:, 0].max() >= 256:
        raise UserError(
            f"{path}: its ids look like 32 or 64 bits each, and a .bin without a header is read as uint16; "
            f"save them as .npy"
        )
    return in_one_piece(path, InOnePiece(np.dtype("<u2"), 0, size // 2), after(end_id))
