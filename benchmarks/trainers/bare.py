"""A loop of a few lines: transformers' model and its loss, batches that are ready; with two processes, under DDP."""

import itertools
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from trainers import MAX_NORM, adamw, load_batches, load_model


def train(task: dict[str, Any], turns: Any) -> None:
    for rank in range(1, task["processes"]):
        torch.multiprocessing.get_context("spawn").Process(target=loop, args=(task, rank), daemon=True).start()
    loop(task, 0, turns)


def loop(task: dict[str, Any], rank: int, turns: Any = None) -> None:
    model = load_model(task)
    network: Any = model
    if (processes := task["processes"]) > 1:
        store = Path(task["folder"]) / "rendezvous"
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
        network = DistributedDataParallel(model)
    batches = [{name: rows.chunk(processes)[rank] for name, rows in batch.items()} for batch in load_batches(task)]
    optimizer = adamw(model)
    if turns is not None:
        turns.take()
    for step, batch in enumerate(itertools.cycle(batches), 1):
        loss = network(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        if step % task["log_every"] == 0:
            mean = loss.detach() / processes
            if processes > 1:
                dist.all_reduce(mean)
            if turns is not None:
                turns.losses[step] = float(mean)
