"""Find the token files at a path, by their names and first bytes."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from sslm.data.corpus.files import is_text, walk
from sslm.data.corpus.shards import Split
from sslm.data.foreign import llm_c, megatron, nanogpt, npy, parquet
from sslm.data.foreign.files import Options, TokenFile

HELD_OUT_NAMES = {"val", "validation"}
LEFT_OUT_NAMES = {"test"}
MADE_BY_OTHERS = ("index.json", "dataset_info.json", "dataset_dict.json", "state.json")
"""A folder with one of these is a prepared corpus, a saved dataset, or another library's shards."""


class Format(Protocol):
    """A module that reads one kind of token files."""

    def recognises(self, path: Path, options: Options) -> Path | None:
        """Find the file to open (of a pair, the .idx), or None if the file is of another kind."""

    def open_tokens(self, path: Path, options: Options) -> TokenFile:
        """Open a file; UserError if it is damaged, or holds no ids."""


FORMATS: dict[str, Format] = {"megatron": megatron, "llm.c": llm_c, "nanogpt": nanogpt, "npy": npy, "parquet": parquet}
"""Kinds of token files; the first that recognises a file opens it."""

Found = dict[str, list[tuple[Path, Split | None]]]
"""Kind -> (file to open, its split, or None if it is left out)."""


def find(name: str | Path, options: Options) -> Found:
    """Find the token files that a path, a pattern or a prefix of Megatron's names."""
    path = Path(name)
    if path.is_dir():
        return _find_in_folder(path, options)
    if path.is_file():
        paths = [path]
    elif path.name and all(path.with_name(path.name + suffix).is_file() for suffix in (".idx", ".bin")):
        paths = [path.with_name(path.name + ".idx")]
    else:
        names = glob.glob(str(path), recursive=True) if glob.has_magic(str(path)) else []
        paths = [Path(name) for name in sorted(names) if os.path.isfile(name)]
    found: Found = {}
    for path in paths:
        kind, holder = _kind_of(path, options)
        split: Split = "val" if len(paths) > 1 and _words(holder) & HELD_OUT_NAMES else "train"
        if kind:
            found.setdefault(kind, []).append((holder, split))
    return {kind: list(dict.fromkeys(held)) for kind, held in found.items()}  # *.bin and *.idx are the same files


def _find_in_folder(folder: Path, options: Options) -> Found:
    """Find the token files of a folder and those below it; hidden ones are left out."""
    found: Found = {}
    texts: list[tuple[Path, Split | None]] = []
    kinds: dict[str | Path, str | None] = {}
    for path in _walk(folder):
        suffix = path.suffix.lower()
        if suffix == ".parquet" and not path.stat().st_size:  # says nothing of the others
            continue
        if suffix == ".bin" and (path.with_suffix(".idx").is_file() or _belongs_to_others(path)):
            continue
        alike = suffix if suffix == ".parquet" else path  # the first Parquet file stands for all
        if alike not in kinds:
            kinds[alike], _ = _kind_of(path, options)
        kind = kinds[alike]
        if kind:
            found.setdefault(kind, []).append((path, _split_of(path.relative_to(folder))))
        elif is_text(path):
            texts.append((path, "train"))
    named = {"train", *HELD_OUT_NAMES}
    if texts and "nanogpt" in found and not any(_words(path) & named for path, _ in found["nanogpt"]):
        del found["nanogpt"]  # nothing says that these are ids
    if texts and found.keys() & {"npy", "parquet"}:
        found["text"] = texts
    return found


def _split_of(path: Path) -> Split | None:
    names = {*(folder.lower() for folder in path.parts[:-1]), *_words(path)}
    if names & LEFT_OUT_NAMES:
        return None
    return "val" if names & HELD_OUT_NAMES else "train"


def _walk(folder: Path) -> Iterator[Path]:
    if any((folder / name).is_file() for name in MADE_BY_OTHERS):
        return
    yield from walk(folder)


def _kind_of(path: Path, options: Options) -> tuple[str | None, Path]:
    """Tell a file's kind, or None for no ids, and the file to open."""
    for kind, format_ in FORMATS.items():
        if (holder := format_.recognises(path, options)) is not None:
            return kind, holder
    return None, path


def _belongs_to_others(path: Path) -> bool:
    """Whether a .bin lies in a prepared corpus, or in a model's folder."""
    return path.with_suffix(".ends").exists() or any(path.with_name(n).exists() for n in ("index.json", "config.json"))


def _words(path: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", path.stem.lower()))
