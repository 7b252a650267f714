"""How a process ends: its exit code, and one sentence instead of a traceback if the error is the user's."""

import faulthandler
import functools
import os
import sys
import time
import traceback
from contextlib import suppress
from typing import NoReturn

from sslm.system.errors import RunFailed, sentence_of
from sslm.system.output import print_error, protect_output
from sslm.system.ranks import is_first_process
from sslm.system.signals import Stopped, Verb

DONE, FAILED, USER_ERROR, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130
"""Exit codes. 75 (EX_TEMPFAIL): stopped on request with everything saved; the same command goes on."""
PARENT_SECONDS = 3.0
"""Ranks but the first wait so long before they say their error: mostly the first meets the same one, says it, and
whoever started the ranks ends them."""


def exits_politely(verb: Verb) -> Verb:
    """Wrap a verb's `main`: the user's errors become one sentence on stderr, and signals and errors exit codes.

    What becomes of its output changes neither what it does nor its exit code.
    """

    @functools.wraps(verb)
    def wrapped(arguments: list[str] | None = None) -> int:
        protect_output()
        if not faulthandler.is_enabled():  # a file that is cut off while it is mapped: a word before the end
            with suppress(OSError, ValueError):
                faulthandler.enable(sys.__stderr__ or 2)
        try:
            return verb(arguments)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except Stopped as stop:
            print(f"stopped by {stop}, with nothing lost; run the same command again to resume", file=sys.stderr)
            return _ended(STOPPED)
        except Exception as error:
            sentence = str(error) if isinstance(error, RunFailed) else sentence_of(error)
            if sentence is None and not in_process_group():
                raise
            if sentence is None:
                traceback.print_exc()
                return _ended(FAILED)
            if not is_first_process():
                time.sleep(PARENT_SECONDS)
            print_error(sentence)
            return _ended(FAILED if isinstance(error, RunFailed) else USER_ERROR)

    return wrapped


def in_process_group() -> bool:
    """Whether this process is a rank among others by now."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.distributed.is_available() and torch.distributed.is_initialized())


def _ended(code: int) -> int:
    """Return the exit code, or end a rank here: its threads, which wait for other ranks, would keep or abort it."""
    if in_process_group():
        leave(code)
    return code


def leave(code: int = DONE) -> NoReturn:
    """End this process at once.

    Ranks whose code nobody waits for (`ranks.tells_exit_code`) leave a stopped run with 0; see docs/lessons.md, 'srun
    reports the highest exit code'.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with suppress(OSError):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # a bar that had no time to close has hidden the cursor
    os._exit(code)
