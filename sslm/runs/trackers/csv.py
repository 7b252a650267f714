"""A table of the rows, csv/metrics.csv, with a column for each key that any row has."""

import csv
import io
import json
from pathlib import Path

from sslm.runs.folder import RunFolder
from sslm.runs.trackers.tracker import Row
from sslm.system.files import write_atomically


class Csv:
    takes_back = True

    def __init__(self, run: RunFolder) -> None:
        self.file = run.path / "csv/metrics.csv"
        self.columns: list[str] = []
        self.rows: list[Row] = []

    def begin(self, rows: list[Row]) -> None:
        self.file.parent.mkdir(exist_ok=True)
        self.rows = list(rows)
        self.columns = list(dict.fromkeys(key for row in rows for key in row))
        header = dict(zip(self.columns, self.columns, strict=True))
        write_atomically(self.file, "".join(map(self._line, [header, *rows])))

    def write(self, row: Row) -> None:
        self.rows.append(row)
        if not row.keys() <= set(self.columns):
            self.begin(self.rows)
            return
        with open(self.file, "a", encoding="utf-8", newline="") as stream:
            stream.write(self._line(row))

    def send_model(self, folder: Path) -> None:
        pass

    def close(self, failed: bool = False) -> None:
        pass

    def _line(self, row: Row) -> str:
        line = io.StringIO()
        values = [row.get(column) for column in self.columns]
        texts = [json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value for value in values]
        csv.writer(line, lineterminator="\n").writerow(texts)
        return line.getvalue()
