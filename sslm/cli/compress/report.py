"""What came of recipes: a table on the terminal and in compress.md, all figures in compress.json, a picture."""

import json
import math
from pathlib import Path
from typing import Any

from sslm.cli.compress.recipes import Recipe
from sslm.cli.compress.results import Result, Results
from sslm.models.architecture import read_config
from sslm.models.quantized import library_of
from sslm.runs.export import auto_class_of
from sslm.runs.size_and_quality import draw_size_and_quality
from sslm.system.files import write_atomically
from sslm.system.terminal import bytes_in_words, count, print_table, say


def say_table(results: Results) -> None:
    """Print what there is to compare, a row for each model."""
    titles, rows = table(results)
    say()
    print_table(titles, rows, right=range(1, len(titles)), wide=[0])
    say()


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return titles and rows: a model each, the original first."""
    metric = f"{results.metric}, nats/token" if results.metric == "loss" else results.metric
    titles = ["", "weights", "of original", "parameters", "not 0", "in memory", metric, "change", "tokens/s", "memory"]
    return titles, [_row(result, results) for result in results.all]


def _row(result: Result, results: Results) -> list[str]:
    is_original = result is results.original
    return [
        result.name if result.is_kept else f"{result.name} (too much worse)",
        bytes_in_words(result.size),
        "" if is_original else f"{result.size / results.original.size:.3f}",
        count(result.parameters),
        f"{result.nonzero:.1%}",
        "" if result.in_memory is None else f"{result.in_memory:.4f}",
        f"{result.reloaded:.4f}",
        "" if is_original else f"{results.change(result):+.2%}",
        count(result.tokens_per_second),
        bytes_in_words(result.peak_bytes),
    ]


def write_report(results: Results, folder: Path) -> None:
    """Write compress.md, compress.json and compress.png."""
    titles, rows = table(results)
    lines = [titles, ["---", *["---:"] * (len(titles) - 1)], *rows]
    text = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
    write_atomically(folder / "compress.md", f"# {results.model}, made smaller\n\n{text}\n{LEGEND}")
    write_atomically(
        folder / "compress.json", json.dumps(_finite(results.record()), indent=1, ensure_ascii=False) + "\n"
    )
    points = [(result.name, result.size, result.reloaded) for result in results.all]
    draw_size_and_quality(points, results.metric, folder / "compress.png")


LEGEND = """weights: bytes of the weights' files. in memory: the figure before the model was written. The figure itself,
speed and memory are those of a new process that has loaded the folder: tokens of forward passes of 8 rows, without a
head, and the most memory beyond that of the process before.
"""


def write_card(folder: Path, recipe: Recipe, results: Results, result: Result) -> None:
    """Write a README.md that says what the folder is, what it costs, and how it loads."""
    auto_class, library = auto_class_of(folder), library_of(read_config(str(folder), ""))
    write_atomically(
        folder / "README.md",
        f"""---
library_name: transformers
tags: [sslm]
---
# {results.model}, {recipe.name}

Made smaller with sslm {results.versions["sslm"]}: {result.size:,} instead of {results.original.size:,} bytes of
weights; {results.metric} {result.reloaded:.4f} instead of {results.original.reloaded:.4f}.

## Use

    pip install {" ".join(filter(None, ["transformers", library]))}

```python
from transformers import {auto_class}, AutoTokenizer

model = {auto_class}.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```
""",
    )


def _finite(tree: Any) -> Any:
    """Replace numbers that JSON can't have by null, and dataclasses by what they hold."""
    if isinstance(tree, dict):
        return {name: _finite(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
