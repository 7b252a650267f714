"""A picture of models: how good each is, over its size."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sslm.runs.drawn_text import drawn, fonts_for


def draw_size_and_quality(points: Sequence[tuple[str, float, float]], metric: str, file: Path) -> None:
    """Draw a point for each model.

    Args:
        points: (name, bytes, figure), the original first: a line stands at its figure.
        metric: what the figure is.
        file: picture to write.
    """
    with fonts_for([name for name, _, _ in points]):
        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(points[0][2], color="gray", linewidth=1, linestyle="--")
        for number, (name, size, value) in enumerate(points):
            axes.scatter(size / 1e6, value, color="gray" if number == 0 else f"C{number - 1}", zorder=3)
            axes.annotate(drawn(name), (size / 1e6, value), xytext=(6, 6), textcoords="offset points")
        axes.set_xlim(left=0, right=1.2 * max(size for _, size, _ in points) / 1e6)
        axes.margins(y=0.2)
        axes.set_xlabel("weights, MB")
        axes.set_ylabel("loss, nats a token" if metric == "loss" else metric)
        axes.ticklabel_format(useOffset=False)
        axes.grid(alpha=0.3)
        figure.savefig(file, dpi=120)
