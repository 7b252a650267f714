"""What was measured, as a table and as JSON."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sslm.evaluation.scores import Model, Results, Scores, in_words
from sslm.system.files import write_atomically
from sslm.system.terminal import console, is_watched, print_table, say

UNITS = {
    "loss": "loss, nats/token",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "pseudo_perplexity": "pseudo-perplexity",
    "pseudo_perplexity_within_word": "… within word, l2r",
    "span_exact_match": "exact spans",
    "contaminated": "in training text",
}
"""Name of a figure in JSON -> what the table calls it."""


WIDE = 200
"""Columns of a table that nobody watches."""


def say_results(results: Results) -> None:
    """Print how it was measured, and a table with a column for each model."""
    names = _labels([model.name for model in results.models])
    texts = [scores for of_model in results.scores for scores in of_model if "documents" in scores.counts]
    if texts:
        _say_conventions(results, names)
    if any(scores.counts["documents"] == 1 for scores in texts):
        between = "--document_separator '\\n\\s*\\n'"
        say(f"One document has no standard error; if a file holds several, say what stands between them: {between}")
    if harness := results.versions.get("lm_eval"):
        say(
            f"Tasks: by lm-evaluation-harness {harness}; of an answer to a masked model each token is hidden by itself."
        )
    for some in _fitting(names, results.scores, console().width if is_watched() else WIDE):
        say()
        print_table(["data", "", *names[some]], _rows(results.scores[some]), right=range(2, 2 + len(names)), wide=[0])


def _fitting(names: list[str], scores: list[list[Scores]], width: int) -> Iterator[slice]:
    """Divide models among tables that are at most as wide as the terminal, a model at least in each."""
    start = 0
    while start < len(names):
        end = start + 1
        while end < len(names) and _table_width(names[start : end + 1], scores[start : end + 1]) <= width:
            end += 1
        yield slice(start, end)
        start = end


def _table_width(names: list[str], scores: list[list[Scores]]) -> int:
    columns = list(zip(["data", "", *names], *_rows(scores), strict=True))
    return sum(max(map(len, column)) for column in columns) + 2 * len(columns)


def _say_conventions(results: Results, names: list[str]) -> None:
    for convention in dict.fromkeys(model.convention for model in results.models):
        who = [name for name, model in zip(names, results.models, strict=True) if model.convention == convention]
        say(f"{'Measured' if len(who) == len(names) else ', '.join(who)}: {convention}.")
    if len({model.tokenizer_sha256 for model in results.models}) > 1:
        say("The models' tokenizers differ: compare bits per byte, not what is counted by token.")


def _rows(columns: list[list[Scores]]) -> list[list[str]]:
    rows = []
    for data in dict.fromkeys(scores.data for column in columns for scores in column):
        of_data = [next((scores for scores in column if scores.data == data), None) for column in columns]
        title = data
        for name in dict.fromkeys(name for scores in of_data if scores for name in scores.figures):
            cells = [scores.figures.get(name) if scores else None for scores in of_data]
            rows.append([title, UNITS.get(name, name), *("" if cell is None else in_words(cell) for cell in cells)])
            title = ""
        for name in dict.fromkeys(name for scores in of_data if scores for name in scores.counts):
            numbers = [scores.counts.get(name) if scores else None for scores in of_data]
            rows.append(["", name, *("" if number is None else f"{number:,}" for number in numbers)])
    return rows


def _labels(names: list[str]) -> list[str]:
    """Shorten the models' names to their last two parts, if they still differ.

    >>> _labels(["/home/me/runs/a/checkpoints/step-000100", "/home/me/runs/b/export", "gpt2"])
    ['a/step-000100', 'runs/b', 'gpt2']
    """
    parts = [[part for part in Path(name).parts if part not in ("checkpoints", "export")] for name in names]
    short = ["/".join(part[-2:]) for part in parts]
    return [one if short.count(one) == 1 else name for one, name in zip(short, names, strict=True)]


def write_results(results: Results, out: Path) -> None:
    """Write everything as JSON; what is not a finite number is null."""
    of_models = zip(results.models, results.scores, strict=True)
    tree = {
        "versions": results.versions,
        "device": results.device,
        "models": [_model(model, scores) for model, scores in of_models],
    }
    write_atomically(out, json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _model(model: Model, scores: list[Scores]) -> dict[str, Any]:
    return {**asdict(model), "scores": [_scores(one) for one in scores]}


def _scores(scores: Scores) -> dict[str, Any]:
    figures = {name: {"value": _finite(f.value), "stderr": _finite(f.stderr)} for name, f in scores.figures.items()}
    return {**asdict(scores), "figures": figures}


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
