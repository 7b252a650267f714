"""Tensors in pieces, each with its place in the whole, as they lie in shards.

Files are safetensors in the layout of torch's HuggingFaceStorageWriter (the metadata key DCP_SHARDING_INFO has each
piece's offsets), so torch's reader, and with it any strategy and number of ranks, reads them. They are written here:
which rank writes what is settled once, and each streams its part to the disk without a second copy in memory.
"""

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import PreTrainedModel

from sslm.models.weights import tied_names
from sslm.runs.checkpoints.shards import index
from sslm.system.collectives import Group, gather_json
from sslm.system.errors import UserError

Tensors = dict[str, Any]
"""Name -> tensor, plain or DTensor."""


class Piece(NamedTuple):
    name: str
    offsets: tuple[int, ...]
    values: Tensor

    @property
    def place(self) -> str:
        """Name and offsets, which no other piece has."""
        return f"{self.name} {list(self.offsets)}"


def pieces_of(tensors: Tensors) -> list[Piece]:
    """Return this rank's part of each tensor."""
    pieces = []
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            local = tensor.to_local()
            _, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
            if local.numel():
                pieces.append(Piece(name, tuple(offsets), local.detach()))
        else:
            pieces.append(Piece(name, (0,) * tensor.ndim, tensor.detach()))
    return pieces


def holders_of(pieces: list[Piece], group: Group) -> tuple[dict[str, list[int]], set[str]]:
    """Return which ranks hold each piece, and the places of those that this rank writes. All ranks call it together.

    Each is written by that of its holders which has the fewest bytes so far.
    """
    mine = {piece.place: piece.values.numel() * piece.values.element_size() for piece in pieces}
    holders: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for rank, theirs in enumerate(gather_json(mine, group)):
        for place, size in theirs.items():
            holders.setdefault(place, []).append(rank)
            sizes[place] = size
    load = dict.fromkeys(range(1 if group is None else dist.get_world_size(group)), 0)
    writer = {}
    for place, ranks in holders.items():
        writer[place] = min(ranks, key=load.__getitem__)
        load[writer[place]] += sizes[place]
    me = 0 if group is None else dist.get_rank(group)
    return holders, {place for place, rank in writer.items() if rank == me}


def write_shard(file: Path, pieces: list[Piece]) -> None:
    """Write pieces, at most one of each tensor."""
    places = {piece.name: {"saved_offsets": list(piece.offsets)} for piece in pieces}
    metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(places)}
    save_file({piece.name: piece.values.contiguous() for piece in pieces}, file, metadata)


def read_tensors(checkpoint: Path, tensors: Tensors) -> None:
    """Read a checkpoint's tensors in place, each rank for itself.

    Raises:
        UserError: it lacks one, or has another shape.
    """
    try:
        with warnings.catch_warnings():  # that each reads by itself is on purpose
            warnings.filterwarnings("ignore", ".*torch.distributed is disabled, unavailable or uninitialized.*")
            dcp_load(tensors, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=True)
    except CheckpointException as error:
        why = " ".join(str(next(iter(error.failures.values()))[0]).split())[:200]
        raise UserError(f"{checkpoint}: does not hold this model's weights ({why})") from error


def read_weights(checkpoint: Path, shapes: dict[str, Tensor], prefix: str = "model.model.") -> dict[str, Tensor]:
    """Read a checkpoint's weights as whole tensors, without a process group.

    Args:
        shapes: the model's state dict (on the meta device will do); tied names are left out by the caller.
        prefix: what their names begin with in the checkpoint.
    """
    tensors = {f"{prefix}{name}": torch.empty(t.shape, dtype=t.dtype) for name, t in shapes.items()}
    read_tensors(checkpoint, tensors)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def check_weights(checkpoint: Path, model: PreTrainedModel) -> None:
    """Refuse a checkpoint of another model: only names and shapes are compared, so it may be on the meta device.

    Raises:
        UserError: weights that one has and the other lacks, or whose shapes differ.
    """
    prefix = "model.model."
    has = {n.removeprefix(prefix): t.shape for n, t in index(checkpoint).items() if n.startswith(prefix)}
    needs = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied_names(model)}
    if different := sorted(name for name in has.keys() | needs.keys() if has.get(name) != needs.get(name)):
        which = f"{len(different)} differ, {different[0]} first"
        instead = "give the --model flags it was made with, or another --run_dir"
        raise UserError(f"{checkpoint}: holds another model's weights ({which}); {instead}")
