"""Draw how well a pretrained network does beside random weights, the more labelled rows it has read.

python examples/compare.py runs/encoder runs/decoder runs/t5 --out compared.png
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt


def accuracy(row: dict[str, float]) -> float:
    """Share of right labels: a model that writes them has it as exact match, and accuracy is that of their tokens."""
    return row.get("val/exact_match", row["val/accuracy"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="what sentiment.sh made")
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.png)")
    parser.add_argument("--batch_size", type=int, default=64, help="labelled rows of a step (default: %(default)s)")
    options = parser.parse_args(arguments)
    figure, panels = plt.subplots(1, len(options.folders), figsize=(4 * len(options.folders), 3.2), squeeze=False)
    for panel, folder in zip(panels[0], options.folders, strict=True):
        for name, label in (("finetuned", "pretrained"), ("from_scratch", "random weights")):
            rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
            points = [(row["step"] * options.batch_size, accuracy(row)) for row in rows if "val/accuracy" in row]
            panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        panel.set(title=folder.name, xlabel="labelled rows read", ylabel="accuracy, held out")
        panel.set_ylim(bottom=0.45)  # a model that writes labels begins at 0, where nothing is to be seen
        panel.grid(alpha=0.3)
        panel.legend()
    figure.tight_layout()
    figure.savefig(options.out, dpi=100)


if __name__ == "__main__":
    main()
