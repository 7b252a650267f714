"""Clean a corpus: filter its blocks, find duplicates among all, write what is left, tell what was done.

Filtering is the work of any number of processes on any machines (`Part`); finding duplicates needs all. The corpus is
the same, byte for byte, however the work was shared and however often it was interrupted.
"""

import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sslm.data.cleaning.blocks import Block
from sslm.data.cleaning.filtering import Filtered, filter_block
from sslm.data.cleaning.finishing import write_corpus
from sslm.data.cleaning.inputs import Input
from sslm.data.cleaning.pool import each
from sslm.data.cleaning.settings import Settings
from sslm.data.cleaning.work import ALL, BlockName, Changed, Part, Work
from sslm.system.errors import UserError
from sslm.system.files import fsync, one_maker


@dataclass
class Progress:
    """What this process has done so far, and who is told."""

    filtered: Callable[[int, int], None] = lambda documents, num_bytes: None
    """Hears how many documents and bytes have been filtered."""
    stage: Callable[[str, float | None], None] = lambda words, share: None
    """Hears what is being done now, and which share of it has been."""
    documents: int = 0
    num_bytes: int = 0

    def add(self, done: Filtered) -> None:
        self.documents += done.documents
        self.num_bytes += done.num_bytes
        self.filtered(self.documents, self.num_bytes)


def clean(
    inputs: Sequence[Input], out: Path, settings: Settings, workers: int, progress: Progress, part: Part | None = None
) -> bool:
    """Clean documents into the folder `out`, which appears whole or not at all.

    Args:
        workers: number of processes.
        part: filter this share of the blocks alone; a call without it, later, does the rest.

    Returns:
        Whether `out` is there now.

    Raises:
        UserError: `out` exists, an input can't be read or has changed since this clean began.
        RunFailed: memory ran out.
    """
    name = out if part is None else out.with_name(f"{out.name}.part-{part.number}-of-{part.of}")
    work = Work(out.parent / f".{out.name}.tmp")
    if workers > 1 and getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError("a worker imports the script that called clean: call it under if __name__ == '__main__'")
    settings.try_steps()
    with one_maker(name):
        if out.exists():
            raise UserError(f"{out}: already exists; remove it, or choose another folder")
        work.begin(settings.identity(inputs))
        try:
            filter_blocks(work, inputs, settings, workers, progress, part or ALL)
            if part is not None:
                return False
            write_corpus(work, inputs, settings, workers, progress.stage, out.name)
        except Changed:
            raise
        except UserError:  # the same command would fail again, and what mends it makes another clean
            if part is None:
                shutil.rmtree(work.folder, ignore_errors=True)
            raise
        work.out.rename(out)
        fsync(out.parent)
    shutil.rmtree(work.folder, ignore_errors=True)
    return True


def filter_blocks(
    work: Work, inputs: Sequence[Input], settings: Settings, workers: int, progress: Progress, part: Part
) -> None:
    """Filter the blocks of a part that have not been filtered yet."""
    tasks = (
        (settings, work, name, inputs[name.input].name, block)
        for name, block in _to_filter(work, inputs, settings, part)
    )
    for done in each(filter_block, tasks, workers):
        progress.add(done)


def _to_filter(
    work: Work, inputs: Sequence[Input], settings: Settings, part: Part
) -> Iterator[tuple[BlockName, Block]]:
    for number, input in enumerate(inputs):
        if not part.reads(number, len(inputs)) or _is_filtered(work, number, part, len(inputs)):
            continue
        folder = work.folder / f"part-{part.number}-of-{part.of}"
        folder.mkdir(exist_ok=True)
        with input.opened(settings.reading, folder) as opened:
            work.check_input(number, opened)
            num_blocks = 0
            for block in opened.blocks:
                name = BlockName(number, num_blocks)
                num_blocks += 1
                if part.takes(name, len(inputs)) and not work.is_done(name):
                    yield name, block
            work.end_input(number, num_blocks)


def _is_filtered(work: Work, number: int, part: Part, inputs: int) -> bool:
    num_blocks = work.num_blocks(number)
    if num_blocks is None:
        return False
    names = (BlockName(number, block) for block in range(num_blocks))
    return all(work.is_done(name) for name in names if part.takes(name, inputs))
