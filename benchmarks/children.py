"""Starting measurements: fresh processes under a time limit, their memory watched, their imports timed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from measure import FIRST_BATCH

MEASURE = Path(__file__).parent / "measure.py"
TIMEOUT_SECONDS = 600
POLL_SECONDS = 0.05
IMPORT_LINE = re.compile(r"^import time:\s+(\d+) \|", re.MULTILINE)


def measure(task: dict[str, Any], *, watch_memory: bool = False, time_imports: bool = False) -> dict[str, Any]:
    """Run one task in a process of its own; its answer, with `peak_bytes` or `import_seconds` where asked."""
    with tempfile.TemporaryDirectory() as folder:
        process, stderr = _start(task | {"rank": 0, "world": 1}, Path(folder), {}, time_imports)
        peak = _wait([process], watch_memory)
        answer = _answer(process, Path(folder), stderr)
        if watch_memory:
            answer["peak_bytes"] = peak
        if time_imports:
            until_first = stderr.read_text(errors="replace").partition(f"\n{FIRST_BATCH}\n")[0]
            answer["import_seconds"] = sum(map(int, IMPORT_LINE.findall(until_first))) / 1e6
        return answer


def measure_ranks(task: dict[str, Any], world: int) -> list[dict[str, Any]]:
    """Run one task on each of `world` ranks, as torchrun would start them."""
    if world == 1:
        return [measure(task)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(world):
            own = Path(folder) / str(rank)
            own.mkdir()
            ranks = dict.fromkeys(("RANK", "GLOBAL_RANK", "LOCAL_RANK"), rank)
            started.append((own, *_start(task | {"rank": rank, "world": world}, own, env | ranks)))
        _wait([process for _, process, _ in started])
        return [_answer(process, own, stderr) for own, process, stderr in started]


def _start(
    task: dict[str, Any], folder: Path, env: dict[str, Any], time_imports: bool = False
) -> tuple["subprocess.Popen[bytes]", Path]:
    options = ["-X", "importtime"] if time_imports else []
    task |= {"answer": str(folder / "answer.json"), "started": time.monotonic()}
    with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
        process = subprocess.Popen(
            [sys.executable, *options, str(MEASURE), json.dumps(task)],
            stdout=out,
            stderr=err,
            stdin=subprocess.DEVNULL,
            env=os.environ | {key: str(value) for key, value in env.items()},
            start_new_session=True,
        )
    return process, folder / "stderr"


def _wait(processes: list["subprocess.Popen[bytes]"], watch_memory: bool = False) -> int:
    """Until all have ended or the time is up; the largest resident memory of all of them, children included."""
    end, peak = time.monotonic() + TIMEOUT_SECONDS, 0
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            if watch_memory:
                peak = max(peak, sum(_resident(process.pid) for process in processes))
                time.sleep(POLL_SECONDS)
            else:
                with suppress(subprocess.TimeoutExpired):
                    processes[0 if processes[0].poll() is None else -1].wait(min(end - time.monotonic(), 1.0))
    finally:
        for process in processes:
            with suppress(ProcessLookupError):  # whatever is left of its group, also where it has ended itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return peak


def _answer(process: "subprocess.Popen[bytes]", folder: Path, stderr: Path) -> dict[str, Any]:
    file = folder / "answer.json"
    if file.exists():
        answer: dict[str, Any] = json.loads(file.read_text())
    else:
        answer = {
            "error": f"no answer in {TIMEOUT_SECONDS} s"
            if process.returncode == -9
            else f"exit code {process.returncode}"
        }
    if "error" in answer:
        answer["stderr"] = stderr.read_text(errors="replace")[-2000:]
    return answer


def _resident(pid: int) -> int:
    """Resident bytes of a process and all below it; pages they share count for each."""
    total = 0
    with suppress(OSError, ValueError, IndexError):
        total = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):
                total += sum(_resident(int(child)) for child in children.read_text().split())
    return total
