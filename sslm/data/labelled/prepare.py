"""Labelled rows become corpora in the cache, once: what is in them follows from files, fields, task and tokenizer.

A table is read twice: for the names of its labels and to choose what is held out, then to tokenise. Nothing is kept of
it but a number or two a row.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslm.config import DataConfig
from sslm.data.corpus import tokenizer as tokenizers
from sslm.data.corpus.labelled import Labelled, Tally
from sslm.data.corpus.prepare import remembering_hash
from sslm.data.corpus.shards import Corpus, Split, cached_corpus, is_corpus
from sslm.data.corpus.tokenizer import Tokenizer, TokenizerChoice, TokenRules, TrainBPE
from sslm.data.corpus.tokenizer_training import train_bpe
from sslm.data.corpus.writer import CorpusWriter
from sslm.data.labelled.encoder import Encoder
from sslm.data.labelled.label_names import alike_names, check_names, in_order
from sslm.data.labelled.rows import TRUTHS, Rows, nothing_in, texts_of
from sslm.data.labelled.split import chosen, hash64
from sslm.data.labelled.tables import open_table
from sslm.data.labelled.task import Task, packed
from sslm.system.errors import UserError, short
from sslm.system.files import fsync, made_whole
from sslm.system.terminal import plural, preparation_progress, say

FORMAT = 2
"""Grows when other records are made of the same rows."""
EXAMPLES_AT_ONCE = 512
MANY_ROWS = 20
"""Of more rows than these, labels that most have for themselves are worth a word."""
MOST_REMARKS = 3
DEFAULT_TOKENIZER = TrainBPE(2048)
NUMBERED = 1 << 32
"""What a corpus of records holds are numbers below this, not ids of a vocabulary."""


class LabelledCorpora(NamedTuple):
    """The corpora of a run on labelled data."""

    train: list[Corpus]
    val: Corpus | None
    """A corpus of its own to validate on, or None if the others hold some rows out."""
    tokenizer: str
    """Folder or name of their tokenizer."""
    names: tuple[str, ...]
    """Names of the labels, by number."""
    val_rows: tuple[Rows, ...]
    """Tables in which the rows to validate on stand: that of `val`, or of each of `train`."""


def open_labelled(
    train: Sequence[str | None],
    val: str | None,
    task: Task,
    asked: TokenizerChoice | None,
    data: DataConfig,
    cache_dir: Path,
) -> LabelledCorpora:
    """Open the corpora of some labelled data, made first if need be. Any number of processes may call at once.

    Args:
        train: what to train on, in the forms of data.train.
        val: what to validate on, or None to hold rows of the others out.
        task: what is made of the rows.
        asked: the tokenizer, or None to train one.
        data: fields, and how texts are read.
        cache_dir: where corpora are kept.

    Raises:
        UserError: a field is not there, a row can't be read, there is nothing to learn or to validate on.
    """
    if data.packing != "concat":
        raise UserError(f"--data.packing {data.packing}: of labelled rows each is a sequence; leave the flag out")
    hash_file = remembering_hash(cache_dir)
    tables = [_rows(path, task, data, hash_file) for path in train]
    known = tokenizers.loaded(asked or DEFAULT_TOKENIZER)
    maker = _Maker(task, TokenRules(data.special_tokens, data.bos), cache_dir, tables)
    first = maker.open(tables[0], known, held_out="none" if val is not None else "some")
    assert first.labelled is not None
    known = tokenizers.load(first.tokenizer_folder)
    held_out: HeldOut = "some" if val is None else "none"
    corpora = [first, *(maker.open(rows, known, held_out, first.labelled.names) for rows in tables[1:])]
    val_corpus, val_rows = None, tables
    if val is not None:
        rows = _rows(val, task, data, hash_file, is_held_out=True)
        val_rows = [rows]
        val_corpus = maker.open(rows, known, "all", first.labelled.names)
    name = asked if isinstance(asked, str) and Path(asked).exists() else str(first.tokenizer_folder)
    return LabelledCorpora(corpora, val_corpus, name, first.labelled.names, tuple(val_rows))


def open_rows(
    path: str, task: Task, tokenizer: str, names: Sequence[str], data: DataConfig, cache_dir: Path
) -> tuple[Corpus, Rows]:
    """Open rows whose labels may be unknown, all held out, and the table that they stand in.

    Args:
        path: the rows, in the forms of data.val.
        task: what is made of them.
        tokenizer: folder or name of the model's tokenizer.
        names: names of the model's labels, by number.
        data: fields, and how texts are read.
        cache_dir: where corpora are kept.

    Raises:
        UserError: a field is not there, a row can't be read, or has a label that the model doesn't know.
    """
    columns = [column._replace(is_needed=column.role not in TRUTHS) for column in task.columns(data)]
    table = open_table(path, data, remembering_hash(cache_dir), is_held_out=True)
    rows = Rows(table, table.choose(columns), task, data, is_complete=True)
    maker = _Maker(task, TokenRules(data.special_tokens, data.bos), cache_dir, [rows])
    return maker.open(rows, tokenizers.load(tokenizer), "all", tuple(names)), rows


def _rows(
    path: str | None, task: Task, data: DataConfig, hash_file: Callable[[Path], str], is_held_out: bool = False
) -> Rows:
    if path is None:
        raise UserError(f"{task.name} learns from labelled rows: give a file of them, --data.train FILE.tsv")
    if is_corpus(path):
        raise UserError(f"{path}: is a prepared corpus; {task.name} learns from files of labelled rows")
    table = open_table(path, data, hash_file, is_held_out)
    return Rows(table, table.choose(task.columns(data)), task, data)


HeldOut = Literal["none", "some", "all"]
"""Which rows are held out: none, some, or all."""


@dataclass(frozen=True)
class _Survey:
    """What was found in the first reading of a table."""

    names: dict[str, int]
    """Label -> a number, in the order in which they were met."""
    strata: NDArray[np.int64]
    """[examples] each example's first label."""
    groups: NDArray[np.int64]
    """[examples] number of each example's group."""
    texts: NDArray[np.uint64]
    """[examples] hash of each example's texts."""


@dataclass(frozen=True)
class _Maker:
    """Makes the corpora of a run, whose labels are those of all that it trains on."""

    task: Task
    rules: TokenRules
    cache_dir: Path
    train: list[Rows]
    surveys: dict[int, _Survey] = field(default_factory=dict)
    """What was found already, by the rows' id."""

    def open(
        self, rows: Rows, tokenizer: TrainBPE | Tokenizer, held_out: HeldOut, names: tuple[str, ...] | None = None
    ) -> Corpus:
        """Open the corpus of a table, or make it; `names` are those of all labels, None to find them."""
        who = str(tokenizer) if isinstance(tokenizer, TrainBPE) else tokenizers.identity(tokenizer)
        records = [rows.record, *(known.record for known in self.train)]
        how = [FORMAT, records, self.task.identity(), held_out, who, self.rules, rows.data.label_separator]
        identity = hashlib.sha256(json.dumps([*how, names], sort_keys=True).encode()).hexdigest()
        folder = self.cache_dir / "corpora" / f"labelled-{identity[:20]}"

        def make() -> None:
            with made_whole(folder) as part:
                self._make(part, rows, tokenizer, held_out, self._names() if names is None else names)

        return cached_corpus(folder, make)

    def _survey(self, rows: Rows) -> _Survey:
        if (known := self.surveys.get(id(rows))) is not None:
            return known
        names: dict[str, int] = {}
        strata, groups, texts = [], [], []
        for example in rows.examples():
            numbers = [names.setdefault(name, len(names)) for name in example.labels if name]
            strata.append(numbers[0] if numbers else -1)
            groups.append(example.row if example.group is None else example.group)
            texts.append(hash64(*texts_of(example)))
        if not strata:
            raise UserError(nothing_in(rows))
        found = _Survey(names, np.array(strata, np.int64), np.array(groups, np.int64), np.array(texts, np.uint64))
        return self.surveys.setdefault(id(rows), found)

    def _names(self) -> tuple[str, ...]:
        """Names of all labels, in order: as datasets number them, or else numbers by size and words by the alphabet."""
        if not self.task.has_names:
            return ()
        found = in_order({name for rows in self.train for name in self._survey(rows).names}, self.task.first_names)
        if len(found) < self.task.least_names:
            only = f"every row has the label {short(found[0])!r}" if found else "no row has a label"
            where = f"{self.train[0].table.name}: {only}, so there is nothing to learn"
            raise UserError(f"{where}; choose another field with --data.label_field")
        given = [rows.class_names for rows in self.train]
        return tuple(found if given[0] is None or any(names != given[0] for names in given) else given[0])

    def _tell_of_copies(self, rows: Rows, texts: NDArray[np.uint64], is_val: NDArray[np.bool_]) -> None:
        """Warn of held-out texts that are trained on too: what is measured on these is memory."""
        trained = [texts[~is_val]] if not is_val.all() else [self._survey(train).texts for train in self.train]
        held_out = texts[is_val]
        if copies := int(np.isin(held_out, np.concatenate(trained)).sum()):
            of_all = f"{copies:,} of {plural(len(held_out), 'held-out row', exact=True)}"
            say(f"Warning: {rows.table.name}: the texts of {of_all} are trained on too")

    def _make(
        self, part: Path, rows: Rows, tokenizer: TrainBPE | Tokenizer, held_out: HeldOut, names: tuple[str, ...]
    ) -> None:
        survey = self._survey(rows)
        is_val = np.full(len(survey.groups), held_out == "all")
        if held_out == "some":
            is_val = chosen(survey.strata, survey.groups)
            if is_val.all() or not is_val.any():
                few = plural(len(is_val), "row")
                raise UserError(f"{rows.table.name}: {few} can't be parted to train and validate on; give --data.val")
        if not rows.is_complete:
            self._tell_of_copies(rows, survey.texts, is_val)
        name = str(tokenizer if isinstance(tokenizer, TrainBPE) else tokenizer.name_or_path)
        if isinstance(tokenizer, TrainBPE):
            texts = (text for example in rows.examples() for text in texts_of(example))
            tokenizer = train_bpe(((text, True) for text in texts), tokenizer.size)
        tokenizer.save_pretrained(part / "tokenizer")
        for path in (part / "tokenizer").iterdir():
            fsync(path)
        tokenizer = tokenizers.load(part / "tokenizer")  # what is used later is used now
        with CorpusWriter(part, NUMBERED) as writer:
            labelled = _write(writer, rows, Encoder(tokenizer, self.rules), is_val, names)
            if held_out != "all":
                check_varies(rows, labelled)
            writer.finish(name, tokenizers.identity(tokenizer), rows.table.record, labelled)
        _tell(rows, labelled)


def _write(
    writer: CorpusWriter, rows: Rows, encoder: Encoder, is_val: NDArray[np.bool_], names: tuple[str, ...]
) -> Labelled:
    """Tokenise all rows into records."""
    task, numbers = rows.task, {name: number for number, name in enumerate(names)}
    encoder.check_room(task.seq_len, is_pair="pair" in rows.columns)
    tallies: dict[Split, Tally] = {"train": Tally(), "val": Tally()}
    done = num_tokens = num_cut = 0
    with preparation_progress(f"Preparing {rows.table.name}") as report:
        stream = rows.examples()
        while examples := list(islice(stream, EXAMPLES_AT_ONCE)):
            check_names(examples, numbers)
            here = is_val[done : done + len(examples)].tolist()
            made = list(task.records(examples, encoder, numbers))
            num_cut += sum(was_cut for _, was_cut in made)
            for split in tallies:
                some = [i for i, is_held_out in enumerate(here) if is_held_out == (split == "val")]
                if some:
                    ids, ends = packed([record for i in some for record in made[i][0]])
                    num_bytes = sum(len(text.encode()) for i in some for text in texts_of(examples[i]))
                    writer.add_whole(split, ids, ends, num_bytes)
                    tallies[split] = tallies[split].plus(task.tally([examples[i] for i in some], numbers))
                    num_tokens += len(ids)
            done += len(examples)
            report(done, num_tokens, done / len(is_val))
    return Labelled(
        task.name, task.fields, names, tallies["train"], tallies["val"], dict(sorted(rows.left_out.items())), num_cut
    )


def _tell(rows: Rows, labelled: Labelled) -> None:
    """Say what was left out or cut."""
    name = rows.table.name
    total = labelled.train.rows + labelled.val.rows
    if len(labelled.names) * 2 > total > MANY_ROWS:
        field = rows.columns["label"]
        say(
            f"Warning: {name} has {len(labelled.names):,} labels in {plural(total, 'row', exact=True)}; is {field!r} "
            f"the right field (--data.label_field)?"
        )
    for alike in alike_names(labelled.names)[:MOST_REMARKS]:
        say(f"Warning: {name} has the labels {' and '.join(map(repr, map(short, alike)))}, which differ in case alone")
    for why, number in labelled.left_out.items():
        say(f"{name}: {plural(number, 'row', exact=True)} {why} left out")
    if labelled.num_cut:
        say(
            f"{name}: {labelled.num_cut:,} of {plural(total, 'row', exact=True)} {rows.task.cut_in_words}: longer than "
            f"--seq_len {rows.task.seq_len}"
        )


def check_varies(rows: Rows, labelled: Labelled) -> None:
    """Raise UserError if all numbers to predict are the same."""
    tally = labelled.train.plus(labelled.val)
    if tally.targets > 1 and tally.squares * tally.targets <= tally.total**2 * (1 + 1e-14):
        only = f"every row has the number {tally.total / tally.targets:g}"
        raise UserError(
            f"{rows.table.name}: {only}, so there is nothing to learn; choose another field with --data.label_field"
        )
