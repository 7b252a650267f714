"""The micro-batch size of a run: as asked for, as its folder remembers, or what fits."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sslm.config import Config
from sslm.runs.folder import RunFolder
from sslm.system import ranks
from sslm.system.terminal import say

if TYPE_CHECKING:
    from sslm.parallel.launch import Launch
    from sslm.parallel.planning.budget import Budget


def choose_micro_batch_size(config: Config, run: RunFolder, budget: "Budget", launch: "Launch") -> int | None:
    """Sequences for each forward pass; auto: as the run folder remembers, or what fits. None: all of a device's share.

    Raises:
        UserError: it doesn't fit into memory: by how much, and what would.
    """
    if config.micro_batch_size == "auto" and (
        size := remembered_sizes(run.micro_batch_sizes).get(micro_batch_key(config, budget, launch))
    ):
        return size
    if not ranks.is_first_process():  # the first one has seen, or will, whether it fits
        return None if config.micro_batch_size is None else budget.chosen_size(launch)
    size = budget.micro_batch_size(launch)
    if budget.is_narrow(launch, size):
        say(
            "Warning: this will leave less than a tenth of the memory free; --micro_batch_size auto finds what fits, sslm plan tells what takes "
            "how much"
        )
    return None if config.micro_batch_size is None else size


def micro_batch_key(config: Config, budget: "Budget", launch: "Launch") -> str:
    """What a micro-batch size that was found depends on."""
    asked = (
        f"batch {config.batch_size}",
        config.activation_checkpointing,
        f"compile {config.compile}",
        config.fsdp,
        config.deepspeed,
    )
    return "; ".join(map(str, (budget.machine.device, launch, *asked)))


def remembered_sizes(file: Path) -> dict[str, int]:
    """What holds for -> micro-batch size; empty where nothing sound was written yet."""
    try:
        sizes = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    sound = isinstance(sizes, dict) and all(isinstance(size, int) and size > 0 for size in sizes.values())
    return sizes if sound else {}
