"""Documents, windows and batches, printed."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from rich.text import Text

from sslm.cli.inspect.marks import Kind, Run, document_starts, input_kinds, plain_kinds, runs
from sslm.data.corpus.tokenizer import Tokenizer
from sslm.data.module import DataModule
from sslm.data.stream.recipe import Arrays, Ints
from sslm.data.stream.stream import StreamSource
from sslm.data.stream.vocabulary import Vocabulary, vocabulary_of
from sslm.data.stream.windows import Region
from sslm.system.errors import UserError, printable
from sslm.system.terminal import console, is_watched, plural, say

MOST_TOKENS = 300
"""Tokens to show of a document."""
LEGEND = (
    (Kind.MASKED, "masked"),
    (Kind.REPLACED, "replaced"),
    (Kind.KEPT, "kept, and predicted"),
    (Kind.SENTINEL, "sentinel"),
    (Kind.END, "end of a document"),
    (Kind.SPECIAL, "special token"),
    (Kind.PADDING, "padding"),
)
TARGET = "green"
MARKS = "[input→target] is masked or replaced, [=text] kept and predicted, ║ a document's end, {…} no text, · no target"


class Shown:
    """Prints what a data module gives a model.

    Args:
        data: set up.
        writes_target: whether the model has a decoder that writes the labels.
    """

    def __init__(self, data: DataModule, *, writes_target: bool) -> None:
        self.data, self.writes_target = data, writes_target
        self.has_colours = is_watched() and not console().no_color

    @cached_property
    def tokenizer(self) -> Tokenizer:
        if self.data.tokenizer is None:
            raise UserError("this corpus is ids without a tokenizer; give one to read it: --data.tokenizer")
        return self.data.tokenizer

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return self.data.vocabulary or vocabulary_of(self.tokenizer)

    @cached_property
    def is_wordpiece(self) -> bool:
        model = getattr(getattr(self.tokenizer, "backend_tokenizer", None), "model", None)
        return type(model).__name__ == "WordPiece"

    # ------------------------------------------------------------------------------------ sections

    def documents(self, first: int, num: int) -> None:
        """Print documents in the order of the disk, of what is trained on."""
        total = 0
        for source, region in ((s, region) for s in self.data.train_stream.sources for region in s.regions):
            ends = source.corpus.document_ends(region.shard) if region.shard.num_documents else np.empty(0, np.int64)
            count = int(np.searchsorted(ends, region.end))
            count += count < len(ends) and (int(ends[count - 1]) if count else 0) < region.end  # cut by the split
            for number in range(max(first - total, 0), min(first + num - total, count)):
                begin = int(ends[number - 1]) if number else 0
                self._document(total + number, source, region, begin, min(int(ends[number]), region.end))
            total += count
        if not total:
            say("Documents: the corpus does not say where they end")
        elif first >= total:
            raise UserError(f"--position {first}: the last document is number {total - 1}")

    def _document(self, number: int, source: StreamSource, region: Region, begin: int, end: int) -> None:
        ids = np.asarray(source.corpus.tokens(region.shard)[begin : min(end, begin + MOST_TOKENS)], np.int64)
        where = f"{source.name + ', ' if source.name else ''}{region.shard.file}, from token {begin}"
        say(f"Document {number} ({where}): {plural(end - begin, 'token', exact=True)}")
        self._print(self._plain(ids), f" … {end - begin - len(ids):,} more" if end - begin > len(ids) else "")

    def windows(self, position: int, num: int) -> None:
        """Print windows in the order of the run."""
        if self.data.recipe.task(self.data.seq_len) is not None:
            say("Windows: labelled rows have none; the batches show them")
            return
        stream = self.data.train_stream
        positions = np.arange(position, position + num)
        places, examples = stream.places(positions), stream.at(positions)
        for row, tokens in enumerate(examples.tokens):
            source = stream.sources[places.sources[row]]
            length = len(tokens) if examples.lengths is None else int(examples.lengths[row])
            where = f"{source.name + ', ' if source.name else ''}{source.regions[places.regions[row]].shard.file}"
            what = f"window {places.windows[row]}, epoch {places.epochs[row] + 1}"
            say(f"Position {positions[row]} ({where}, {what}): {plural(length, 'token', exact=True)}")
            self._print(self._plain(tokens[:length]))

    def batches(self, position: int, num: int) -> None:
        """Print rows of the batches that begin there, inputs and targets."""
        if self.has_colours:
            legend = Text(" ").join(Text(name, kind.value) for kind, name in LEGEND)
            console().print(legend + Text(" ") + Text("target", TARGET), soft_wrap=True)
        else:
            say(MARKS)
        for step, place, row in self._rows(position, num):
            say(f"Row {place} (optimizer step {step + 1})")
            self._row(row)

    def _rows(self, position: int, num: int) -> Iterator[tuple[int, int, Arrays]]:
        """Yield (step, position, tensors) of rows as they are trained on, from a position on."""
        steps, step, left = self.data.train_dataloader().steps, self.data.sizes.step_at(position), num
        while left > 0:
            batch = steps[step]
            if "bad" in batch:
                raise UserError(batch["bad"][2])
            pieces = batch.get("pieces", 1)
            wanted = np.flatnonzero(batch["positions"] >= position * pieces)[:left]
            for n in wanted.tolist():
                tensors = {name: np.asarray(array[n]) for name, array in batch["tensors"].items()}
                yield step, int(batch["positions"][n]), tensors
            left, step = left - len(wanted), step + 1

    def _row(self, row: Arrays) -> None:
        recipe, ids, labels = self.data.recipe, row["input_ids"].astype(np.int64), row["labels"]
        task = recipe.task(self.data.seq_len)
        in_place = task is None and not self.writes_target and not recipe.predicts_next_token
        how = {"in_place": in_place, "predicts_next_token": recipe.predicts_next_token}
        kinds = input_kinds(row | {"input_ids": ids}, self.vocabulary, **how)
        begins = document_starts(kinds, row.get("segment_ids"))
        self._print(runs(kinds, ids, labels if in_place else None, begins), title="  input  ")
        if self.writes_target or recipe.predicts_next_token:
            self._print(self._plain(labels.astype(np.int64)), title="  target ")
        elif not in_place:
            say(f"  target {self._labels(labels)}")

    def _labels(self, labels: Any) -> str:
        """Write a labelled row's labels: their names, or numbers."""
        names = self.data.labels
        if names and np.asarray(labels).dtype.kind != "f":
            return ", ".join("·" if n < 0 else names[n] for n in np.atleast_1d(labels).tolist())
        return ", ".join(f"{n:g}" for n in np.atleast_1d(labels).tolist())

    # ------------------------------------------------------------------------------------ tokens

    def _plain(self, ids: Ints) -> Iterator[Run]:
        kinds = plain_kinds(ids, self.vocabulary)
        return runs(kinds, ids, None, document_starts(kinds, None))

    def _print(self, parts: Iterator[Run], rest: str = "", title: str = "") -> None:
        line = Text().append(title, "bold")
        for run in parts:
            line.append_text(self._coloured(run) if self.has_colours else Text(self._marked(run)))
        console().print(line.append(rest, "dim"), soft_wrap=True, highlight=False)

    def _coloured(self, run: Run) -> Text:
        text = Text().append("║" if run.begins_document else "", Kind.END.value)
        text.append(self._text(run.kind, run.ids), run.kind.value.strip())
        return text.append(self._decoded(run.targets) if run.targets and run.kind is not Kind.KEPT else "", TARGET)

    def _marked(self, run: Run) -> str:
        text = self._text(run.kind, run.ids)
        if run.kind is Kind.KEPT:
            text = f"[={text}]"
        elif run.targets:
            text = f"[{text}→{self._decoded(run.targets)}]"
        return f"║{text}" if run.begins_document else text

    def _text(self, kind: Kind, ids: list[int]) -> str:
        if kind is Kind.PADDING:
            return f" {{{plural(len(ids), 'place', exact=True)} of padding}}"
        if kind is Kind.IGNORED:
            return f"{{·{len(ids)}}}" if len(ids) > 1 else "·"
        return self._decoded(ids)

    def _decoded(self, ids: list[int]) -> str:
        """Decode tokens, with the space before them; what would steer the terminal is escaped."""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        token = str(self.tokenizer.convert_ids_to_tokens(ids[0]))
        if token.startswith("▁") and not text.startswith(" "):
            text = f" {text}"
        if self.is_wordpiece:
            text = text.removeprefix("##") if token.startswith("##") else f" {text}"
        return "↵\n".join(map(printable, text.split("\n")))
