"""llm.c's and modded-nanogpt's files: a header of 256 int32 (magic, version, number of ids), then the ids."""

import struct
from pathlib import Path

import numpy as np

from sslm.data.foreign.files import InOnePiece, Options, TokenFile, after, check_size, first_bytes, in_one_piece, is_bin
from sslm.system.errors import UserError

LLM_C_VERSIONS = {20240520: (1, "<u2"), 20240801: (7, "<u4")}
"""Magic -> (version, type of the ids)."""
LLM_C_EVALUATION = 20240522


def recognises(path: Path, options: Options) -> Path | None:
    """Recognise a .bin whose header has a known magic, or a count that fits the file's size."""
    if not is_bin(path):
        return None
    head = first_bytes(path, 1024)
    magic, _, num_tokens = struct.unpack("<3i", head[:12]) if len(head) >= 12 else (0, 0, 0)
    is_known = magic in (*LLM_C_VERSIONS, LLM_C_EVALUATION)
    fits = num_tokens > 0 and path.stat().st_size in (1024 + 2 * num_tokens, 1024 + 4 * num_tokens)
    return path if is_known or fits else None


def open_tokens(path: Path, options: Options) -> TokenFile:
    """Open a shard. It raises UserError for other versions, evaluation examples and damage."""
    head = first_bytes(path, 1024)
    if len(head) < 1024:
        raise UserError(f"{path}: ends within its header of 1024 bytes; it is cut off, copy it again")
    magic, version, num_tokens = struct.unpack("<3i", head[:12])
    if magic not in LLM_C_VERSIONS:
        what = "llm.c's evaluation examples" if magic == LLM_C_EVALUATION else f"a file of magic {magic}"
        raise UserError(f"{path}: is {what}, no shard of ids; those have magic {' or '.join(map(str, LLM_C_VERSIONS))}")
    known, dtype = LLM_C_VERSIONS[magic]
    if version != known:
        raise UserError(f"{path}: is version {version} of magic {magic}; only version {known} is known")
    piece = InOnePiece(np.dtype(dtype), 1024, num_tokens)
    check_size(path, 1024 + num_tokens * piece.dtype.itemsize)
    return in_one_piece(path, piece, after(options.end_id))
