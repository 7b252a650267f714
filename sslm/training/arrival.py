"""Numbers that the host is to know of the device, without waiting for it."""

from typing import Any

import torch
from torch import Tensor


class Arrival:
    """A few numbers on their way from the device to the host, which waits only when it asks too early.

    Args:
        values: a vector; what is done to it later does not matter.
    """

    def __init__(self, values: Tensor) -> None:
        self._there: Any = None
        self._values = values
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record()

    def __call__(self) -> list[float]:
        if self._there is not None and not self._there.query():
            self._there.synchronize()
        numbers: list[float] = self._values.tolist()
        return numbers
