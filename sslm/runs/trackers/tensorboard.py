"""Numbers of the rows as scalars, the rest as texts, in a file that is written anew when a run goes on."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sslm.runs.folder import RunFolder
from sslm.runs.trackers.tracker import Row, parts_of


class TensorBoard:
    takes_back = True

    def __init__(self, run: RunFolder) -> None:
        self.folder = run.path / "tensorboard"
        self.writer: Any = None

    def begin(self, rows: list[Row]) -> None:
        library = import_module("torch.utils.tensorboard" if find_spec("tensorboard") else "tensorboardX")
        self.close()
        for file in self.folder.glob("events.out.tfevents.*"):
            file.unlink()
        self.writer = library.SummaryWriter(str(self.folder), flush_secs=10)
        for row in rows:
            self.write(row)

    def write(self, row: Row) -> None:
        parts = parts_of(row)
        for key, number in parts.numbers.items():
            self.writer.add_scalar(key, number, row["step"])
        for key, text in parts.marks.items():
            self.writer.add_text(key, text, row["step"])
        if parts.samples:
            self.writer.add_text("samples", "\n\n".join(parts.samples), row["step"])

    def send_model(self, folder: Path) -> None:
        pass

    def close(self, failed: bool = False) -> None:
        if self.writer is not None:
            self.writer.close()
