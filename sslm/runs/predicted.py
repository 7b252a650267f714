"""Pictures of predictions: a confusion matrix of classes, or predicted against true numbers."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sslm.runs.drawn_text import drawn, fonts_for

MOST_CLASSES = 20
"""Of more classes the most frequent ones are drawn, and all others as one."""
MOST_CHARS = 16


def draw(pairs: Sequence[tuple[Any, Any]], file: Path, title: str) -> None:
    """Draw (true, predicted) pairs of names of classes, or of numbers; there is at least one."""
    is_of_numbers = isinstance(pairs[0][0], float)
    pairs, names = (pairs, []) if is_of_numbers else gathered(pairs)
    with fonts_for([title, *names]):
        figure = Figure(figsize=(7, 6), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(drawn(title), fontsize="medium")
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if is_of_numbers:
            _draw_numbers(axes, np.array(pairs, float))
        else:
            _draw_classes(figure, axes, pairs, names)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=120)


def gathered(pairs: Sequence[tuple[str, str]], most: int = MOST_CLASSES) -> tuple[list[tuple[str, str]], list[str]]:
    """Give rare classes one name together: (pairs, the names that are left).

    >>> gathered([("a", "a"), ("b", "b"), ("c", "d"), ("b", "a")], most=2)
    ([('a', 'a'), ('b', 'b'), ('2 others', '2 others'), ('b', 'a')], ['a', 'b', '2 others'])
    """
    counts = Counter(chain.from_iterable(pairs))
    names = sorted(name for name, _ in counts.most_common(most))
    if len(counts) == len(names):
        return list(pairs), names
    often, rest = set(names), f"{len(counts) - len(names):,} others"
    kept = [(a if a in often else rest, b if b in often else rest) for a, b in pairs]
    return kept, [*names, rest]


def _draw_numbers(axes: Any, pairs: Any) -> None:
    true, predicted = pairs.T
    axes.scatter(predicted, true, s=8, alpha=0.5)
    ends = [float(np.nanmin(pairs)), float(np.nanmax(pairs))]
    axes.plot(ends, ends, color="gray", linewidth=1, linestyle="--")


def _draw_classes(figure: Figure, axes: Any, pairs: Sequence[tuple[Any, Any]], names: Sequence[str]) -> None:
    number = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    for true, predicted in pairs:
        if true in number and predicted in number:
            counts[number[true], number[predicted]] += 1
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class")
    shown = [drawn(name, MOST_CHARS) for name in names]
    axes.set_xticks(range(len(names)), shown, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), shown)
    if len(names) <= MOST_CLASSES // 2:
        for (row, column), count in np.ndenumerate(counts):
            dark = shares[row, column] > 0.5
            axes.text(column, row, f"{count:,.0f}", ha="center", va="center", color="white" if dark else "black")
