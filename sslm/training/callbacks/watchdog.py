"""A run that no longer makes progress leaves behind where each rank stood, names the one that stopped first, and ends.

One thread of each rank writes its heartbeat, and ends a stalled run; another watches the first, which may hang in the
run's file system. After a stall each rank writes the stacks of all its threads, the lowest rank that is alive reports,
and all end with exit code 1.

A GPU's collectives run after the host has asked for them: ranks that wait for another stand at the first place where
the host reads something, as any rank may. So each notes how far it is within a step, and the one that has not come as
far as the others is it.

The threads count their looks: a pause is never a stall. faulthandler.dump_traceback_later counts by the clock, and
ended one in three processes that had been paused for longer than its limit.
"""

import faulthandler
import os
import shutil
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from sslm.runs.folder import RunFolder
from sslm.system import heartbeats
from sslm.system.exits import FAILED
from sslm.system.heartbeats import Heartbeat, Patience, this_process
from sslm.system.output import print_error

FIRST_STEPS, TIMES_AS_LONG = 2, 10
"""The first steps of a process, in which things are compiled and caches filled, may take so many times as long."""


class Watchdog(Callback):
    """Ends the run after `seconds` in which no rank made progress, and leaves behind where each stood."""

    def __init__(self, run_dir: Path, seconds: float) -> None:
        self.run, self.seconds = RunFolder(run_dir), seconds
        self.folder = self.run.stacks
        self.interval = min(max(seconds / 8, 0.2), 10.0)
        """Seconds between heartbeats."""
        self.rank, self.world, self.local_rank, self.start = 0, 1, 0, ""
        self.looks, self.has_stacks = 0, False
        self.patience = Patience(2 * self.interval)
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._opened: int | None = None
        """The folder, open while the threads run: by this docker/healthcheck.py finds it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.rank, self.world, self.local_rank = trainer.global_rank, trainer.world_size, trainer.local_rank
        if self.rank == 0:
            self._make_room()
        self.start = trainer.strategy.broadcast(os.urandom(8).hex())
        self._remove_files()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        this_process.rounds, self.patience = 0, Patience(2 * self.interval)
        this_process.begin(trainer.global_step + 1, "beginning")
        self._ended.clear()
        with suppress(OSError):  # the disk may be full
            self.folder.mkdir(exist_ok=True)
            self._opened = os.open(self.folder, os.O_RDONLY)
        watches = (self._watch, self._watch_the_watch)
        self._threads = [threading.Thread(target=watch, daemon=True, name=watch.__name__) for watch in watches]
        for thread in self._threads:
            thread.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        this_process.turn("taking the step")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        this_process.begin(trainer.global_step + 1, "loading the batch")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        this_process.turn("validating")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        this_process.turn("validating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        this_process.turn("ending the step")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        if not self._threads:
            return
        self._ended.set()
        for thread in self._threads:
            thread.join(timeout=60)  # its file system may hang
        self._threads = []
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None
        self._remove_files()
        with suppress(OSError):  # the last rank to come here finds it empty
            self.folder.rmdir()

    def _make_room(self) -> None:
        """Keep aside what the last stall left; all else of former starts goes."""
        if (self.folder / "stalled").exists():
            shutil.rmtree(self.run.former_stacks, ignore_errors=True)
            with suppress(OSError):
                os.replace(self.folder, self.run.former_stacks)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_files(self) -> None:
        for file in (heartbeats.heartbeat_file(self.folder, self.rank), heartbeats.stacks_file(self.folder, self.rank)):
            with suppress(OSError):
                file.unlink()

    # -------------------------------------------------------------------------------------------- what the threads do

    @property
    def limit(self) -> float:
        """Seconds."""
        return self.seconds * (TIMES_AS_LONG if this_process.rounds <= FIRST_STEPS else 1)

    def _watch(self) -> None:
        while True:
            self._write_heartbeat()
            now, beats = time.monotonic(), this_process.beats
            if self._is_stalled_elsewhere() or self.patience.is_over(now, beats, self.limit, self._others):
                try:
                    self._leave_word()
                finally:
                    os._exit(FAILED)
            if self._ended.wait(self.interval):
                return

    def _watch_the_watch(self) -> None:
        patience = Patience(2 * self.interval)
        while not self._ended.wait(self.interval):
            if patience.is_over(time.monotonic(), this_process.beats + self.looks, self.limit, dict):
                faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
                where = f"in step {this_process.step}, {this_process.what}, and {self.folder} can't be written"
                print_error(f"rank {self.rank}: no progress for {self.limit:g} s {where}; its stacks stand above")
                os._exit(FAILED)

    def _write_heartbeat(self) -> None:
        self.looks += 1
        process = (self.start, self.rank, socket.gethostname(), os.getpid())
        here = (round(self.patience.idle, 1), *heartbeats.place(), self.looks, self.has_stacks)
        fields: tuple[Any, ...] = (*process, *astuple(this_process), *here)
        mine = Heartbeat(*fields)
        with suppress(OSError):  # the disk may be full
            self.folder.mkdir(exist_ok=True)
            heartbeats.write(self.folder, mine)

    def _others(self) -> dict[int, int]:
        found = heartbeats.read(self.folder, range(self.world), self.start)
        return {rank: heartbeat.beats for rank, heartbeat in found.items() if rank != self.rank}

    def _is_stalled_elsewhere(self) -> bool:
        """Whether another rank has ended its patience."""
        try:
            return (self.folder / "stalled").read_text() == self.start
        except OSError:
            return False

    # -------------------------------------------------------------------------------------------- a stall

    def _leave_word(self) -> None:
        """Write the stacks, report if no lower rank does, and end a parent that can't end itself."""
        self._write_stacks()
        self._go_on(2 * self.interval + 3)  # for the others' stacks
        lower = heartbeats.read(self.folder, range(self.rank), self.start).values()
        tells = not any(heartbeat.has_stacks for heartbeat in lower)
        ranks = range(self.world) if tells else [self.rank - self.local_rank]
        before = heartbeats.read(self.folder, ranks, self.start)
        self._go_on(self.interval + 1 if tells else 2 * self.interval + 5)  # whoever tells must not be ended meanwhile
        after = heartbeats.read(self.folder, ranks, self.start)
        silent = heartbeats.silent(before, after)
        if tells:
            sentence = heartbeats.stall_message(after, silent, self.world, self.limit, self.folder)
            print_error(sentence)
            with suppress(OSError):
                self.run.write_status("failed", exit_code=FAILED, step=this_process.step - 1, reason=sentence)
        for rank in silent:  # the parent of this process may be paused: its children, as a scheduler, wait for it
            if (after[rank].pid, after[rank].host) == (os.getppid(), socket.gethostname()):
                os.kill(after[rank].pid, signal.SIGKILL)

    def _write_stacks(self) -> None:
        try:
            self.folder.mkdir(exist_ok=True)
            with open(heartbeats.stacks_file(self.folder, self.rank), "w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            self.has_stacks = True
            self._write_heartbeat()
            (self.folder / "stalled").write_text(self.start)
        except OSError:
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)

    def _go_on(self, seconds: float) -> None:
        """Wait, with a heart that beats."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(self.interval, max(end - time.monotonic(), 0)))
            self._write_heartbeat()
