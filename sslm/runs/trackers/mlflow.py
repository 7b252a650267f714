"""The run at MLflow: at the server of MLFLOW_TRACKING_URI, or in a SQLite file in the run folder if there is none.

`mlflow ui --backend-store-uri sqlite:///RUN/mlflow/mlflow.db` shows the latter.
"""

import logging
import os
import re
import time
from pathlib import Path
from typing import Any

from sslm.runs.folder import RunFolder
from sslm.runs.trackers.identity import flat, id_of, name_of, pictures_of
from sslm.runs.trackers.tracker import Row, parts_of, unsent

MOST_CHARACTERS = 500
"""Of a setting; stores of former versions take no more."""


class Mlflow:
    takes_back = False

    def __init__(self, run: RunFolder, settings: dict[str, Any]) -> None:
        self.folder, self.settings = run, settings
        self.client: Any = None
        self.run_id = ""

    def begin(self, rows: list[Row]) -> None:
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):  # they tell of each table that they make
            logging.getLogger(name).setLevel(logging.WARNING)
        local = self.folder.path.resolve() / "mlflow"
        if (uri := os.environ.get("MLFLOW_TRACKING_URI")) is None:
            local.mkdir(exist_ok=True)
            uri = f"sqlite:///{local}/mlflow.db"
        self.client = MlflowClient(uri)
        self.run_id = self._find_run(local.as_uri() + "/files" if uri.startswith(f"sqlite:///{local}") else None)
        self.client.update_run(self.run_id, status="RUNNING")
        steps = [int(metric.value) for metric in self.client.get_metric_history(self.run_id, "step")]
        for row in unsent(rows, steps):
            self.write(row)

    def _find_run(self, files: str | None) -> str:
        """Return the id of our run at MLflow, which is made if it is not there.

        Args:
            files: where artifacts of a new experiment go, or None for where the server wants them.
        """
        name, known = os.environ.get("MLFLOW_EXPERIMENT_NAME", "sslm"), id_of(self.folder)
        found = self.client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self.client.create_experiment(name, artifact_location=files)
        runs = self.client.search_runs([experiment], f"tags.`sslm.id` = '{known}'")
        if runs:
            return str(runs[0].info.run_id)
        made = self.client.create_run(experiment, tags={"sslm.id": known}, run_name=name_of(self.folder))
        for key, text in flat(self.settings).items():
            self.client.log_param(made.info.run_id, _as_name(key), text[:MOST_CHARACTERS])
        return str(made.info.run_id)

    def write(self, row: Row) -> None:
        """Add a row; its metrics come in one transaction, so that a row is there as a whole or not at all."""
        from mlflow.entities import Metric, RunTag

        parts, step, now = parts_of(row), row["step"], int(time.time() * 1000)
        if parts.samples:
            self.client.log_text(self.run_id, "\n\n".join(parts.samples), f"samples/step-{step:08d}.txt")
        numbers = parts.numbers | {"step": step}
        metrics = [Metric(_as_name(key), float(number), now, step) for key, number in numbers.items()]
        tags = [RunTag(f"{key}/step {step}", text[:MOST_CHARACTERS]) for key, text in parts.marks.items()]
        self.client.log_batch(self.run_id, metrics=metrics, tags=tags)

    def send_model(self, folder: Path) -> None:
        self.client.log_artifacts(self.run_id, str(folder), "model")

    def close(self, failed: bool = False) -> None:
        if self.client is not None:
            for file in pictures_of(self.folder):
                self.client.log_artifact(self.run_id, str(file))
            self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
            self.client = None


def _as_name(key: str) -> str:
    """Replace what MLflow takes in no name."""
    return re.sub(r"[^\w\-. /]", "_", key)
