"""Which checkpoint is best, by what was measured when it was made."""

from pathlib import Path

from sslm.config import CheckpointConfig
from sslm.runs.checkpoints.folder import damage_of, newest_first, read_state


def metric_of(checkpoint: Path, name: str) -> float | None:
    """What a metric was when the checkpoint was made; None if it was not measured, or while more was to be pruned."""
    try:
        state = read_state(checkpoint)
        if state.get("is_pruning"):
            return None
        value = state["metrics"][name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, float) and value == value else None


def best_checkpoint(folder: Path, when: CheckpointConfig) -> Path | None:
    """Find the best whole checkpoint, of equal ones the newest; None if nothing was measured."""
    sign = 1.0 if when.best_is == "highest" else -1.0
    known = [(metric_of(path, when.best_metric), path) for path in newest_first(folder)]
    measured = [(sign * value, path) for value, path in known if value is not None]
    ranked = sorted(measured, key=lambda pair: -pair[0])  # stable: the newest first
    return next((path for _, path in ranked if not damage_of(path)), None)
