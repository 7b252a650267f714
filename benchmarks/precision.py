"""Losses of one training in fp32, bf16 and each kind of 8-bit floats, side by side; speed says nothing on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/precision.py

The default run's model, data and batches, shorter; the blocks' 8-bit matmuls are computed as a GPU's are defined.
"""

import argparse
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from data import environment, versions
from step import VERSIONS, say
from torch import Tensor

from sslm.cli.parse import parse as parse_training
from sslm.data.module import DataModule
from sslm.models.build import build
from sslm.models.head import LanguageModel
from sslm.objectives.choose import choose_model, choose_objective, open_data
from sslm.parallel.launch import SCALINGS
from sslm.parallel.parallelize import parallelize

PRECISIONS = ("32", "bf16-mixed", *SCALINGS)
LEARNING_RATE, WARMUP = 2e-3, 20
LAST = 20
"""Steps at the end whose mean loss is told."""
HELD_OUT = 4
"""Batches that are held out."""


class Case:
    """The default run's data, and its model with fresh weights."""

    def __init__(self, steps: int, layers: int, seed: int) -> None:
        settings = ["--model.num_hidden_layers", str(layers), "--seed", str(seed), "--batch_size", "8"]
        self.config = parse_training([*settings, "--max_steps", str(steps)])
        self.kind, recipe = choose_objective(self.config)
        self.data: DataModule = open_data(self.config, recipe)
        self.model_config = choose_model(self.config, self.kind, self.data)
        self.train = self._batches(self.data.train_dataloader(), steps)
        self.held_out = self._batches(self.data.val_dataloader(), HELD_OUT)

    @staticmethod
    def _batches(loader: Any, num: int) -> list[dict[str, Tensor]]:
        return [batch["tensors"] for batch in islice(loader, num)]

    def losses(self, precision: str) -> dict[str, float]:
        """Train, and return the mean loss of the last steps and the held-out loss, in nats a token."""
        model = build(self.model_config, self.kind.auto_class, self.config.seed)
        network = LanguageModel(model)
        parallelize(network, model, None, float8=SCALINGS.get(precision))
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)

        def loss_of(batch: dict[str, Tensor]) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32"):
                mean: Tensor = network(**batch).sum() / batch["labels"].numel()
            return mean

        found = []
        for step, batch in enumerate(self.train, 1):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(step / WARMUP, 1.0)
            loss = loss_of(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        with torch.no_grad():
            held_out = sum(loss_of(batch).item() for batch in self.held_out) / len(self.held_out)
        return {"train": sum(found[-LAST:]) / LAST, "held_out": held_out}


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """Means over seeds, and how far each is from bf16-mixed with the same seed: the mean, and the largest."""
    lines = [
        "| `--precision` | last steps | held out | from bf16-mixed, mean | largest |",
        "| --- | --: | --: | --: | --: |",
    ]
    for precision, losses in found.items():
        apart = [one["held_out"] - other["held_out"] for one, other in zip(losses, found["bf16-mixed"], strict=True)]
        train, held_out = (sum(loss[name] for loss in losses) / len(losses) for name in ("train", "held_out"))
        mean, largest = sum(apart) / len(apart), max(apart, key=abs)
        lines.append(f"| `{precision}` | {train:.4f} | {held_out:.4f} | {mean:+.4f} | {largest:+.4f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/precision.py", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200, help="(default: %(default)s)")
    parser.add_argument("--layers", type=int, default=6, help="blocks; the first and the last stay in bf16")
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    options = parser.parse_args(arguments)
    found: dict[str, list[dict[str, float]]] = {precision: [] for precision in PRECISIONS}
    for seed in range(options.seeds):
        case = Case(options.steps, options.layers, seed)
        for precision in PRECISIONS:
            found[precision].append(case.losses(precision))
            say(f"seed {seed}, {precision}: {found[precision][-1]}")
    print(table(found))
    if options.out:
        command = " ".join(["python benchmarks/precision.py", *sys.argv[1:]])
        about = {"command": command, **environment(), "versions": versions(VERSIONS)}
        options.out.write_text(json.dumps({**about, "losses": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
