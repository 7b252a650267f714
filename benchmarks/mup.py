"""muP: whether activations move alike, and whether the best rate stays, when a model becomes wider.

    OMP_NUM_THREADS=1 python benchmarks/mup.py --out benchmarks/results/mup.json --picture docs/mup.png

Small llamas of two layers on Python's documentation, with and without `--optim.mup`. Left: how far three steps of AdamW
move the last block's input and the logits (root mean square), over the width. Right: the loss after some steps, over
the learning rate, a line for each width.
"""

import argparse
import json
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from sslm.config import OptimConfig
from sslm.data.corpus.embedded import embedded_documents
from sslm.data.corpus.tokenizer_training import train_bpe
from sslm.models.build import build
from sslm.training import mup
from sslm.training.optimizers.build import build_optimizer
from sslm.training.optimizers.clipping import clipping_scale, gradient_norm
from sslm.training.optimizers.groups import set_learning_rate

BASE, VOCABULARY, LENGTH, ROWS = 32, 512, 64, 16
WIDTHS, RATES = (32, 64, 128, 256), tuple(2.0**power for power in range(-9, -2))
"""Widths of the coordinate check; the loss is that of the first three."""


def llama(width: int, is_scaled: bool) -> tuple[PreTrainedModel, dict[Any, float] | None]:
    """A model, and what its rates are multiplied by; heads have 16 numbers whatever the width."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": width // 16, "num_key_value_heads": width // 16}
    model = build(LlamaConfig(**sizes, **heads), "AutoModelForCausalLM", 0)
    if not is_scaled:
        return model, None
    mup.scale_first_weights(model, BASE)
    return model, mup.rates(model, BASE, "adamw")


def batches(number: int) -> Tensor:
    """[number, ROWS, LENGTH] ids of the documentation, in an order of their own."""
    pieces = list(islice(embedded_documents(), 2000))
    tokenizer = train_bpe(pieces, VOCABULARY).backend_tokenizer
    ids = torch.tensor([i for text, _ in pieces for i in tokenizer.encode(text).ids])
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: number * ROWS]
    return rows[chosen].view(number, ROWS, LENGTH)


def losses(model: PreTrainedModel, rates: Any, lr: float, data: Tensor) -> list[float]:
    """Loss of each batch before its step; linear decay, clipped at 1."""
    optimizer, found = build_optimizer(model, OptimConfig(lr=lr), rates=rates), []
    for number, ids in enumerate(data):
        set_learning_rate(optimizer.param_groups, lr * min(1, (number + 1) / 10) * (1 - number / len(data)))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.grad_scale = clipping_scale(gradient_norm(optimizer.parameters()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def moved(width: int, is_scaled: bool, data: Tensor) -> list[float]:
    """How far three steps move the last block's input and the logits."""
    model, rates = llama(width, is_scaled)

    def activations() -> list[Tensor]:
        with torch.no_grad():
            found = model(input_ids=data[0], output_hidden_states=True)
        return [found.hidden_states[-2], found.logits]

    before = activations()
    losses(model, rates, 2.0**-7, data[:3])
    return [(now - was).square().mean().sqrt().item() for now, was in zip(activations(), before, strict=True)]


def draw(found: dict[str, Any], file: Path) -> None:
    """Draw the coordinate check and the losses, with and without."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="col")
    for row, kind in zip(axes, ("plain", "mup"), strict=True):
        title = "as transformers draws them" if kind == "plain" else "--optim.mup 32"
        for number, name in enumerate(("last block's input", "logits")):
            row[0].plot(WIDTHS, [found[kind]["moved"][str(w)][number] for w in WIDTHS], marker="o", label=name)
        row[0].set(xscale="log", yscale="log", ylabel="change in three steps", title=title)
        row[0].set_xticks(WIDTHS, [str(width) for width in WIDTHS])
        row[0].xaxis.set_minor_locator(NullLocator())
        for width in WIDTHS[:3]:
            row[1].plot(
                RATES, [found[kind]["losses"][str(width)][str(r)] for r in RATES], marker="o", label=f"width {width}"
            )
        row[1].set(xscale="log", ylabel="loss (nats/token)", title=title)
        for axis in row:
            axis.legend()
            axis.grid(alpha=0.3)
    axes[1][0].set_xlabel("width")
    axes[1][1].set_xlabel("learning rate")
    figure.savefig(file, dpi=80)


def main() -> int:
    """Measure, say what was found, keep it, draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--picture", type=Path, help="PNG file to draw")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    data, found = batches(options.steps), {}
    for kind in ("plain", "mup"):
        is_scaled = kind == "mup"
        moves = {str(width): moved(width, is_scaled, data) for width in WIDTHS}
        of_width: dict[str, dict[str, float]] = {}
        for width in WIDTHS[:3]:
            last = {str(lr): losses(*llama(width, is_scaled), lr, data)[-10:] for lr in RATES}
            of_width[str(width)] = {lr: round(sum(ends) / len(ends), 4) for lr, ends in last.items()}
            best = min(of_width[str(width)], key=of_width[str(width)].__getitem__)
            print(f"{kind}, width {width}: best rate {float(best):g}, {of_width[str(width)]}", flush=True)
        found[kind] = {"moved": moves, "losses": of_width}
        print(f"{kind}: moved {moves}", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    if options.picture is not None:
        draw(found, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
