"""Which process of a run this is, known before there is a process group."""

import ctypes
import os
import signal
import sys
import time

PARENT = "SSLM_PARENT_PID"
"""Environment variable of a child that our launcher starts."""
STARTED_AT = time.monotonic()
"""When this process began, which --stop_after counts from."""


def is_first_process() -> bool:
    """Whether this is global rank 0."""
    if under_torchrun():
        return os.environ["RANK"] == "0"
    if under_srun():
        return os.environ["SLURM_PROCID"] == "0"
    return not is_child() and os.environ.get("NODE_RANK", "0") == "0"


def is_child() -> bool:
    """Whether Lightning's launcher started this process, as one of the local ranks of another."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and not under_torchrun() and not under_srun()


def tells_exit_code() -> bool:
    """Whether what started this process goes by its exit code; torchrun and srun go by the first rank's.

    Where sslm starts the processes of several nodes itself, somebody started one on each, and waits for each.
    """
    return is_first_process() if under_torchrun() or under_srun() else not is_child()


def may_meet_former_self() -> bool:
    """Whether SLURM or Kubernetes may have started this job anew while its first process still runs on a lost node."""
    return bool(os.environ.get("SLURM_RESTART_COUNT") or os.environ.get("KUBERNETES_SERVICE_HOST"))


def is_first_of_node(local_rank: int) -> bool:
    """Whether this is the first of its node's processes: all of srun's tasks may have local rank 0 (see `Slurm`)."""
    return (os.environ["SLURM_LOCALID"] == "0") if under_srun() else local_rank == 0


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def under_srun() -> bool:
    """Whether srun started this task; a shell, of a batch script too, has SLURM's variables but is no task of many."""
    is_interactive = os.environ.get("SLURM_JOB_NAME") in (None, "bash", "interactive")  # so salloc names its jobs
    return "SLURM_STEP_ID" in os.environ and (not is_interactive or os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1")


def die_with_parent() -> None:
    """Let the kernel end this child when its parent ends, however that ends (Linux); if it has ended already, now."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
        os._exit(1)
