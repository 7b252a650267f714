"""Prompts as they are given: one of the command line, or a .jsonl with one a line."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from sslm.system.errors import UserError, short

WRITTEN = ("text", "tokens", "finish_reason", "logprobs")
"""Keys that generation adds to a row."""


class Given(NamedTuple):
    """A prompt."""

    number: int
    """From 0, in their order."""
    prompt: str
    where: str
    """Where it stands, for errors."""
    row: dict[str, Any]
    """Its line of the .jsonl, whose other keys are kept."""


def typed(prompt: str) -> list[Given]:
    """Take the prompt of a command line."""
    return [Given(0, _text(prompt, "--prompt"), "--prompt", {"prompt": prompt})]


def read(file: Path) -> list[Given]:
    """Read a .jsonl of prompts.

    Raises:
        UserError: it is empty, or a line of it is none with a prompt.
    """
    found: list[Given] = []
    for number, line in enumerate(_bytes(file).split(b"\n"), start=1):
        where = f"--prompts {file}, line {number}"
        if line.strip():
            row = _row(line, where)
            found.append(Given(len(found), _text(row["prompt"], where), where, row))
    if not found:
        raise UserError(f'--prompts {file}: has no prompts; expected lines such as {{"prompt": "Once upon"}}')
    return found


def _bytes(file: Path) -> bytes:
    if not file.is_file():
        raise UserError(f"--prompts {file}: there is no such file")
    return file.read_bytes().removeprefix(b"\xef\xbb\xbf")


def _row(line: bytes, where: str) -> dict[str, Any]:
    example = 'expected an object such as {"prompt": "Once upon"}'
    try:
        row = json.loads(line.decode(), parse_constant=_refuse)
    except UnicodeDecodeError:
        raise UserError(f"{where}: is not UTF-8; {example}") from None
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, NoNumber) else "is no JSON"
        raise UserError(f"{where}: {why} ({short(line.decode())}); {example}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: is {type(row).__name__} ({short(row)}); {example}")
    if "prompt" not in row:
        raise UserError(f"{where}: has no key prompt, but {short(', '.join(row)) or 'none at all'}; {example}")
    if taken := [key for key in WRITTEN if key in row]:
        raise UserError(f"{where}: its key {taken[0]} is one that is written beside the prompt; rename it")
    return row


class NoNumber(ValueError):
    """JSON has no NaN and no infinity, though Python reads them."""


def _refuse(constant: str) -> None:
    raise NoNumber(f"has {constant}, which is no JSON")


def _text(prompt: Any, where: str) -> str:
    if not isinstance(prompt, str):
        raise UserError(f"{where}: its prompt is {short(json.dumps(prompt))}; expected text in quotes")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise UserError(f"{where}: its prompt has half a character (a lone surrogate); write the whole character")
    return prompt
