"""Dropout that depends on a position alone: random generators are seeded before each pass."""

import torch


def seed_dropout(device: torch.device, seed: int) -> None:
    """Seed the generators that a forward pass on `device` draws from, as torch.manual_seed would.

    That one formats a stack trace for each kind of device that is not in use: about half a millisecond a call.

    Args:
        seed: 64 bits, unsigned.
    """
    torch.default_generator.manual_seed(seed)  # on GPUs too: layerdrop draws on the CPU
    if device.type == "cuda":
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
