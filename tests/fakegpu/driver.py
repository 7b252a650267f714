"""The process in the fake GPUs' environment that forks the runs; it has imported everything once.

python -m tests.fakegpu.driver   # reads a job a line, answers with a line, both JSON
"""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.fakegpu import watch
from tests.support.processes import FORKS, train_forked

FORKS.set_forkserver_preload(["tests.fakegpu.preloaded"])


def perform(job: dict[str, Any]) -> dict[str, Any]:
    """Do one job, in forked processes.

    Args:
        job: arguments and log as for `train_forked`; world, timeout, env; verb, a function of `watch` with the names
            and values of its first arguments.
    """
    name, *values = job["verb"]
    began = time.monotonic()
    try:
        done = train_forked(
            job["arguments"],
            Path(job["log"]),
            job["world"],
            timeout=job["timeout"],
            env=job["env"],
            verb=partial(getattr(watch, name), *values),
        )
    except AssertionError as late:
        return {"code": None, "said": str(late), "seconds": time.monotonic() - began}
    return {"code": done.returncode, "said": done.stdout, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        print(json.dumps(perform(json.loads(line))), file=answers, flush=True)
