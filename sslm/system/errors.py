"""What a user did wrong, in one sentence.

A `UserError` says what was given, what is allowed and what to type. It leaves the process with code 2 and no
traceback. A full disk is told the same way: it is nobody's bug.
"""

import difflib
import errno
from collections.abc import Iterable

PATH_ERRORS = {
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}
"""What a path typed by a user can be wrong with."""


NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory")


class UserError(ValueError):
    """The user's mistake; its text is one sentence for the user."""


class RunFailed(RuntimeError):
    """A run can't go on, which is not a mistake in what was typed; its text is one sentence for the user. Exit code 1."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """' (did you mean X?)' for the allowed name nearest to the given one, or nothing."""
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def sentence_of(error: BaseException) -> str | None:
    """The one sentence for the user, or None where the error is not the user's."""
    if isinstance(error, UserError):
        return str(error)
    no_room = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if no_room or f"(os error {errno.ENOSPC})" in str(error):  # the latter: safetensors and tokenizers, written in Rust
        where = f" while writing {file}" if (file := getattr(error, "filename", None)) else ""
        return (
            f"the disk is full{where}: free some room, or point --run_dir and --data.cache_dir elsewhere, and run again"
        )
    if is_out_of_memory(error):
        return (
            "out of memory: lower --micro_batch_size (auto finds what fits), add --activation_checkpointing full, or share the weights "
            "among more devices (--strategy fsdp); sslm plan with the same flags tells what needs how much"
        )
    if isinstance(error, OSError) and error.errno in PATH_ERRORS and error.filename:
        return f"{error.filename}: can't be read or written ({error.strerror}); check this path"
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Of the host or of a device."""
    is_one = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_one or any(words in str(error) for words in NO_MEMORY)
