"""The run at trackio, a local W&B: in the folder of TRACKIO_DIR, where `trackio show --project sslm` has all runs."""

from pathlib import Path
from typing import Any

from sslm.runs.folder import RunFolder
from sslm.runs.trackers.identity import flat, id_of, name_of
from sslm.runs.trackers.tracker import Row, parts_of, unsent

PROJECT = "sslm"


class Trackio:
    takes_back = False

    def __init__(self, run: RunFolder, settings: dict[str, Any]) -> None:
        self.folder, self.settings = run, settings
        self.run: Any = None

    def begin(self, rows: list[Row]) -> None:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        self.close()
        name = f"{name_of(self.folder)}-{id_of(self.folder)}"  # by which a run goes on
        steps = [int(log["step"]) for log in SQLiteStorage.get_logs(PROJECT, name)]
        self.run = trackio.init(PROJECT, name, config=flat(self.settings), resume="allow", embed=False)
        for row in unsent(rows, steps):
            self.write(row)

    def write(self, row: Row) -> None:
        import trackio

        parts = parts_of(row)
        values: dict[str, Any] = {**parts.numbers, **parts.texts, **parts.marks}
        if parts.samples:
            values["samples"] = trackio.Table(columns=["sample"], data=[[sample] for sample in parts.samples])
        self.run.log(values, step=row["step"])
        for key, text in parts.marks.items():
            self.run.alert(f"step {row['step']}: {key}", text)

    def send_model(self, folder: Path) -> None:
        self.run.log_artifact(folder, name=f"model-{id_of(self.folder)}", type="model")

    def close(self, failed: bool = False) -> None:
        if self.run is not None:
            self.run.finish()
            self.run = None
