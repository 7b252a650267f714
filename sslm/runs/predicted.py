"""Pictures of predictions: a confusion matrix of classes, or predicted against true numbers."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from sslm.runs.drawn_text import drawn, fonts_for

MOST_CLASSES = 20
"""Of more classes the most frequent ones are drawn, and all others as one row, with a column of right ones and one of
wrong ones."""
MOST_CHARS = 16


def draw(pairs: Sequence[tuple[Any, Any]], file: Path, title: str) -> None:
    """Draw (true, predicted) pairs of names of classes, or of numbers; there is at least one."""
    numbers = np.array(pairs, float) if isinstance(pairs[0][0], float) else None
    classes = None if numbers is not None else confusion(pairs)
    with fonts_for([title, *(classes.rows if classes else [])]):
        figure = Figure(figsize=(7, 6), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(drawn(title), fontsize="medium")
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if classes is None:
            _draw_numbers(axes, numbers)
        else:
            _draw_classes(figure, axes, classes)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120)


class Confusion(NamedTuple):
    """How often a class was predicted for another, or for itself: what is right stands on the diagonal."""

    counts: Any
    """[rows, columns]"""
    rows: list[str]
    """Names of the true classes."""
    columns: list[str]
    """Names of the predicted ones: the same, or one more if rare ones are drawn together."""


def confusion(pairs: Sequence[tuple[str, str]], most: int = MOST_CLASSES) -> Confusion:
    """Count (true, predicted) pairs; rare classes share a row, and what is predicted of them is right, or wrong.

    >>> found = confusion([("a", "a"), ("c", "c"), ("c", "d"), ("a", "d"), ("b", "a")], most=1)
    >>> found.counts.tolist(), found.rows, found.columns
    ([[1, 0, 1], [1, 1, 1]], ['a', '3 others'], ['a', 'others, right', 'others, wrong'])
    """
    often = Counter(chain.from_iterable(pairs))
    names = sorted(name for name, _ in often.most_common(len(often) if len(often) == most + 1 else most))
    number, num, num_others = {name: i for i, name in enumerate(names)}, len(names), len(often) - len(names)
    rows, columns = [*names], [*names]
    if num_others:
        rows.append(f"{num_others:,} others")
        columns += ["others, right", "others, wrong"]
    counts = np.zeros((len(rows), len(columns)), int)
    for true, predicted in pairs:
        counts[number.get(true, num), number.get(predicted, num + (true != predicted))] += 1
    return Confusion(counts, rows, columns)


def _draw_numbers(axes: Any, pairs: Any) -> None:
    true, predicted = pairs.T
    axes.scatter(predicted, true, s=8, alpha=0.5)
    ends = [float(np.nanmin(pairs)), float(np.nanmax(pairs))]
    axes.plot(ends, ends, color="gray", linewidth=1, linestyle="--")


def _draw_classes(figure: Figure, axes: Any, classes: Confusion) -> None:
    counts = classes.counts
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class")
    rows, columns = ([drawn(name, MOST_CHARS) for name in names] for names in (classes.rows, classes.columns))
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    if len(rows) <= MOST_CLASSES // 2:
        for (row, column), count in np.ndenumerate(counts):
            dark = shares[row, column] > 0.5
            axes.text(column, row, f"{count:,.0f}", ha="center", va="center", color="white" if dark else "black")
