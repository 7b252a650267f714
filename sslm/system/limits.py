"""The system's limits on a process, raised as far as they may be."""

import resource

from sslm.system.errors import UserError


def allow_open_files(needed: int) -> None:
    """Raise the number of files that this process and its children may have open to what the system allows.

    Raises:
        UserError: that is fewer than `needed`. Ranks and loader processes that find no room for a pipe or a socket may
            wait for each other for ever.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"only {hard} files may be open at once, this run may need {needed}: raise the limit (ulimit -n 4096, or "
            f"your container's), or lower --devices and --data.num_workers"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
