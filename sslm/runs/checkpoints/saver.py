"""Write checkpoints while training goes on: a step waits only for the copy to the host's memory."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sslm.runs.checkpoints.buffer import Buffer
from sslm.runs.checkpoints.folder import FORMAT, Manifest, Written, name_of
from sslm.runs.checkpoints.replicas import check_replicas
from sslm.runs.checkpoints.tensors import Piece, Tensors, holders_of, pieces_of, write_shard
from sslm.runs.checkpoints.transaction import part_of, remove_checkpoint, seal, sweep, written
from sslm.system.collectives import Group, gather_json
from sslm.system.errors import UserError, sentence_of
from sslm.system.files import fsync
from sslm.system.heartbeats import beat


class Saver:
    """Writes this rank's part of checkpoints. All ranks call its methods together.

    Args:
        folder: where checkpoints are kept.
        group: a group of all ranks that nothing else uses.
        training_group: of the same ranks, for what training waits for; its time limit holds there. None: `group`.
        when_written: called on rank 0 with each checkpoint, when it has its name: it returns those that may go.
    """

    def __init__(
        self, folder: Path, group: Group, when_written: Callable[[Path], Iterable[Path]], training_group: Group = None
    ) -> None:
        self.training_group = training_group or group
        self.folder, self.group, self.when_written = folder, group, when_written
        self.rank = 0 if group is None else dist.get_rank(group)
        self.longest_seconds: float | None = None
        """Longest time a checkpoint took, from the copy to the end, or None if none was saved yet."""
        self.newest: Path | None = None
        self._thread: threading.Thread | None = None
        self.failure: BaseException | None = None
        """What `wait` would raise, or None."""
        self._holders: dict[str, list[int]] | None = None
        self._mine: set[str] = set()
        self._buffer: Buffer | None = None
        if self.rank == 0:
            sweep(folder)

    def save(self, tensors: Tensors, state: dict[str, Any], files: dict[str, bytes], sync: bool = False) -> None:
        """Copy the tensors now, and write them from then on. Waits for the former checkpoint.

        Args:
            state: what state.json holds; `step` names the checkpoint.
            files: path in the checkpoint -> contents of what else lies in it; rank 0's are taken.
            sync: write them before this returns; nothing is copied then.

        Raises:
            OSError: the former one could not be written.
            RunFailed: replicas differ.
        """
        self.wait()
        began = time.monotonic()
        pieces = pieces_of(tensors)
        if self._holders is None:
            self._holders, self._mine = holders_of(pieces, self.training_group)
        check_replicas(pieces, self._holders, self.training_group)
        pieces = [piece for piece in pieces if piece.place in self._mine]
        if not sync:
            pieces = self._copied(pieces)
        work = (pieces, state, files, began)
        self._thread = threading.Thread(target=self._run, args=work, daemon=True, name="checkpoint")
        self._thread.start()
        if sync:
            self.wait()

    def wait(self, timeout: float | None = None) -> None:
        """Return when nothing is being written.

        Raises:
            OSError: what was written last could not be.
            TimeoutError: it takes longer than so many seconds.
        """
        if self._thread is not None:
            beat("waiting for a checkpoint to be written")
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise TimeoutError(f"the checkpoint is still being written after {timeout:g} s")
            self._thread = None
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    def _copied(self, pieces: list[Piece]) -> list[Piece]:
        """Copy pieces to the host's memory."""
        if self._buffer is None or not self._buffer.holds(pieces):
            self._buffer = None  # the former one goes first
            self._buffer = Buffer(pieces)
        return self._buffer.copied(pieces)

    def _run(self, pieces: list[Piece], state: dict[str, Any], files: dict[str, bytes], began: float) -> None:
        try:
            self._write(pieces, state, files)
            self.longest_seconds = max(self.longest_seconds or 0.0, time.monotonic() - began)
        except BaseException as failure:  # told where training notices
            self.failure = failure

    def _write(self, pieces: list[Piece], state: dict[str, Any], files: dict[str, bytes]) -> None:
        """Write each rank's shard, then on rank 0 the rest. No rank waits for one that failed."""
        final = self.folder / name_of(state["step"])
        part = part_of(final)
        known: Manifest = {}

        def write_mine() -> Manifest:
            part.mkdir(parents=True, exist_ok=True)
            file = part / f"shard-{self.rank:05d}.safetensors"
            write_shard(file, pieces)
            beat("saving")
            fsync(file)
            beat("saving")
            return {file.name: written(file)}

        def finish() -> None:
            for name, contents in files.items():
                file = part / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(contents)
            (part / "state.json").write_text(json.dumps({"format": FORMAT, **state}, indent=1) + "\n")
            seal(part, final, known)
            for old in self.when_written(final):
                remove_checkpoint(old)

        try:
            for theirs in self._together(write_mine):
                known |= {name: Written(*file) for name, file in theirs.items()}
            self._together(finish if self.rank == 0 else lambda: None)
        except BaseException:
            if self.rank == 0:
                shutil.rmtree(part, ignore_errors=True)
            raise
        self.newest = final

    def _together(self, act: Callable[[], Any]) -> list[Any]:
        """Act, and return what every rank's act returned. If one rank fails, all raise after all have acted."""
        value, failure = None, None
        try:
            value = act()
        except BaseException as error:
            failure = error
        said = None if failure is None else sentence_of(failure) or ""
        told = gather_json([said, value], self.group)
        if failure is not None:
            raise failure
        for rank, (why, _) in enumerate(told):
            if why:  # a full disk is told of alike by all
                raise UserError(why)
            if why is not None:
                raise RuntimeError(f"rank {rank} could not save the checkpoint; its own message says why")
        return [value for _, value in told]
