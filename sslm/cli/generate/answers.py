"""The .jsonl of what was written: whole rows, in the order of the prompts, whatever happens meanwhile."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sslm.cli.generate.prompts import Given
from sslm.system.errors import UserError
from sslm.system.files import append_json_lines, json_lines, write_atomically
from sslm.system.terminal import say


class Answers:
    """A file that grows by whole rows; while it isn't complete, a file beside it says how it is made.

    Args:
        file: it may have the first rows already, as a killed process leaves them.
        made_by: what decides the rows: model, flags.

    Raises:
        UserError: it is there, and not begun by the same command.
    """

    def __init__(self, file: Path, given: Sequence[Given], made_by: dict[str, Any]) -> None:
        self.file, self.note = file, file.with_name(f".{file.name}.unfinished")
        made_by = json.loads(json.dumps(made_by))
        if not file.parent.is_dir():
            raise UserError(f"--out {file}: its folder doesn't exist; make it first")
        rows = json_lines(file, say) if self._is_begun(made_by) else []
        differs = [
            n for n, (row, prompt) in enumerate(zip(rows, given, strict=False)) if row.get("prompt") != prompt.prompt
        ]
        if differs or len(rows) > len(given):
            raise UserError(f"--out {file}: has rows of other prompts; remove it, or give another file")
        self.num_done = len(rows)
        """Rows that are there."""
        self.made_by = made_by
        self.lock = FileLock(file.with_name(f".{file.name}.lock"), blocking=False)

    def begin(self) -> None:
        """Say that the file is being made, and how.

        Raises:
            UserError: another process is making it.
        """
        try:
            self.lock.acquire()
        except Timeout:
            raise UserError(f"--out {self.file}: another process is writing it; wait for it to end") from None
        write_atomically(self.note, json.dumps(self.made_by))

    def _is_begun(self, made_by: dict[str, Any]) -> bool:
        if not self.file.exists():
            return False
        try:
            before = json.loads(self.note.read_text())
        except (OSError, ValueError, RecursionError):
            raise UserError(f"--out {self.file}: already exists; remove it, or give another file") from None
        if before != made_by:
            keys = [key for key in made_by if not isinstance(before, dict) or before.get(key) != made_by[key]]
            other = f"was begun with another {', '.join(keys) or 'command'}"
            raise UserError(f"--out {self.file}: {other}; type the same command, or remove the file")
        return True

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows; they are on the disk when this returns."""
        append_json_lines(self.file, rows, ascii_only=False)
        self.num_done += len(rows)

    def close(self) -> None:
        """Say that the file is complete."""
        self.note.unlink(missing_ok=True)
        Path(self.lock.lock_file).unlink(missing_ok=True)
        self.lock.release()
