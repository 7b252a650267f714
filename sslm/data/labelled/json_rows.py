"""Rows in JSON: an object a line (.jsonl), a list of objects, or SQuAD's tree of paragraphs and questions (.json)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sslm.data.labelled.lines import lines_of
from sslm.system.errors import UserError

ENDINGS = (".jsonl", ".ndjson", ".json")
SQUAD = ("question", "context", "answers", "id")


def fields(file: Path, named: Sequence[str]) -> list[str]:
    """Name the fields of the first row."""
    _, row = next(_rows(file), ("", {}))
    return list(row)


def rows(file: Path, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, field -> value) of each row, all that it has: it may lack some of those that are wanted."""
    return _rows(file)


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    first = next((line for line in lines_of(file) if line.strip()), "").lstrip()
    is_whole = first.startswith("[") or (first.startswith("{") and not _parses(first))
    found = _listed(file) if is_whole or _is_squad(first) else _lines(file)
    for where, row in found:
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected an object with fields, got {type(row).__name__}")
        yield where, row


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines_of(file), 1):
        if line.strip():
            where = f"{file}, line {number}"
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError):
                raise UserError(f"{where}: not JSON; expected an object on each line (JSON Lines)") from None


def _parses(line: str) -> bool:
    with suppress(ValueError, RecursionError):
        json.loads(line)
        return True
    return False


def _is_squad(line: str) -> bool:
    with suppress(ValueError, RecursionError):
        tree = json.loads(line)
        return isinstance(tree, dict) and isinstance(tree.get("data"), list)
    return False


def _listed(file: Path) -> Iterator[tuple[str, Any]]:
    """Read a file that is one tree."""
    try:
        tree = json.loads("".join(lines_of(file)))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: not JSON ({error})") from None
    if isinstance(tree, dict):
        tree = tree.get("data", [tree])
    if not isinstance(tree, list):
        raise UserError(f"{file}: expected a list of rows, or of articles as SQuAD has them")
    if tree and isinstance(tree[0], dict) and "paragraphs" in tree[0]:
        yield from _squad(file, tree)
        return
    for number, row in enumerate(tree):
        yield f"{file}, row {number}", row


def _squad(file: Path, articles: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    where = f"{file}, question {number}"
                    answers = [] if question.get("is_impossible") else question.get("answers", [])
                    row = (question["question"], paragraph["context"], answers, question.get("id", str(number)))
                    yield where, dict(zip(SQUAD, row, strict=True))
                    number += 1
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{file}, after question {number}: not as SQuAD has paragraphs and their questions") from None
