"""Settings of what is saved."""

from dataclasses import dataclass
from typing import Literal

from sslm.config.setting import POSITIVE, Section, setting


@dataclass(frozen=True)
class CheckpointConfig(Section):
    """When the run is saved, and what is kept."""

    prefix = "checkpoint"

    every_steps: int | None = setting(100, POSITIVE, may_change=True)
    """Optimizer steps between checkpoints; null: save by time only."""
    every_minutes: float | None = setting(None, POSITIVE, may_change=True)
    """Minutes between checkpoints; null: save by steps only."""
    keep_last: int | None = setting(2, POSITIVE, may_change=True)
    """Keep this many newest checkpoints; null: all."""
    keep_best: int | None = setting(None, POSITIVE, may_change=True)
    """Also keep this many best checkpoints, and save at every validation; null: none."""
    best_metric: str = setting("val/loss", may_change=True)
    """Metric by which keep_best chooses."""
    best_is: Literal["lowest", "highest"] = setting("lowest", may_change=True)
    """Whether the lowest or the highest value of best_metric is best."""
    export: Literal["last", "best"] = setting("last", may_change=True)
    """Checkpoint of which the finished run's model is made: the last, or the best of those that are kept."""
    keep_every_steps: int | None = setting(None, POSITIVE, may_change=True)
    """Never remove checkpoints at multiples of this many steps; null: no such exception."""
    sync: bool = setting(False, may_change=True)
    """Wait until a checkpoint is on the disk before training on; false: only until it is in the host's memory."""
    upload: str | None = setting(None, may_change=True, is_path=True)
    """Folder elsewhere (s3://bucket/runs/mine, or a path) to upload checkpoints to in the background; a machine without
    the run folder resumes from there."""
