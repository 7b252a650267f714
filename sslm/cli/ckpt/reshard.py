"""sslm ckpt reshard: the same tensors in another number of files, with one block of rows in memory at a time."""

import os
import shutil
import tempfile
from pathlib import Path

from sslm.cli.ckpt.verify import bytes_of, verify
from sslm.runs.checkpoints.folder import read_manifest, read_state, shards_of
from sslm.runs.checkpoints.shards import Slab, Stored, index, write
from sslm.runs.checkpoints.transaction import write_manifest
from sslm.system.errors import UserError
from sslm.system.files import fsync
from sslm.system.terminal import transfer_progress


def reshard(checkpoint: Path, num_shards: int, out: Path) -> None:
    """Write the folder `out`: a checkpoint of its own, whole or not there.

    Raises:
        UserError: the checkpoint is damaged, or holds too little for so many files.
    """
    with transfer_progress("Verifying", bytes_of(checkpoint)) as done:
        verdict = verify(checkpoint, done)
    read_state(checkpoint)  # refused here, if it is of a newer format
    if verdict.damage:
        raise UserError(f"{checkpoint}: this checkpoint is damaged ({verdict.damage[0]}); take another of its run")
    shards = divided(index(checkpoint), num_shards)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    part.chmod(0o755)
    try:
        for name in read_manifest(checkpoint).keys() - {file.name for file in shards_of(checkpoint)}:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint / name, part / name)
        (part / "model").mkdir(exist_ok=True)
        total = sum((slab.end - slab.begin) * slab.of.row_bytes for slabs in shards for slab in slabs)
        with transfer_progress("Writing", total) as done:
            for number, slabs in enumerate(shards):
                for num_bytes in write(part / f"shard-{number:05d}.safetensors", slabs):
                    done(num_bytes)
        write_manifest(part, {})
        os.rename(part, out)
        fsync(out.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def divided(tensors: dict[str, Stored], num_shards: int) -> list[list[Slab]]:
    """Lay all rows one after the other, and cut that line into shares of equal size, at the nearest row.

    Each share has one piece of a tensor at most, as a safetensors file must. A UserError if a share would be empty.
    """
    total = sum(tensor.num_bytes for tensor in tensors.values())
    why = f"the rows of its {len(tensors)} tensors don't fill so many files; give fewer"
    too_many = UserError(f"--shards {num_shards}: {why}")
    if num_shards > sum(tensor.num_rows for tensor in tensors.values()):
        raise too_many
    shards: list[list[Slab]] = [[] for _ in range(num_shards)]
    at = 0
    for tensor in tensors.values():
        first = min(at * num_shards // max(total, 1), num_shards - 1)
        last = min((at + tensor.num_bytes) * num_shards // max(total, 1), num_shards - 1)
        begin = 0
        for shard in range(first, last + 1):
            end = tensor.num_rows
            if shard < last:
                end = min(max(round((total * (shard + 1) / num_shards - at) / tensor.row_bytes), begin), end)
            if end > begin or not tensor.num_bytes:
                shards[shard].append(Slab(tensor, begin, end))
            begin = end
        at += tensor.num_bytes
    if not all(shards):
        raise too_many
    return shards
