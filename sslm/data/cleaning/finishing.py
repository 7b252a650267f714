"""What needs all blocks: duplicates among all documents, and the corpus, in files of even size, in order."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sslm.data.cleaning.document import Document
from sslm.data.cleaning.duplicates import EXACT, NEAR, apply, decision_file, read_decision, resolve
from sslm.data.cleaning.duplicates import KEPT as KEPT_WHOLE
from sslm.data.cleaning.files import ENDING, read_documents, write_documents
from sslm.data.cleaning.inputs import Input
from sslm.data.cleaning.pool import each
from sslm.data.cleaning.record import record_of
from sslm.data.cleaning.report.contents import contents_of
from sslm.data.cleaning.report.markdown import markdown
from sslm.data.cleaning.report.page import page
from sslm.data.cleaning.sample import Sample, Sampled, describe
from sslm.data.cleaning.settings import Settings
from sslm.data.cleaning.tally import KEPT, PASSED, READ, Tally
from sslm.data.cleaning.work import BlockName, Work, written_whole
from sslm.data.corpus.cleaned import RECORD
from sslm.data.corpus.utf8 import Utf8
from sslm.system.errors import UserError
from sslm.system.files import sha256_of, write_atomically

FATES = {
    EXACT: "duplicates: the same document",
    NEAR: "duplicates: nearly the same document",
    KEPT_WHOLE: "duplicates: all lines or passages",
}

Stage = Callable[[str, float | None], None]
"""Takes what is being done, and which share of it has been."""


class Written(NamedTuple):
    """A file of the cleaned corpus."""

    number: int
    file: dict[str, Any]
    """As the record has it."""
    tally: Tally
    sample: list[Sampled]


def write_corpus(
    work: Work, inputs: Sequence[Input], settings: Settings, workers: int, stage: Stage, name: str
) -> None:
    """Make everything that becomes the cleaned corpus' folder, called `name`.

    Raises:
        UserError: nothing is left of the text, or an input is not UTF-8.
    """
    blocks = work.blocks(inputs)
    tally = _filtered(work, blocks, inputs)
    if settings.duplicates.methods:
        signed = [work.path(name, ".npz") for name in blocks]
        resolve(signed, settings.duplicates, work.folder / "merge", lambda share: stage("Finding duplicates", share))
        _count_clusters(signed, tally)
    groups = list(_groups(work, blocks, settings.file_bytes))
    tasks = [(work, settings, number, group) for number, group in enumerate(groups)]
    written: dict[int, Written] = {}
    for done in each(write_file, tasks, min(workers, len(tasks)) or 1):
        written[done.number] = done
        stage("Writing documents", len(written) / len(tasks))
    sample = Sample()
    for number in range(len(groups)):
        tally.add(written[number].tally)
        sample.join(written[number].sample)
    files = [one.file for one in written.values() if one.file["documents"]]
    if not files:
        if not tally.tables["documents"][READ]:
            raise UserError(f"{inputs[0].place}: there is no text in it")
        raise UserError("nothing is left of the text; sslm clean --dry_run with the same flags tells why")
    read = [{"file": one.name, "sha256": work.sha256_of_input(number)} for number, one in enumerate(inputs)]
    record = record_of(settings.written(), read, sorted(files, key=lambda one: str(one["file"])), tally)
    write_atomically(work.out / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    contents = contents_of(name, tally, sample.chosen(), settings.tokenizer)
    write_atomically(work.out / "report.html", page(contents))
    write_atomically(work.out / "report.md", markdown(contents))


def _filtered(work: Work, blocks: Sequence[BlockName], inputs: Sequence[Input]) -> Tally:
    """Add up what the blocks counted; UserError if an input is not UTF-8."""
    tally = Tally()
    for number, group in groupby(blocks, key=lambda name: name.input):
        of_input = Tally()
        for name in group:
            of_input.add(work.tally(name))
        utf8 = Utf8(inputs[number].name)
        utf8.total, utf8.invalid = (of_input.tables["utf-8"][what] for what in ("bytes", "not UTF-8"))
        utf8.check()
        tally.add(of_input)
    return tally


def _count_clusters(signed: Sequence[Path], tally: Tally) -> None:
    """Count the documents that stay in place of others, by the power of two of these others' number."""
    dropped = [np.empty(0, np.int64)]
    for block in signed:
        decision = read_decision(decision_file(block))
        dropped.append(decision["kept_as"][decision["fate"] != KEPT_WHOLE])
    _, counts = np.unique(np.concatenate(dropped), return_counts=True)
    powers, numbers = np.unique(np.log2(counts).astype(int), return_counts=True)
    for power, number in zip(powers.tolist(), numbers.tolist(), strict=True):
        tally.count("clusters", f"{power:02d}", number)


def _groups(work: Work, blocks: Sequence[BlockName], file_bytes: int) -> Iterator[list[BlockName]]:
    """Group consecutive blocks that fill a file."""
    group: list[BlockName] = []
    size = 0
    for name in blocks:
        group.append(name)
        size += work.tally(name).tables["bytes"][PASSED]
        if size >= file_bytes:
            yield group
            group, size = [], 0
    if group:
        yield group


def write_file(work: Work, settings: Settings, number: int, group: Sequence[BlockName]) -> Written:
    """Write what is left of some blocks into a file of the corpus, unless that has been done."""
    file = work.out / f"documents-{number:05d}{ENDING}"
    done = work.folder / "merge" / f"{file.name}.json"
    if done.is_file():
        read = json.loads(done.read_text())
        return Written(number, read["file"], Tally.read(read["tally"]), [Sampled(*one) for one in read["sample"]])
    tally, sample = Tally.with_tokens(settings.tokenizer), Sample()

    def left() -> Iterator[Document]:
        for name in group:
            for document in _left(work, settings, name, tally):
                tally.keep(document)
                describe(document, tally)
                sample.add(document)
                yield document

    written_whole(file, lambda part: write_documents(part, left()))
    about = {"file": file.name, "num_bytes": file.stat().st_size, "sha256": sha256_of(file)}
    about |= {"documents": tally.tables["documents"][KEPT], "text_bytes": tally.tables["bytes"][KEPT]}
    kept = {"file": about, "tally": tally.written(), "sample": sample.chosen()}
    write_atomically(done, json.dumps(kept) + "\n")
    if not about["documents"]:
        file.unlink()
    return Written(number, about, tally, sample.chosen())


def _left(work: Work, settings: Settings, name: BlockName, tally: Tally) -> Iterator[Document]:
    """Read a block's documents that are no duplicates, without the lines and spans that are."""
    documents = list(read_documents(work.path(name, ENDING)))
    if not settings.duplicates.methods:
        yield from documents
        return
    decision = read_decision(decision_file(work.path(name, ".npz")))
    texts = apply([document.text for document in documents], decision)
    for document, text, fate in zip(documents, texts, decision["fate"].tolist(), strict=True):
        if text is None:
            tally.drop(FATES[fate], document)
            continue
        if text != document.text:
            tally.count("changed", "duplicates: lines or spans")
            document.text = text
        yield document
