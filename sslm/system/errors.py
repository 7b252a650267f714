"""What a user did wrong, in one sentence.

A `UserError` says what was given, what is allowed and what to type. It leaves the process with code 2 and no
traceback. A full disk is told the same way: it is nobody's bug.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from errno import (
    EACCES,
    EDQUOT,
    EEXIST,
    EIO,
    EISDIR,
    EMFILE,
    ENAMETOOLONG,
    ENFILE,
    ENOENT,
    ENOSPC,
    ENOTDIR,
    EPERM,
    EROFS,
)

PATH_ERRORS = {EACCES, EEXIST, EISDIR, ENAMETOOLONG, ENOENT, ENOTDIR, EPERM, EROFS}
"""What can be wrong with a path that a user typed."""
NO_THREAD = ("can't start new thread", "unable to start thread", "pthread_create failed")
NO_MEMORY = re.compile(
    r"can't allocate memory|CUDA error: out of memory|CU(BLAS|DNN|SOLVER|SPARSE)_STATUS_ALLOC_FAILED"
    r"|Cuda failure (2 )?'out of memory'"
)
"""How torch's allocator on the host, CUDA, its libraries and NCCL say that memory is used up."""


class UserError(ValueError):
    """The user's mistake; its text is one sentence for the user."""


class RunFailed(RuntimeError):
    """A run can't go on, though nothing typed is wrong (exit code 1); its text is one sentence for the user."""


def nearest(given: str, allowed: Iterable[str], known_as: Mapping[str, str] | None = None) -> str:
    """Return ' (did you mean X?)' for the nearest allowed name, or '' if none is near.

    Args:
        known_as: names of other tools -> what is meant (`other_names`); they go by the last part of what was given,
            with dashes as underscores.
    """
    name = given.removeprefix("--")
    if meant := (known_as or {}).get(name.rpartition(".")[2].replace("-", "_")):
        return f" (did you mean {given.removesuffix(name)}{meant}?)"
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def without_secrets(text: str) -> str:
    """Remove user names, passwords and signed queries from the URLs in a text that is shown, kept or compared.

    >>> without_secrets("https://me:secret@host/a?X-Amz-Signature=f00d is away")
    'https://host/a is away'
    """
    text = re.sub(r"(?<=://)[^/\s'\"]*@", "", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*=[^\s'\"]*", r"\1", text)


JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner: Persian and Indian letters and emoji need them."""


def printable(text: str) -> str:
    """Escape what would steer the terminal, in text that somebody else made; joiners of letters stay."""
    return "".join(c if c.isprintable() or c in JOINERS else ascii(c)[1:-1] for c in text)


def short(value: object) -> str:
    """Write what was given so that a sentence can quote it: printable, at most 80 characters."""
    text = "null" if value is None else printable(str(value))
    return text if len(text) <= 80 else f"{text[:79]}…"


def one_line(error: BaseException, most: int | None = 200) -> str:
    """What an error says, on one line of at most `most` characters."""
    return " ".join(str(error).split())[:most]


def sentence_of(error: BaseException) -> str | None:
    """Return the one sentence for the user, or None if the error is a bug."""
    if isinstance(error, UserError):
        return str(error)
    no_room = isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT)
    if no_room or f"(os error {ENOSPC})" in str(error):  # the latter: safetensors and tokenizers, written in Rust
        where = f" while writing {file}" if (file := getattr(error, "filename", None)) else ""
        return f"the disk is full{where}: free some room, or write elsewhere, and run again"
    if isinstance(error, OSError) and error.errno in (EMFILE, ENFILE):
        return "too many open files: raise the limit (ulimit -n 4096, or your container's), and run again"
    if isinstance(error, BlockingIOError | RuntimeError) and any(words in str(error) for words in NO_THREAD):
        limits = "ulimit -u, the container's pids limit, or the job's memory"
        return (
            f"the system starts no more threads: raise the limit ({limits}), or lower --data.num_workers and --devices"
        )
    if isinstance(error, OSError) and error.errno == EIO:
        where = f"{error.filename}: " if error.filename else ""
        return (
            f"{where}the disk, or the server behind it, can't read or write ({error.strerror}); check it, and run again"
        )
    if is_out_of_memory(error):
        lower = "lower --micro_batch_size (auto finds what fits), add --activation_checkpointing full"
        share = "share the weights among more devices (--strategy fsdp)"
        return f"out of memory: {lower}, or {share}; sslm plan with the same flags tells what needs how much"
    if any(kind.__name__ == "BackendCompilerFailed" for kind in type(error).__mro__):
        kept = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
        again = f"; if it has worked before, remove what it keeps (rm -r {kept})" if kept else ""
        return f"torch's compiler failed ({one_line(error)}): give --compile off{again}"
    if isinstance(error, OSError) and error.errno in PATH_ERRORS and error.filename:
        return f"{error.filename}: can't be read or written ({error.strerror}); check this path"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the host or a device ran out of memory."""
    is_one = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_one or NO_MEMORY.search(str(error)) is not None
