"""Whether each process that trains in this container still writes its heartbeat; where none trains, all is well.

Two looks are compared with each other, not with a clock. A process that trains has the folder of its heartbeats open.
"""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

BETWEEN_LOOKS_SECONDS = 30.0
"""Three times the longest time between two heartbeats."""


def looks() -> dict[str, int]:
    """How often each process has written its heartbeat, by its number and folder."""
    found = {}
    for opened in Path("/proc").glob("[1-9]*/fd/*"):
        with suppress(OSError, ValueError, KeyError):  # it has ended, or is another user's
            folder = Path(os.readlink(opened))
            if folder.name == "stacks":
                pid = int(opened.parts[2])
                found[f"process {pid}, {folder}"] = written_by(pid, folder)
    return found


def written_by(pid: int, folder: Path) -> int:
    """How often a process has written its heartbeat; another container's may have the same number."""
    hearts = [json.loads(file.read_text()) for file in folder.glob("heartbeat-*.json")]
    [heart] = [heart for heart in hearts if (heart["pid"], heart["host"]) == (pid, os.uname().nodename)]
    return int(heart["looks"])


def main() -> int:
    before = looks()
    time.sleep(BETWEEN_LOOKS_SECONDS)
    after = looks()
    stopped = [who for who, times in before.items() if after.get(who) == times]
    print(f"no heartbeat in {BETWEEN_LOOKS_SECONDS:g} s: {'; '.join(stopped)}" if stopped else "well")
    return 1 if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
