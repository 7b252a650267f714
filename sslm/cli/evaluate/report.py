"""What was measured, as a table and as JSON."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sslm.cli.evaluate.measure import Model, Results, Scores
from sslm.models.standard_error import Estimate
from sslm.system.files import write_atomically
from sslm.system.terminal import print_table, say

UNITS = {
    "loss": "loss, nats/token",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "pseudo_perplexity": "pseudo-perplexity",
    "pseudo_perplexity_within_word": "… within word, l2r",
    "span_exact_match": "exact spans",
}
"""Name of a figure in JSON -> what the table calls it."""
COUNTS = ("documents", "tokens", "bytes")
MODELS_A_TABLE = 3


def say_results(results: Results) -> None:
    """Print how it was measured, and a table with a column for each model."""
    names = _labels([model.name for model in results.models])
    for convention in dict.fromkeys(model.convention for model in results.models):
        who = [name for name, model in zip(names, results.models, strict=True) if model.convention == convention]
        of_all = len(who) == len(names)
        say(f"{'Measured' if of_all else ', '.join(who)}: {convention}.")
    if len({model.tokenizer_sha256 for model in results.models}) > 1:
        say("The models' tokenizers differ: compare bits per byte, not what is counted by token.")
    if any(math.isnan(figure.stderr) for scores in results.scores for one in scores for figure in one.figures.values()):
        say(
            "One document has no standard error; if a file holds several, say what stands between them: "
            "--document_separator '\\n\\s*\\n'"
        )
    say()
    for start in range(0, len(names), MODELS_A_TABLE):
        some = slice(start, start + MODELS_A_TABLE)
        rows = _rows(results.scores[some])
        print_table(["data", "", *names[some]], rows, right=range(2, 2 + len(names[some])), wide=[0])


def _rows(columns: list[list[Scores]]) -> list[list[str]]:
    rows = []
    for data in dict.fromkeys(scores.data for column in columns for scores in column):
        of_data = [next((scores for scores in column if scores.data == data), None) for column in columns]
        title = data
        for name, unit in UNITS.items():
            cells = [scores.figures.get(name) if scores else None for scores in of_data]
            if any(cells):
                rows.append([title, unit, *("" if cell is None else in_words(cell) for cell in cells)])
                title = ""
        for name in COUNTS:
            numbers = [getattr(scores, name) if scores else None for scores in of_data]
            rows.append(["", name, *("" if number is None else f"{number:,}" for number in numbers)])
    return rows


def in_words(figure: Estimate) -> str:
    """Write a figure and its standard error, to two digits of the error.

    >>> in_words(Estimate(3.14159, 0.0123)), in_words(Estimate(30.2, float("nan")))
    ('3.142 ± 0.012', '30.2000')
    """
    value, error = figure
    if not math.isfinite(value):
        return "not finite"
    if math.isnan(error):
        return f"{value:,.4f}"
    digits = 4 if error == 0 else min(max(1 - math.floor(math.log10(error)), 0), 6)
    return f"{value:,.{digits}f} ± {error:,.{digits}f}"


def _labels(names: list[str]) -> list[str]:
    """Shorten the models' names to their last two parts, if they still differ."""
    short = ["/".join(Path(name).parts[-2:]) for name in names]
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
