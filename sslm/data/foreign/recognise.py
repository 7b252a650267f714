"""Which kinds of token files there are at a place, told by names and first bytes."""

import glob
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sslm.data.corpus.documents import is_text
from sslm.data.corpus.shards import Split
from sslm.data.foreign import files as files
from sslm.data.foreign import llm_c, megatron, parquet
from sslm.system.errors import UserError

HELD_OUT_NAMES = {"val", "validation"}
LEFT_OUT_NAMES = {"test"}
NOT_IDS = (b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19")
"""How the .bin files of torch.save begin."""
MADE_BY_OTHERS = ("index.json", "dataset_info.json", "dataset_dict.json", "state.json")
"""A folder with one of these is a prepared corpus, a saved dataset, or another library's shards."""

Found = dict[str, list[tuple[Path, Split | None]]]
"""Kind -> files that hold ids, or say where ids are (.idx), and what they are for; None: left out."""


def find(given: str | Path, text_field: str) -> Found:
    path = Path(given).expanduser()
    if path.is_dir():
        return _find_in_folder(path, text_field)
    if path.is_file():
        paths = [path]
    elif path.name and all(path.with_name(path.name + suffix).is_file() for suffix in (".idx", ".bin")):
        paths = [path.with_name(path.name + ".idx")]
    else:
        names = glob.glob(str(path), recursive=True) if glob.has_magic(str(path)) else []
        paths = [Path(name) for name in sorted(names) if os.path.isfile(name)]
    found: Found = {}
    for path in paths:
        kind, holder = _kind_of(path, text_field)
        split: Split = "val" if len(paths) > 1 and _words(holder) & HELD_OUT_NAMES else "train"
        if kind:
            found.setdefault(kind, []).append((holder, split))
    return {kind: list(dict.fromkeys(held)) for kind, held in found.items()}  # *.bin and *.idx are the same files


def _find_in_folder(folder: Path, text_field: str) -> Found:
    """Token files of a folder and those below it; hidden ones are not looked at."""
    found: Found = {}
    texts: list[tuple[Path, Split | None]] = []
    parquet_kind: str | None = ""
    for path in _walk(folder):
        suffix = path.suffix.lower()
        if suffix == ".bin" and (path.with_suffix(".idx").is_file() or _belongs_to_others(path)):
            continue
        if suffix == ".parquet" and parquet_kind != "":  # the first spoke for all
            kind = parquet_kind
        else:
            kind, _ = _kind_of(path, text_field)
        if suffix == ".parquet":
            parquet_kind = kind
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
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))


def _kind_of(path: Path, text_field: str) -> tuple[str | None, Path]:
    """(kind, the file to open)"""
    match path.suffix.lower():
        case ".npy":
            return "npy", path
        case ".bin" if path.with_suffix(".idx").is_file():
            return "megatron", path.with_suffix(".idx")
        case ".bin" if not _begins_with(path, NOT_IDS):
            return ("llm.c" if llm_c.is_llm_c(path) else "nanogpt"), path
        case ".idx" if path.with_suffix(".bin").is_file() or _begins_with(path, (megatron.MAGIC,)):
            return "megatron", path
        case ".parquet":
            with suppress(UserError), parquet.parquet_file(path) as table:
                return ("parquet" if parquet.ids_column(table.schema_arrow, text_field) else None), path
    return None, path


def _begins_with(path: Path, beginnings: tuple[bytes, ...]) -> bool:
    return files.first_bytes(path, max(map(len, beginnings))).startswith(beginnings)


def _belongs_to_others(path: Path) -> bool:
    """A .bin of a prepared corpus, or of a model's folder."""
    return path.with_suffix(".ends").exists() or any(path.with_name(n).exists() for n in ("index.json", "config.json"))


def _words(path: Path) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", path.stem.lower()))
