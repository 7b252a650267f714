"""A language model's head and loss: time and peak memory of ways to compute them, each in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/loss.py --out benchmarks/results/loss.json

Forward and backward of a linear layer and cross-entropy: with all logits at once (F.cross_entropy), some tokens at a
time as sslm does, and by F.linear_cross_entropy (torch 2.13). On a GPU in bf16, on a CPU in fp32; CPU seconds, which
other work on the machine changes least. What is counted is the memory beyond inputs and their gradients.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslm.models.linear_cross_entropy import Loss, linear_cross_entropy

VOCABULARIES = (32_768, 131_072, 262_144)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(hidden, weight).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, weight, None, targets, Loss(len(weight))).rows.sum()


def torchs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.linear_cross_entropy(  # type: ignore[attr-defined, no-any-return]
        hidden.flatten(0, 1),
        weight,
        targets.flatten(),
        reduction="sum",
        options=nn.LinearCrossEntropyOptions(),  # type: ignore[attr-defined]
    )


WAYS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"plain": plain, "sslm": chunked}
if hasattr(F, "linear_cross_entropy"):
    WAYS["F.linear_cross_entropy"] = torchs


def measure(way: str, vocab_size: int, rows: int, seq_len: int, width: int, repeats: int) -> dict[str, float]:
    """Return CPU seconds (of a GPU: seconds) and bytes of one way, in this process."""
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(rows, seq_len, width, device=device, generator=generator).to(dtype).requires_grad_()
    weight = (0.02 * torch.randn(vocab_size, width, device=device, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(vocab_size, (rows, seq_len), device=device, generator=generator)
    hidden.grad, weight.grad = torch.ones_like(hidden), torch.ones_like(weight)  # whose pages are there, too
    clock = time.perf_counter if on_gpu else time.process_time
    before, taken, loss = _memory(), [], torch.zeros(())
    for _ in range(repeats):
        start = clock()
        loss = WAYS[way](hidden, weight, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        if on_gpu:
            torch.cuda.synchronize()
        taken.append(clock() - start)
    return {"seconds": statistics.median(taken), "bytes": _memory() - before, "loss": loss.item()}


def _memory() -> int:
    """Return the peak so far, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--seq_len", type=int, default=1024)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help="measure this one alone, in this process")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sizes = options.rows, options.seq_len, options.width, options.repeats
    if options.way:
        print(json.dumps(measure(options.way, options.vocabularies[0], *sizes)))
        return
    results: dict[str, dict[str, dict[str, float]]] = {}
    print("| vocabulary | way | seconds | of plain's | MiB |\n|---|---|---|---|---|")
    for vocab_size in options.vocabularies:
        found = results[str(vocab_size)] = {}
        for way in WAYS:
            flags = [f"--{name}={getattr(options, name)}" for name in ("rows", "seq_len", "width", "repeats")]
            command = [sys.executable, __file__, "--way", way, "--vocabularies", str(vocab_size), *flags]
            found[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            seconds, size = found[way]["seconds"], found[way]["bytes"]
            ratio = seconds / found["plain"]["seconds"]
            print(f"| {vocab_size:,} | {way} | {seconds:.2f} | {ratio:.2f} | {size / 2**20:,.0f} |", flush=True)
    if options.out:
        about = {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        }
        asked = {"tokens": options.rows * options.seq_len, "width": options.width, "repeats": options.repeats}
        options.out.write_text(json.dumps({**about, **asked, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
