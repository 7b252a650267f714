"""Words with tags, as CoNLL's shared tasks have them: a word a line, its columns beside it, sentences apart by a blank.

Columns go by their number, from 0 or, from the last, -1, or by name if the first line or CoNLL-U's own remark
(`# global.columns = …`) names them.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sslm.data.corpus.files import format_of
from sslm.data.labelled.lines import lines_of
from sslm.system.errors import UserError
from sslm.system.terminal import plural

ENDINGS = (".conll", ".conllu", ".bio", ".iob", ".iob2", ".txt")
CONLL_U = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
DOCUMENT = "-DOCSTART-"
NAMED = "# global.columns ="
NUMBER = re.compile(r"-?\d+")

Line = tuple[int, list[str]]
"""(number, columns)"""


def fields(file: Path, named: Sequence[str]) -> list[str]:
    """Name the columns: by number, and by name if there are any."""
    sentence = next(_sentences(file, skip=0), [])
    width = len(sentence[0][1]) if sentence else 0
    names = _names(file)
    if names is None and any(name in sentence[0][1] for name in named if not NUMBER.fullmatch(name)):
        names = sentence[0][1]
    return [*(names or ()), *map(str, range(width)), *(str(n) for n in range(-width, 0))]


def rows(file: Path, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, field -> list of words or tags) of each sentence."""
    named, has_header = _names(file), False
    if named is None and not all(NUMBER.fullmatch(name) for name in wanted):
        named, has_header = next(_sentences(file, skip=0))[0][1], True
    places = {}
    for name in wanted:
        if named is not None and name in named:
            places[name] = named.index(name)
        elif NUMBER.fullmatch(name):
            places[name] = int(name)
        else:
            raise UserError(f"{file}: no column {name!r}; it has {', '.join(named or ())}")
    for sentence in _sentences(file, skip=int(has_header)):
        yield f"{file}, line {sentence[0][0]}", {n: [columns[i] for _, columns in sentence] for n, i in places.items()}


def _names(file: Path) -> list[str] | None:
    """The columns' names, if the format or a remark in the first line gives any."""
    first = next(lines_of(file), "")
    if first.startswith(NAMED):
        return first.removeprefix(NAMED).split()
    return list(CONLL_U) if format_of(file) == ".conllu" else None


def _sentences(file: Path, skip: int) -> Iterator[list[Line]]:
    """Read sentences, without the first `skip` lines of words."""
    sentence: list[Line] = []
    width = 0
    for number, line in enumerate(lines_of(file), 1):
        columns = _columns(line)
        if columns is None or (not sentence and columns[0] == DOCUMENT):
            if sentence:
                yield sentence
            sentence = []
            continue
        if not sentence and columns[0].startswith("#") and len(columns) != width:
            continue  # a remark: what is as wide as the words is a word
        if format_of(file) == ".conllu" and not columns[0].isdecimal():
            continue  # a word that is written as one and read as several (1-2), or an empty node (1.1)
        width = width or len(columns)
        if len(columns) != width:
            has = f"{plural(len(columns), 'column')}, where the first word has {width}"
            raise UserError(f"{file}, line {number}: has {has}; divide them by tabs if a word holds a space")
        if skip:
            skip -= 1
            continue
        sentence.append((number, columns))
    if sentence:
        yield sentence


def _columns(line: str) -> list[str] | None:
    """A line's columns, divided by tabs if it has any, else by spaces; None if it is blank."""
    line = line.rstrip("\r\n")
    if not line.strip(" \t"):
        return None
    return line.split("\t") if "\t" in line else [part for part in line.split(" ") if part]
