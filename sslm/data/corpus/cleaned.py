"""A folder that `sslm clean` made, by its record: what it was made of, how, and what became of it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from sslm.system.errors import UserError, one_line, short
from sslm.system.files import is_plain_name, is_sha256, is_size, sha256_of

RECORD = "cleaning.json"
FORMAT = 1
RECORD_BYTES = 1 << 28
"""Longest record that is read."""


def checksum(record: dict[str, Any]) -> str:
    """Compute a record's own checksum, of all that it holds beside it."""
    rest = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """Read a cleaned corpus' record.

    Raises:
        UserError: there is none, or it is damaged.
    """
    file = folder / RECORD
    if not file.is_file():
        raise UserError(f"{folder}: there is no {RECORD}, so sslm clean did not make it")
    try:
        if file.stat().st_size > RECORD_BYTES:
            raise ValueError("too long")
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise UserError(f"{file}: has format {short(record['format'])}, and this sslm reads {FORMAT}; update sslm")
        for one in record["files"]:
            numbers = one["num_bytes"], one["documents"], one["text_bytes"]
            if not (is_plain_name(one["file"]) and is_sha256(one["sha256"]) and all(map(is_size, numbers))):
                raise ValueError(f"file {short(one['file'])}")
        if not all(isinstance(record[part], kind) for part, kind in PARTS.items()):
            raise ValueError("a part is missing")
        if record["sha256"] != checksum(record):
            raise ValueError("it is not what its checksum is of")
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: is damaged ({one_line(error)}); clean the text again") from None
    return dict(record)


PARTS = {"settings": dict, "inputs": list, "counts": dict}


def summary(folder: Path) -> dict[str, Any] | None:
    """Return what a corpus' index keeps of the record of the text that it is made of; None if that has none.

    Raises:
        UserError: the record is damaged.
    """
    if not (folder / RECORD).is_file():
        return None
    record = read_record(folder)
    known = {"sha256": sha256_of(folder / RECORD), "inputs": len(record["inputs"]), "settings": record["settings"]}
    return known | {"documents": record["counts"].get("documents", {})}
