"""The work folder of a clean: what has been done of it. A kill leaves it, and the same command goes on from it.

    .NAME.tmp/
      settings.json            what decides the output; another command is refused
      inputs/00012.json        an input that was begun, with its checksum; inputs/00012.done: the number of its blocks
      blocks/00012-000034.*    a block: .jsonl.zst of its documents, .npz of their signatures, .json of its tally, last
      out/                     what becomes NAME: documents-00000.jsonl.zst …, cleaning.json, report.html, report.md

Each file is written beside and renamed, so that any number of processes may work on one folder, on any machines.
"""

import functools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from sslm.data.cleaning.inputs import Input, Opened
from sslm.data.cleaning.tally import Tally
from sslm.system.errors import UserError
from sslm.system.files import fsync, write_atomically


class Changed(UserError):
    """An input is not what it was when the clean began."""


@dataclass(frozen=True)
class BlockName:
    """A block's place in the corpus' order."""

    input: int
    block: int

    def __str__(self) -> str:
        return f"{self.input:05d}-{self.block:06d}"


class Part(NamedTuple):
    """A share of the filtering: the number-th of so many, from 1."""

    number: int
    of: int

    def reads(self, number: int, inputs: int) -> bool:
        """Whether this part reads an input; if there are fewer inputs than parts, each reads all of them."""
        return inputs < self.of or number % self.of == self.number - 1

    def takes(self, name: BlockName, inputs: int) -> bool:
        """Whether a block is this part's."""
        return (name.input if inputs >= self.of else name.block) % self.of == self.number - 1


ALL = Part(1, 1)


@dataclass(frozen=True)
class Work:
    """The folder."""

    folder: Path

    def begin(self, settings: dict[str, Any]) -> None:
        """Make the folder, or go on with one that the same settings began.

        Raises:
            UserError: other settings began it.
        """
        for name in ("inputs", "blocks", "merge", "out"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        file, settings = self.folder / "settings.json", json.loads(json.dumps(settings))
        text = json.dumps({"began": time.time(), "settings": settings}, indent=1, sort_keys=True) + "\n"
        part = file.with_name(f".{uuid4().hex}")
        part.write_text(text)
        try:
            os.link(part, file)  # the first of several processes
        except FileExistsError:
            if (began_with := self._settings["settings"]) != settings:
                raise UserError(
                    f"{self.folder}: holds the beginning of another clean ({_difference(began_with, settings)}); give "
                    f"what it was begun with to go on, or remove it: rm -r {self.folder}"
                ) from None
        finally:
            part.unlink()

    @property
    def _settings(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.folder / "settings.json").read_text())
        return read

    @functools.cached_property
    def began(self) -> float:
        """When this clean began [seconds since 1970]."""
        return float(self._settings["began"])

    def check_input(self, number: int, opened: Opened) -> None:
        """Note an input's checksum; UserError if it was another one when it was begun."""
        file = self.folder / "inputs" / f"{number:05d}.json"
        text = json.dumps({"file": opened.input.name, "sha256": opened.sha256}) + "\n"
        if not file.is_file():
            write_atomically(file, text)
        elif file.read_text() != text:
            raise Changed(f"{opened.input.place}: has changed since this clean began; begin anew: rm -r {self.folder}")

    def sha256_of_input(self, number: int) -> str:
        return str(json.loads((self.folder / "inputs" / f"{number:05d}.json").read_text())["sha256"])

    def num_blocks(self, number: int) -> int | None:
        """Return how many blocks an input has, None until it has been read to its end."""
        file = self.folder / "inputs" / f"{number:05d}.done"
        return int(file.read_text()) if file.is_file() else None

    def end_input(self, number: int, num_blocks: int) -> None:
        write_atomically(self.folder / "inputs" / f"{number:05d}.done", f"{num_blocks}\n")

    def path(self, name: BlockName, ending: str) -> Path:
        return self.folder / "blocks" / f"{name}{ending}"

    def is_done(self, name: BlockName) -> bool:
        return self.path(name, ".json").is_file()

    def tally(self, name: BlockName) -> Tally:
        return Tally.read(json.loads(self.path(name, ".json").read_text()))

    def blocks(self, inputs: Sequence[Input]) -> list[BlockName]:
        """List all blocks in the corpus' order, once all inputs have been read."""
        return [BlockName(n, block) for n in range(len(inputs)) for block in range(self.num_blocks(n) or 0)]

    @property
    def out(self) -> Path:
        return self.folder / "out"


def written_whole(file: Path, write: Callable[[Path], None]) -> None:
    """Let a function write a file beside, and rename it."""
    part = file.with_name(f".{uuid4().hex}.{file.name}")
    try:
        write(part)
        fsync(part)
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)


def _difference(a: Any, b: Any) -> str:
    return ", ".join(_different(a, b, "")) or "other versions"


def _different(a: Any, b: Any, name: str) -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from _different(a.get(key), b.get(key), f"{name}.{key}".removeprefix("."))
    elif a != b:
        yield name
