"""Noise in training text: what it costs to make, and what a model that read it loses on noisy and on clean text.

    OMP_NUM_THREADS=1 python benchmarks/augmentation.py losses --out benchmarks/results/augmentation.json
    OMP_NUM_THREADS=1 python benchmarks/augmentation.py costs --out benchmarks/results/augmentation.json

Cost: CPU seconds in which batches of [16, 1024] are made by one process, with each noise and without. Figure: a
small Llama trained on Python's documentation, with noise and without, on as many tokens; then the loss of both on the
held-out windows as they are, with each kind of noise (other errors in other places), and with errors of a kind that
neither has read: a letter becomes any other.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from sslm.config import DataConfig
from sslm.config.batch_sizes import BatchSizes
from sslm.data.corpus import tokenizer as tokenizers
from sslm.data.stream.augmentation.making import augmenters_of
from sslm.data.stream.batches import TrainSteps
from sslm.data.stream.stream import Stream
from sslm.data.stream.streams import Streams, open_streams
from sslm.objectives.causal_lm import CausalLMRecipe

NOISE = "lowercase 0.05, uppercase 0.05, typos 0.05, ocr 0.05"
HELD_OUT = ("lowercase 1", "uppercase 1", "typos 0.2", "ocr 0.2")
COSTS = (
    "token_dropout 0.05",
    "token_dropout 0.05, token_swap 0.05, token_repeat 0.05, token_insert 0.05",
    "crop 0.1, join 0.1",
    "typos 0.01",
    "typos 0.1",
    "ocr 0.1",
    "lowercase 0.1",
    NOISE,
)
SEQ_LEN = 128
MODEL = "--model.hidden_size 64 --model.intermediate_size 192 --model.num_hidden_layers 2 --model.num_attention_heads 2"
OTHER_SEED = 1 << 40
"""Of the noise in what is measured on: none that a model was trained with."""
UNSEEN_SHARE = 0.02
"""Letters that become any other."""


def opened(augment: str | None = None, seq_len: int = SEQ_LEN) -> Streams:
    data = DataConfig(tokenizer="bpe:2048", augment=augment)
    return open_streams(data, CausalLMRecipe(), seq_len=seq_len, batch_size=16)


def seconds_per_token(augment: str | None, batch_size: int, seq_len: int, tokens: int) -> float:
    """CPU seconds for a token of a batch; every batch is another."""
    steps = TrainSteps(opened(augment, seq_len).train, CausalLMRecipe(), BatchSizes.even(batch_size), 0)
    number = tokens // (batch_size * seq_len)
    steps[10_000]  # opens files
    began = time.process_time()
    for step in range(number):
        steps[step]
    return (time.process_time() - began) / (number * batch_size * seq_len)


def costs(tokens: int) -> dict[str, dict[str, float]]:
    plain = statistics.median(seconds_per_token(None, 16, 1024, 10 * tokens) for _ in range(3))
    found = {"none": {"M tokens/s": plain**-1 / 1e6, "ns added": 0.0}}
    for augment in COSTS:
        seconds = statistics.median(seconds_per_token(augment, 16, 1024, tokens) for _ in range(3))
        found[augment] = {"M tokens/s": seconds**-1 / 1e6, "ns added": (seconds - plain) * 1e9}
    return found


def train(run: Path, seed: int, steps: int, augment: str) -> None:
    flags = f"--seed {seed} --max_steps {steps} --val_every {steps} --data.tokenizer bpe:2048 --accelerator cpu {MODEL}"
    command = [sys.executable, "-m", "sslm.train", *flags.split(), "--run_dir", str(run), "--data.augment", augment]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def texts() -> dict[str, NDArray[np.int64]]:
    """The held-out windows, clean, with each kind of noise, and with another: [n, SEQ_LEN + 1] ids."""
    streams = opened()
    val = streams.val
    numbers = val.places_of(0, np.arange(val.num_windows))
    clean = val.read(numbers).rows(slice(None)).tokens
    corpora = [source.corpus for source in val.sources]
    found = {"clean": clean}
    for noise in HELD_OUT:
        [augment] = augmenters_of(DataConfig(augment=noise), corpora, streams.tokenizer, OTHER_SEED)
        noisy = Stream([replace(val.sources[0], augment=augment)], val.mixture, val.window_len, val.vocab_size, False)
        found[noise] = noisy.read(numbers).rows(slice(None)).tokens
    assert streams.tokenizer is not None
    return found | {"other letters": _unseen(clean, streams.tokenizer)}


def _unseen(clean: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    """Put any letter in some letters' place, in the text as a whole."""
    tokenizer, chance = tokenizers.load(name), random.Random(0)
    text = tokenizer.decode(clean[:, :-1].ravel().tolist())
    letters = "abcdefghijklmnopqrstuvwxyz"
    other = "".join(chance.choice(letters) if c.isalpha() and chance.random() < UNSEEN_SHARE else c for c in text)
    ids = np.array(tokenizer.encode(other, add_special_tokens=False), np.int64)
    num = (len(ids) - 1) // SEQ_LEN
    return np.lib.stride_tricks.sliding_window_view(ids, SEQ_LEN + 1)[: num * SEQ_LEN : SEQ_LEN].copy()


@torch.inference_mode()
def loss(run: Path, windows: NDArray[np.int64]) -> float:
    """Nats per token."""
    model = AutoModelForCausalLM.from_pretrained(run / "export").eval()
    total = 0.0
    for rows in torch.from_numpy(windows).split(16):
        logits = model(rows[:, :-1]).logits.float()
        total += F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
    return total / (windows.shape[0] * (windows.shape[1] - 1))


def losses(seeds: int, steps: int) -> dict[str, list[dict[str, float]]]:
    """Losses on each text: of the models trained without noise, then with."""
    held_out = texts()
    found: dict[str, list[dict[str, float]]] = {"none": [], NOISE: []}
    print("| trained with | seed | " + " | ".join(held_out) + " |\n|---|---|" + "--:|" * len(held_out))
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            for number, (augment, of_each) in enumerate(found.items()):
                run = Path(folder) / f"{number}-{seed}"
                train(run, seed, steps, augment)
                of_each.append({name: loss(run, windows) for name, windows in held_out.items()})
                shown = " | ".join(f"{value:.4f}" for value in of_each[-1].values())
                print(f"| {augment} | {seed} | {shown} |", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=["losses", "costs"])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=1 << 19, help="of batches made to measure the cost")
    parser.add_argument("--out", type=Path, help="file to add to")
    options = parser.parse_args()
    found: dict[str, object] = {}
    if options.measure == "costs":
        cost = costs(options.tokens)
        found["costs"] = cost
        print("| noise | M tokens/s | ns a token |\n|---|--:|--:|")
        for augment, of_it in cost.items():
            print(f"| {augment} | {of_it['M tokens/s']:.2f} | {of_it['ns added']:.0f} |")
    else:
        found |= {"steps": options.steps, "losses in nats a token": losses(options.seeds, options.steps)}
    if options.out:
        known = json.loads(options.out.read_text()) if options.out.exists() else {}
        about = {"torch": torch.__version__, "device": "cpu", "threads": torch.get_num_threads()}
        options.out.write_text(json.dumps(known | about | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
