"""The micro-batch size of a run: as asked for, as its folder remembers, or what fits."""

import json
from pathlib import Path

from sslm.config import Config
from sslm.parallel.launch import Launch
from sslm.parallel.planning.budget import Budget
from sslm.runs.folder import RunFolder
from sslm.system import ranks
from sslm.system.terminal import say


def choose_micro_batch_size(config: Config, run: RunFolder, budget: Budget, launch: Launch) -> int | None:
    """Return the sequences of each forward pass, or None for all that a device works on.

    For `auto` it is what the run folder remembers, else the most that fit. While batches grow it stays the same.

    Raises:
        UserError: the size doesn't fit into memory; the message says by how much, and what would.
    """
    remembered = remembered_sizes(run.micro_batch_sizes).get(micro_batch_key(config, budget, launch))
    if config.micro_batch_size == "auto" and remembered:
        return remembered
    is_one_size = len(config.batch_ramp.stages) == launch.num_stages == 1
    takes_all = config.micro_batch_size is None and is_one_size
    if not ranks.is_first_process():  # the first one has seen, or will, whether it fits
        return None if takes_all else budget.chosen_size(launch)
    size = budget.micro_batch_size(launch)
    if budget.is_narrow(launch, size):
        say(
            "Warning: this will leave less than a tenth of the memory free; --micro_batch_size auto finds what fits, "
            "sslm plan tells what takes how much"
        )
    return None if takes_all else size


def micro_batch_key(config: Config, budget: Budget, launch: Launch) -> str:
    """Return everything that a micro-batch size depends on, in words, as the key to remember it by."""
    asked = f"batch {config.batch_size}", config.activation_checkpointing
    return "; ".join(map(str, (budget.machine.device, launch, *asked, config.fsdp, config.deepspeed)))


def remembered_sizes(file: Path) -> dict[str, int]:
    """Read the micro-batch sizes by their keys; none if nothing sound was written yet."""
    try:
        sizes = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    sound = isinstance(sizes, dict) and all(isinstance(size, int) and size > 0 for size in sizes.values())
    return sizes if sound else {}
