"""Compare the replicas of weights, which are equal to the last bit unless a bit flipped in some device's memory.

Looked at with each checkpoint, before it is written: none is of weights that have drifted apart.
"""

import torch
from torch import Tensor

from sslm.runs.checkpoints.tensors import Piece
from sslm.system.collectives import Group, gather_json
from sslm.system.errors import RunFailed

CHUNK_NUMEL = 1 << 24
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_replicas(pieces: list[Piece], holders: dict[str, list[int]], group: Group) -> None:
    """Compare the pieces that several ranks hold, by place. All ranks call it together.

    Raises:
        RunFailed: which ranks differ, and where.
    """
    shared = [piece for piece in pieces if len(holders[piece.place]) > 1]
    if group is None:
        return
    device = shared[0].values.device if shared else "cpu"
    sums = [checksum(piece.values).to(device, non_blocking=True) for piece in shared]
    mine = dict(zip((piece.place for piece in shared), torch.stack(sums).tolist() if sums else [], strict=True))
    together: dict[str, int] = {}
    for place, value in mine.items():  # one number for all that the same ranks hold
        key = str(holders[place])
        together[key] = (1_000_003 * together.get(key, 0) + value) % (1 << 63)
    if agree(gather_json(together, group)):
        return
    everyones = gather_json(mine, group)
    place = min(place for place in holders if not agree([{place: r[place]} for r in everyones if place in r]))
    values = {rank: everyones[rank][place] for rank in holders[place]}
    common = max(values.values(), key=list(values.values()).count)
    odd = [rank for rank, value in values.items() if value != common]
    name, which = place.split(" ")[0], f"rank{'s' * (len(odd) > 1)} {', '.join(map(str, odd))}"
    where = f"{name} differs on {which} of {', '.join(map(str, holders[place]))}"
    raise RunFailed(
        f"replicas have drifted apart: {where} (a bit that flipped in a device's memory, as a rule). No checkpoint was "
        "written of this; run the same command to resume from the last one, and examine that device if it happens again"
    )


def agree(ranks: list[dict[str, int]]) -> bool:
    """Whether ranks have equal values for the keys that they share."""
    said: dict[str, int] = {}
    return all(said.setdefault(key, value) == value for rank in ranks for key, value in rank.items())


def checksum(values: Tensor) -> Tensor:
    """Sum a tensor's bits, each with an odd weight of its own, mod 2^64: any flipped bit changes it. Nothing waits."""
    bits = values.contiguous().flatten().view(_BITS[values.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    for start in range(0, len(bits), CHUNK_NUMEL):
        chunk = bits[start : start + CHUNK_NUMEL].to(torch.int64)
        total += (chunk * (2 * torch.arange(start, start + len(chunk), device=values.device) + 1)).sum()
    return total
