"""8 to 4,096 H100s on paper, for 124M to 70B parameters: the fastest strategy, what limits it, what a checkpoint costs.

    python benchmarks/scale.py --out benchmarks/results/scale.json --picture docs/scale.svg

Beside it, measured here: the host's one small collective a step (gloo), with 2 to 16 processes, and the order of 1e13
tokens. About a minute on two cores.
"""

import argparse
import json
import math
import time
import tracemalloc
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from weak_scaling import TABLES, Model, cluster_of, predicted

from sslm.data.stream.mixture import Mixture, Stage
from sslm.data.stream.order import Order
from sslm.parallel.planning.machines import GPUS
from sslm.parallel.planning.step_time import StepTime, Work, step_time
from sslm.system.terminal import GIB

DEVICES = [8, 32, 128, 512, 1024, 2048, 4096]
MFU, RECOMPUTED = 0.45, 0.75
"""Of a device that waits for nobody (124M: 0.40); its factor if blocks are computed twice."""
STATES, KEPT, KEPT_RECOMPUTED = 16, 34, 2
"""Bytes a parameter: fp32 weights, gradients, two moments. Bytes a token, layer and unit of width that the backward
pass needs (Korthikanti et al. 2022, arXiv:2205.05198), and if blocks are computed twice."""
USABLE = 0.85
"""Share of a device's memory."""
SAVED, DISK, SHARED_DISK, TO_HOST = 12, 2e9, 50e9, 20e9
"""Bytes a parameter in a checkpoint. Bytes/s: a node's own disk, a shared file system in all, a device to its host."""


class Run(NamedTuple):
    """A model and the tokens of its batch."""

    model: Model
    batch_tokens: int


RUNS = {
    "124M": Run(Model(124e6, 12, 768, 1024), 1 << 19),
    "1.3B": Run(Model(1.3e9, 24, 2048, 2048), 1 << 20),
    "7B": Run(Model(6.7e9, 32, 4096, 4096), 1 << 22),
    "13B": Run(Model(13e9, 40, 5120, 4096), 1 << 22),
    "70B": Run(Model(69e9, 80, 8192, 4096), 1 << 24),
}


class Choice(NamedTuple):
    """A way to run it."""

    strategy: str
    tensor_parallel: int
    rows: int
    is_recomputed: bool
    step: StepTime


def choices(run: Run, devices: int) -> Iterator[Choice]:
    """Every way that fits into the memory and whose batch can be shared out."""
    model, cluster = run.model, cluster_of("h100")
    memory = USABLE * (GPUS["h100"].memory or 0) * GIB
    for tp in (1, 2, 4, 8):
        groups = devices // tp
        share = run.batch_tokens // model.seq_len // groups
        for strategy in ("ddp", "hsdp", "fsdp"):
            sharded = {"ddp": 1, "hsdp": 8 // tp, "fsdp": groups}[strategy]
            states = STATES * model.parameters / tp / sharded
            for rows in (1 << n for n in range(7)):
                for is_recomputed in (False, True):
                    kept = (
                        (KEPT_RECOMPUTED if is_recomputed else KEPT) * rows * model.seq_len * model.layers * model.width
                    )
                    if rows > share or share % rows or states + kept / tp > memory:
                        continue
                    work = Work(
                        model.parameters,
                        model.flops_per_token,
                        rows * model.seq_len,
                        share // rows,
                        model.layers,
                        model.width,
                        is_recomputed,
                    )
                    mfu = (0.40 if model.parameters < 1e9 else MFU) * (RECOMPUTED if is_recomputed else 1)
                    step = step_time(work, cluster, strategy, devices, mfu, tp)
                    yield Choice(strategy, tp, rows, is_recomputed, step)


def limit_of(choice: Choice) -> str:
    """Name what keeps it from being faster."""
    step = choice.step
    if step.efficiency > 0.9:
        return "computing"
    return "latency" if step.latency > (step.hidden + step.exposed) / 2 else "bytes"


def on_paper(name: str, devices: int) -> dict[str, Any]:
    """The fastest way, in figures."""
    run = RUNS[name]
    found = min(choices(run, devices), key=lambda choice: choice.step.total, default=None)
    if found is None:
        few = run.batch_tokens // run.model.seq_len < devices // 8
        return {"model": name, "devices": devices, "limit": "too few sequences" if few else "memory"}
    tokens = run.batch_tokens / found.step.total
    strategy = found.strategy if found.tensor_parallel == 1 else f"{found.strategy} + tp {found.tensor_parallel}"
    nodes, saved = devices / 8, SAVED * run.model.parameters
    return {
        "model": name,
        "devices": devices,
        "strategy": strategy,
        "rows": found.rows,
        "recomputed": found.is_recomputed,
        "seconds": found.step.total,
        "mfu": tokens * run.model.flops_per_token / devices / GPUS["h100"].peak,
        "limit": limit_of(found),
        "checkpoint_gb": saved / 1e9,
        "stall_seconds": saved / devices / TO_HOST,
        "disk_seconds": saved / (DISK * nodes),
        "shared_disk_seconds": saved / SHARED_DISK,
    }


# ------------------------------------------------------------------------------------------------ measured here


def side_collective(ranks: int, times: int = 200) -> float:
    """Seconds of the sum of eight whole numbers over processes of this machine, by gloo: the fastest of some."""
    context = get_context("spawn")
    told: Any = context.Queue()
    processes = [context.Process(target=_sum, args=(rank, ranks, times, told)) for rank in range(ranks)]
    for process in processes:
        process.start()
    seconds = float(told.get(timeout=300))
    for process in processes:
        process.join()
    return seconds


def _sum(rank: int, ranks: int, times: int, told: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="tcp://127.0.0.1:29591", rank=rank, world_size=ranks)
    took = []
    for _ in range(times):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(torch.zeros(8, dtype=torch.int64))
        took.append(time.perf_counter() - start)
    if rank == 0:
        told.put(min(took))
    dist.destroy_process_group()


AT_ONCE = 65536
"""Positions that are looked up together."""


def order_of(tokens: float, seq_len: int = 4096, shard_tokens: int = 1 << 27) -> dict[str, float]:
    """Look positions of a corpus up that has so many tokens in four sources, with what memory and how fast."""
    windows = shard_tokens // seq_len
    shares = (8, 4, 2, 1)
    num_shards = [math.ceil(tokens * share / sum(shares) / shard_tokens) for share in shares]
    tracemalloc.start()
    orders = [Order((windows,) * num, (0, n)) for n, num in enumerate(num_shards)]
    mixture = Mixture((Stage(0, shares),))
    end = int(tokens) // seq_len
    seen, took = [], 0.0
    for first in np.linspace(0, end - AT_ONCE, 16).astype(np.int64):
        start = time.perf_counter()
        sources, numbers = mixture.at(first + np.arange(AT_ONCE))
        for source, order in enumerate(orders):
            epochs, shards, places = order.at(numbers[sources == source])
            seen.append(((source * 8 + epochs) * (1 << 24) + shards) * windows + places)
        took += time.perf_counter() - start
    looked_up = np.concatenate(seen)
    assert len(np.unique(looked_up)) == len(looked_up)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "tokens": tokens,
        "shards": sum(num_shards),
        "positions_per_second": len(looked_up) / took,
        "peak_mib": peak / 2**20,
    }


# ------------------------------------------------------------------------------------------------ shown


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """The MFU of each model over devices, and published rows beside what is predicted of them."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in RUNS:
        there = [row for row in rows if row["model"] == name and "mfu" in row]
        left.plot([row["devices"] for row in there], [row["mfu"] for row in there], marker="o", label=name)
    left.set(xscale="log", xticks=DEVICES, xticklabels=map(str, DEVICES), ylim=(0, 0.5))
    left.set(xlabel="H100s", ylabel="MFU", title="On paper: the fastest strategy, batch as it is")
    left.legend(frameon=False)
    for table in TABLES:
        published = [row.speed / table.rows[0].speed for row in table.rows[1:]]
        expected = [speed / table.rows[0].speed for speed in predicted(table)[1:]]
        right.scatter(published, expected, s=18, label=table.name)
    ends = np.array([0.55, 1.1])
    right.plot(ends, ends, color="grey", lw=1)
    right.fill_between(ends, ends * 0.85, ends * 1.15, color="grey", alpha=0.15)
    right.set(xlabel="speed beside the first row's, published", ylabel="predicted", title="Published; grey: 15 %")
    right.legend(frameon=False, fontsize=6)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def show(rows: list[dict[str, Any]]) -> None:
    """Print Markdown tables."""
    print(f"| | {' | '.join(map(str, DEVICES))} |\n|---|{'---|' * len(DEVICES)}")
    for name in RUNS:
        cells = []
        for row in (row for row in rows if row["model"] == name):
            cells.append(f"{row['strategy']}, {row['mfu']:.0%}, {row['limit']}" if "mfu" in row else row["limit"])
        print(f"| {name} | {' | '.join(cells)} |")
    titles = "checkpoint", "held up, 8 / 512 GPUs", "own disks, 8 / 512 GPUs", "shared file system"
    print(f"\n| | {' | '.join(titles)} |\n|---{'|---' * len(titles)}|")
    for name, run in RUNS.items():
        saved = SAVED * run.model.parameters
        held_up = " / ".join(f"{saved / n / TO_HOST:.2g} s" for n in (8, 512))
        own = " / ".join(f"{saved / DISK / n:.3g} s" for n in (1, 64))
        print(f"| {name} | {saved / 1e9:.3g} GB | {held_up} | {own} | {saved / SHARED_DISK:.2g} s |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="file for the figures, JSON")
    parser.add_argument("--picture", type=Path, help="file for the picture, .svg or .png")
    options = parser.parse_args()
    rows = [on_paper(name, devices) for name in RUNS for devices in DEVICES]
    show(rows)
    side = {ranks: side_collective(ranks) for ranks in (2, 4, 8, 16)}
    print("\nside collective, gloo:", ", ".join(f"{ranks} processes {s * 1e6:.0f} µs" for ranks, s in side.items()))
    order = order_of(1e13)
    print("order:", json.dumps(order))
    if options.picture is not None:
        draw(rows, options.picture)
    if options.out is not None:
        tables = [{"name": t.name, "source": t.source, "predicted": predicted(t)} for t in TABLES]
        result = {"on_paper": rows, "published": tables, "side_collective_seconds": side, "order": order}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
