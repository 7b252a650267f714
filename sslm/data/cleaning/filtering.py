"""A block's way through the steps: what is read, edited, dropped, and signed for the search of duplicates."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslm.data.cleaning.blocks import Block
from sslm.data.cleaning.consistency import Consistency
from sslm.data.cleaning.document import Document
from sslm.data.cleaning.duplicates import signatures
from sslm.data.cleaning.files import ENDING, write_documents
from sslm.data.cleaning.settings import Settings
from sslm.data.cleaning.steps import Step
from sslm.data.cleaning.tally import PASSED, READ, Tally
from sslm.data.cleaning.work import BlockName, Work, written_whole
from sslm.data.corpus.utf8 import Utf8
from sslm.system.files import write_atomically


class Filtered(NamedTuple):
    """What became of a block."""

    documents: int
    num_bytes: int


def run(documents: list[Document], steps: Sequence[Step], tally: Tally) -> list[Document]:
    """Let documents go through the steps, and return those that are left."""
    for step in steps:
        documents = step(documents, tally)
    return documents


def filter_block(settings: Settings, work: Work, name: BlockName, file: str, block: Block) -> Filtered:
    """Filter a block, and write what is left of it, its signatures, and last its tally."""
    utf8, tally, num_bytes = Utf8(file), Tally.with_tokens(settings.tokenizer), block.num_bytes
    documents = list(block.documents(file, settings.reading, utf8))
    num_documents = len(documents)
    for document in documents:
        tally.add_text(READ, document.text)
    tally.count("utf-8", "bytes", utf8.total or num_bytes)
    tally.count("utf-8", "not UTF-8", utf8.invalid)
    documents = run(documents, _steps(settings, work.began), tally)
    for document in documents:
        tally.add_text(PASSED, document.text)
    written_whole(work.path(name, ENDING), lambda file: write_documents(file, documents))
    if settings.duplicates.methods:
        signed = signatures([document.text for document in documents], settings.duplicates)
        written_whole(work.path(name, ".npz"), functools.partial(_save, signed))
    write_atomically(work.path(name, ".json"), json.dumps(tally.written()) + "\n")
    return Filtered(num_documents, num_bytes)


@functools.cache
def _steps(settings: Settings, began: float) -> tuple[Step, ...]:
    """Make the steps once in each process: some load a model."""
    return (Consistency(began), *settings.steps())


def _save(arrays: Mapping[str, NDArray[Any]], file: Path) -> None:
    with open(file, "wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
