"""nanoGPT's files: a .bin of uint16 ids and nothing else."""

from pathlib import Path

import numpy as np

from sslm.data.foreign.files import InOnePiece, Options, TokenFile, after, first_bytes, in_one_piece, is_bin
from sslm.system.errors import UserError


def recognises(path: Path, options: Options) -> Path | None:
    return path if is_bin(path) else None


def open_tokens(path: Path, options: Options) -> TokenFile:
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"{path}: is empty; expected uint16 token ids")
    if size % 2:
        raise UserError(f"{path}: {size} bytes, an odd number; expected uint16 ids, so it is cut off or no such file")
    some = np.frombuffer(first_bytes(path, min(size, 1 << 16) & ~3), "<u2").reshape(-1, 2)
    if len(some) >= 64 and some[:, 1].max() <= 3 and some[:, 0].max() >= 256:
        raise UserError(
            f"{path}: its ids look like 32 or 64 bits each, but a bare .bin is read as uint16; save them as .npy"
        )
    return in_one_piece(path, InOnePiece(np.dtype("<u2"), 0, size // 2), after(options.end_id))
