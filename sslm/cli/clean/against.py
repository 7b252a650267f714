"""What `--decontaminate` names, gathered: texts, and the examples of tasks."""

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sslm.data.cleaning.blocks import Reading
from sslm.data.cleaning.contamination import Contamination
from sslm.data.cleaning.inputs import find_inputs
from sslm.data.corpus.files import format_of, is_text
from sslm.data.corpus.remote import is_remote
from sslm.data.corpus.utf8 import Utf8
from sslm.system.errors import UserError

FLAG = "--decontaminate"


@contextmanager
def gathered(options: argparse.Namespace) -> Iterator[Contamination | None]:
    """Gather the texts that must not stand in the corpus; None if there are none.

    Raises:
        UserError: there is no such text or task.
    """
    if not options.decontaminate:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="sslm-") as folder:
        reading = Reading(options.text_field, options.document_separator)
        named = ((name, _texts(name, reading, Path(folder))) for name in options.decontaminate)
        contamination = Contamination.of(named, Path(folder) / "runs.npz")
        if not contamination.num_runs:
            raise UserError(f"{FLAG} {options.decontaminate[0]}: there are no lines of five words or more in it")
        yield contamination


def _texts(name: str, reading: Reading, folder: Path) -> Iterable[str]:
    """Read the documents of a text, or the examples of a task."""
    if not _is_text(name):
        return _of_task(name)
    inputs, _ = find_inputs([name])
    return (
        document.text
        for one in inputs
        for block in one.blocks(reading, folder)
        for document in block.documents(one.name, reading, Utf8(one.name))
    )


def _is_text(name: str) -> bool:
    path = Path(name)
    holds_tasks = path.is_dir() and any(format_of(file) in (".yaml", ".yml") for file in path.iterdir())
    return is_remote(name) or is_text(path) or (path.is_dir() and not holds_tasks)


def _of_task(name: str) -> list[str]:
    from sslm.evaluation.tasks import Harness, read_tasks  # brings torch and lm-eval, if they are asked for

    specs = read_tasks([name], FLAG)
    harness = Harness(specs, None, None, FLAG)
    return [text for spec in specs for text in harness.texts(spec)]
