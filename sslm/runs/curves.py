"""curves.png: what a run did, to look at."""

from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def draw_curves(rows: Rows, file: Path, title: str, unigram_loss: float | None = None) -> None:
    """Draw loss, learning rate and throughput over tokens, from the rows of metrics.jsonl.

    Args:
        unigram_loss: held-out loss in nats of a model that knows the targets' frequencies alone.
    """
    from sslm.runs.drawn_text import fonts_for  # brings matplotlib, which takes a second

    part = file.with_name(f".{file.name}.tmp")
    with fonts_for([title]):
        _figure(rows, title, unigram_loss).savefig(part, dpi=110, format="png")
    part.replace(file)


def _figure(rows: Rows, title: str, unigram_loss: float | None) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    from sslm.runs.drawn_text import drawn

    train = [row for row in rows if "train/loss" in row]
    val = [row for row in rows if "val/loss" in row]
    figure = Figure(figsize=(8, 7))
    figure.subplots_adjust(left=0.12, right=0.97, top=0.94, bottom=0.08, hspace=0.12)  # constrained would draw it twice
    loss, rate, speed = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1, 1])
    loss.plot(*_xy(train, "train/loss"), label="training", color="tab:blue", alpha=0.6, linewidth=1)
    loss.plot(*_xy(val, "val/loss"), label="validation", color="tab:orange", marker="o", markersize=4)
    if unigram_loss is not None:
        loss.axhline(unigram_loss, color="gray", linestyle="--", linewidth=1, label="unigram loss")
    loss.set(ylabel="loss (nats/token)", title=drawn(title))
    loss.legend()
    rate.plot(*_xy(train, "lr"), color="tab:green", linewidth=1)
    rate.set(ylabel="learning rate")
    tokens, rates = _xy(train, "tokens_per_second")
    speed.plot(tokens, rates, color="tab:red", linewidth=1)
    speed.set(xlabel="tokens", ylabel="tokens/s", ylim=(0, 1.1 * max(rates, default=1)))
    for in_millions in (speed.xaxis, speed.yaxis):
        in_millions.set_major_formatter(EngFormatter(sep=""))
    for axis in (loss, rate, speed):
        axis.grid(alpha=0.3)
    return figure


def _xy(rows: Rows, key: str) -> tuple[list[float], list[float]]:
    points = [(row["tokens"], row[key]) for row in rows if row.get(key) is not None]
    return [x for x, _ in points], [y for _, y in points]
