"""Where processes come from: SLURM's tasks, and Lightning's own launcher with exit codes that reach the shell."""

import os
import subprocess
import threading
import time
from collections.abc import Callable
from signal import strsignal
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from sslm.system.exits import FAILED, STOPPED, USER_ERROR, leave
from sslm.system.output import print_error
from sslm.system.ranks import PARENT

GRACE_SECONDS = 5.0
"""Time for this process to end by itself after another failed: it may have met the same error, and say it better."""


class Slurm(SLURMEnvironment):
    """Ranks and rendezvous by SLURM; see docs/lessons.md, "A requeued SLURM job meets its former self".

    Args:
        own_gpus: whether each task sees GPUs of its own alone, so that the numbers of all tasks' devices are 0.
    """

    def __init__(self, own_gpus: bool = False) -> None:
        super().__init__(auto_requeue=False)
        self.own_gpus = own_gpus

    def local_rank(self) -> int:
        """The number of this task's device among those that it sees."""
        return 0 if self.own_gpus else super().local_rank()

    @staticmethod
    def _validate_srun_variables() -> None:
        """Accept any tasks that lie evenly on the nodes (`launch.devices`); Lightning wants --ntasks-per-node."""

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Accept the settings: they come from srun's variables, and Lightning compares them with the batch job's."""

    @property
    def main_port(self) -> int:
        job, restarts = (int(os.environ.get(name) or 0) for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"))
        os.environ.setdefault("MASTER_PORT", str(10_000 + (7 * job + restarts) % 20_000))
        return int(os.environ["MASTER_PORT"])


class Launcher(_SubprocessScriptLauncher):
    """Lightning's launcher, but if a child fails, this process ends with the child's exit code.

    See docs/lessons.md, "A failing child ends the run with 137".
    """

    when_failed: Callable[[int, str], None]
    """Called with the exit code and the reason before this process ends."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        os.environ[PARENT] = str(os.getpid())
        self._call_children_scripts()
        threading.Thread(target=self._watch, daemon=True, name="children's end").start()
        return function(*args, **kwargs)

    def _watch(self) -> None:
        while any(process.poll() is None for process in self.procs) and not self._failed():
            time.sleep(0.5)
        for process in self._failed():
            time.sleep(GRACE_SECONDS)
            code = process.returncode if process.returncode in (USER_ERROR, STOPPED) else FAILED
            reason = f"local rank {1 + self.procs.index(process)} {_ended(process.returncode)}"
            print_error(f"{reason}; any message of its own stands above")
            for other in self.procs:
                other.kill()
            self.when_failed(code, reason)
            leave(code)

    def _failed(self) -> list["subprocess.Popen[Any]"]:
        return [process for process in self.procs if process.returncode]


def _ended(code: int) -> str:
    return f"was ended by signal {-code} ({strsignal(-code)})" if code < 0 else f"ended with exit code {code}"


def watch_children(trainer: Trainer, when_failed: Callable[[int, str], None]) -> None:
    """Put our launcher in the place of Lightning's, if that is to start processes."""
    launcher: Any = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher) or launcher.cluster_environment.creates_processes_externally:
        return
    ours = Launcher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
    ours.when_failed = when_failed
    trainer.strategy._launcher = ours
