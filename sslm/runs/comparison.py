"""Runs beside each other, from their metrics.jsonl: what there is to draw, at which place of which axis."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from sslm.runs.folder import RunFolder
from sslm.system.errors import UserError
from sslm.system.files import json_lines

Row = dict[str, Any]
AXES = {"step": "steps", "tokens": "tokens", "hours": "hours of training", "flops": "FLOPs of the model"}
"""What curves can be drawn over, and what stands under them."""
NOISY = {"grad_norm", "tokens_per_second", "mfu", "data_wait"}
"""Metrics of single steps, beside those of `train/`."""
NOT_RUNS = {"checkpoints", "export", "stacks", "stacks.former", "csv", "tensorboard", "wandb"}
"""Folders in which no run is looked for."""


def find_runs(paths: Iterable[Path]) -> list[RunFolder]:
    """Find the runs that paths mean: run folders, or folders with runs at any depth. Each comes once.

    Raises:
        UserError: there is none at or below a path.
    """
    found: dict[Path, RunFolder] = {}
    for path in paths:
        here = runs_below(path)
        if not here:
            why = "no run lies at or below it (a run's folder has metrics.jsonl)" if path.is_dir() else "is no folder"
            raise UserError(f"{path}: {why}; give the --run_dir of a run, or a folder of runs")
        found |= {run.path.resolve(): run for run in here if run.path.resolve() not in found}
    return list(found.values())


def runs_below(path: Path) -> list[RunFolder]:
    """Return the runs at or below a path, by name; links are not followed, and runs have none in them."""
    found = []
    for folder, below, files in os.walk(path):
        is_run = "metrics.jsonl" in files
        found += [RunFolder(Path(folder))] if is_run else []
        below[:] = [] if is_run else sorted(name for name in below if name not in NOT_RUNS)
    return found


def short_names(paths: Sequence[Path]) -> list[str]:
    """Name folders by what tells them apart: without the folders that all of them lie in.

    >>> short_names([Path("/runs/gpt/a"), Path("/runs/gpt/b/first")]), short_names([Path("/runs/a")])
    (['a', 'b/first'], ['a'])
    """
    shared = os.path.commonpath([path.resolve().parent for path in paths])
    return [os.path.relpath(path.resolve(), shared) for path in paths]


def metrics_of(rows: Iterable[Row]) -> list[str]:
    """Return the names of what can be drawn, in the order in which they come up."""
    numbers = (key for row in rows for key, value in row.items() if is_finite(value))
    return [name for name in dict.fromkeys(numbers) if name not in ("step", "flops")]


def is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def place(rows: Sequence[Row], axis: str) -> Callable[[float], float]:
    """Make tokens -> place on an axis (a key of AXES), linear between the run's rows.

    Hours count training at each row's own speed: neither validation nor saving, nor the time between two resumes.

    Raises:
        UserError: the rows don't tell it.
    """
    measured = [row for row in rows if is_finite(row.get({"hours": "tokens_per_second"}.get(axis, axis)))]
    if axis == "hours":
        starts = [0, *(row["tokens"] for row in measured)]
        hours, known = 0.0, [(0, 0.0)]
        for (start, end), row in zip(pairwise(starts), measured, strict=True):
            hours += (end - start) / max(row["tokens_per_second"], 1e-9) / 3600
            known.append((end, hours))
    else:
        known = [(0, 0.0), *((row["tokens"], row[axis]) for row in measured)]
    if len(known) == 1:
        raise UserError(f"no row tells its {axis}")
    import numpy as np

    tokens, places = np.array(known, dtype=float).T
    return lambda at: float(np.interp(at, tokens, places))


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Average exponentially, without a bias towards 0 at the beginning (Kingma & Ba 2014, section 3).

    >>> smoothed([4.0, 4.0, 1.0], 0.5)
    [4.0, 4.0, 2.2857142857142856]
    """
    mean, found = 0.0, []
    for number, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        found.append(mean / (1 - weight**number))
    return found


@dataclass(frozen=True)
class Mark:
    """A step out of the ordinary."""

    step: int
    kind: str
    is_rewind: bool


def marks_of(run: RunFolder) -> list[Mark]:
    """Return a run's anomalies, also those that it went back from, whose rows are gone; none if the file is damaged."""
    try:
        entries = json_lines(run.anomalies, lambda torn: None)
    except UserError:
        return []
    return [
        Mark(entry["step"], str(entry.get("kind", "")), entry.get("action") == "rewind")
        for entry in entries
        if type(entry.get("step")) is int
    ]


@dataclass(frozen=True)
class View:
    """How a comparison is drawn.

    Args:
        metrics: names of what is drawn; those of one quantity (train/loss, val/loss) share a panel.
        over: the axis, a key of AXES.
        smooth: weight of the past in an exponential average, from 0 (none) to below 1.
        log: the axes that are logarithmic: "", "x", "y" or "xy".
    """

    metrics: Sequence[str]
    over: str = "tokens"
    smooth: float = 0.0
    log: str = ""


def draw_comparison(runs: Sequence[RunFolder], view: View, file: Path) -> None:
    """Draw the runs' metrics into a picture, of the format that its suffix names.

    Raises:
        UserError: a run's rows don't tell the axis.
    """
    from sslm.runs.drawn_text import drawn, fonts_for  # brings matplotlib, which takes a second

    names = [drawn(name) for name in short_names([run.path for run in runs])]
    part = file.with_name(f".{file.stem}.tmp{file.suffix}")
    with fonts_for([*names, *view.metrics]):
        _figure(runs, names, view).savefig(part, dpi=110)
    part.replace(file)


def _figure(runs: Sequence[RunFolder], names: Sequence[str], view: View) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter

    from sslm.runs.drawn_text import drawn

    panels = dict.fromkeys(quantity(metric) for metric in view.metrics)
    figure = Figure(figsize=(9, 1.2 + 3.6 * len(panels)), layout="constrained")
    axes = dict(zip(panels, figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0], strict=True))
    for run, color in zip(runs, _colors(len(runs)), strict=True):
        _draw_run(axes, run, color, view)
    for name, panel in axes.items():
        panel.set(ylabel=drawn(name), xscale="log" if "x" in view.log else "linear")
        panel.set(yscale="log" if "y" in view.log else "linear")
        panel.grid(alpha=0.3, which="both")
    panel.set(xlabel=AXES[view.over])
    if "x" not in view.log and view.over != "hours":  # 200m hours would be milli
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    legend = [Line2D([], [], color=color, label=name) for name, color in zip(names, _colors(len(runs)), strict=True)]
    styles = [Line2D([], [], color="gray", label=drawn(metric), **_style(metric)) for metric in view.metrics]
    figure.legend(handles=[*legend, *styles, *_signs(runs)], loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _signs(runs: Sequence[RunFolder]) -> list[Any]:
    from matplotlib.lines import Line2D

    kinds = {mark.is_rewind for run in runs for mark in marks_of(run)}
    return [
        Line2D([], [], color="gray", linestyle="", marker=SIGNS[kind], label="rewind" if kind else "anomaly")
        for kind in sorted(kinds)
    ]


SIGNS = {False: "x", True: "<"}
"""Marker of an anomaly, by whether the run went back."""


def _draw_run(axes: dict[str, Any], run: RunFolder, color: Any, view: View) -> None:
    rows = run.rows()
    try:
        at = place(rows, view.over)
    except UserError as error:
        others = ", ".join(axis for axis in AXES if axis != view.over)
        raise UserError(f"--over {view.over}: {run.path}: {error}; choose among {others}") from None
    for metric in view.metrics:
        points = [(at(row["tokens"]), row[metric]) for row in rows if is_finite(row.get(metric))]
        points = [(x, y) for x, y in points if x > 0 or "x" not in view.log]  # a line from 0 would have no beginning
        xs, ys = [x for x, _ in points], [y for _, y in points]
        panel, style = axes[quantity(metric)], _style(metric)
        if view.smooth and is_noisy(metric):
            panel.plot(xs, ys, color=color, alpha=0.25, linewidth=0.8)
            ys = smoothed(ys, view.smooth)
        panel.plot(xs, ys, color=color, **style)
    steps = [(row["step"], row["tokens"]) for row in rows]
    for mark in marks_of(run):
        x = at(_tokens_at(mark.step, steps))
        for panel in axes.values():
            top = panel.get_xaxis_transform()
            panel.plot([x], [0.97], color=color, marker=SIGNS[mark.is_rewind], linestyle="", transform=top)


def _tokens_at(step: int, steps: Sequence[tuple[int, int]]) -> float:
    """Tokens at a step that may have no row."""
    import numpy as np

    known, tokens = zip((0, 0), *steps, strict=True)
    last_step, last_tokens = steps[-1] if steps else (0, 0)
    beyond = (step - last_step) * last_tokens / last_step if step > last_step > 0 else 0.0
    return float(np.interp(step, known, tokens)) + beyond


def quantity(metric: str) -> str:
    """What a metric measures, whatever it is measured on.

    >>> [quantity(name) for name in ("train/loss", "val/loss", "train/loss/wiki", "lr")]
    ['loss', 'loss', 'loss', 'lr']
    """
    parts = metric.split("/")
    return parts[1] if parts[0] in ("train", "val") and len(parts) > 1 else metric


def is_noisy(metric: str) -> bool:
    """Whether a metric is one of single steps, which smoothing makes readable; a schedule or a count it would bend."""
    return metric in NOISY or metric.startswith("train/")


def _style(metric: str) -> dict[str, Any]:
    is_validation = metric.startswith("val/")
    return {"linestyle": "--", "marker": "o", "markersize": 3} if is_validation else {"linewidth": 1.2}


def _colors(number: int) -> list[Any]:
    from matplotlib import colormaps

    if number <= 10:
        return [colormaps["tab10"](i) for i in range(number)]
    return [colormaps["turbo"](0.05 + 0.9 * i / (number - 1)) for i in range(number)]
