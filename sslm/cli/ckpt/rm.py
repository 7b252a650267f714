"""sslm ckpt rm: remove checkpoints of a run. Each loses its name before its files."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sslm.cli.ckpt import ls
from sslm.runs.checkpoints.folder import damage_of, latest_in, name_of, newest_first
from sslm.runs.checkpoints.transaction import remove_checkpoint
from sslm.runs.folder import RunFolder
from sslm.system.errors import UserError, nearest, printable
from sslm.system.files import write_atomically
from sslm.system.terminal import bytes_in_words, plural, say

MOST_DIGITS = 18


def rm(given: str, steps: Sequence[str], keep_last: int | None, force: bool) -> None:
    """Remove checkpoints by step or name, or all but the `keep_last` newest.

    Raises:
        UserError: there is none of that name, it is the newest good one and not `force`, or the run is training.
    """
    run = RunFolder(Path(given))
    if not run.checkpoints.is_dir():
        raise UserError(f"{given}: not a run folder with checkpoints; give the folder that config.yaml is in")
    with _not_training(run):
        there = {entry.path.name: entry for entry in ls.listed(run.checkpoints)}
        checkpoints = newest_first(run.checkpoints)
        names = [path.name for path in checkpoints[keep_last:]] if keep_last else _names(steps, there)
        kept = [path for path in checkpoints if path.name not in names]
        good = next((path for path in checkpoints if not damage_of(path)), None)
        if good is not None and good not in kept and not force:
            loss = (
                f"without it the run {'loses work' if kept else 'begins anew'}; give --force to remove it all the same"
            )
            raise UserError(f"{good.name} is the newest good checkpoint of {given}: {loss}")
        _keep_latest_true(run.checkpoints, kept, good)
        for name in names:
            if name.startswith("."):  # left over: it never had a name, or has lost it
                shutil.rmtree(there[name].path)
            else:
                remove_checkpoint(there[name].path)
            say(f"{printable(name)} removed ({bytes_in_words(there[name].num_bytes)})")
    if not names:
        say(f"nothing to remove: there {'is' if len(there) == 1 else 'are'} {plural(len(there), 'checkpoint')}")


@contextmanager
def _not_training(run: RunFolder) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(run.locked())
        except UserError:
            raise UserError(f"{run.path}: this run is training; remove its checkpoints when it has ended") from None
        yield


def _names(steps: Sequence[str], there: dict[str, ls.Entry]) -> list[str]:
    """Steps or names -> names, each once."""
    names = [name_of(int(s)) if s.isdecimal() and len(s) <= MOST_DIGITS else s for s in steps]
    for step, name in zip(steps, names, strict=True):
        if name not in there:
            known = ", ".join(map(printable, there)) or "none"
            raise UserError(f"there is no checkpoint {printable(step)}{nearest(name, there)}; there are: {known}")
    return list(dict.fromkeys(names))


def _keep_latest_true(folder: Path, kept: list[Path], good: Path | None) -> None:
    """Let `latest` name one that stays, the newest good one if any does; nothing is removed yet."""
    if latest_in(folder) in [path.name for path in kept]:
        return
    best = good if good in kept else next((path for path in kept if not damage_of(path)), None)
    if best is not None:
        write_atomically(folder / "latest", best.name + "\n")
    else:
        (folder / "latest").unlink(missing_ok=True)
