"""What a rank measures: products of matrices, exchanges with its neighbours, collectives of all ranks."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

WARM_UP, TIMES, TIMES_OF_PRODUCTS = 1, 3, 10
BYTES_OF_LATENCY = 8


class Place(NamedTuple):
    """A rank among others, and where they meet."""

    rank: int
    num_ranks: int
    local_rank: int
    host: str
    port: int

    @property
    def device(self) -> torch.device:
        """The rank's device; a rank that sees but one GPU has that."""
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank % torch.cuda.device_count())


class Sizes(NamedTuple):
    """How much is computed and sent on a kind of device."""

    matrix: int
    """Rows and columns."""
    dtype: torch.dtype
    message: int
    """Bytes."""


SIZES = {"cpu": Sizes(1024, torch.float32, 16 << 20), "cuda": Sizes(8192, torch.bfloat16, 256 << 20)}


def product(place: Place) -> float:
    """Return the FLOP/s of a product of two large square matrices."""
    size, dtype, _ = SIZES[place.device.type]
    matrix = torch.ones(size, size, dtype=dtype, device=place.device)
    return 2 * size**3 / best_seconds(lambda: matrix @ matrix, place.device, TIMES_OF_PRODUCTS)


def connect(place: Place, store: Store, seconds: float) -> None:
    """Make the process group: NCCL on GPUs, Gloo on CPUs, as runs do."""
    is_gpu = place.device.type == "cuda"
    dist.init_process_group(
        "nccl" if is_gpu else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.num_ranks,
        timeout=timedelta(seconds=seconds),
        device_id=place.device if is_gpu else None,  # NCCL connects now, and once for neighbours and collectives
    )
    dist.all_reduce(torch.zeros(1, device=place.device))


def to_neighbours(place: Place) -> dict[int, float]:
    """Send to each neighbour in the ring of ranks and back; return its rank -> bytes/s in one direction."""
    message = torch.zeros(SIZES[place.device.type].message, dtype=torch.uint8, device=place.device)
    found = {}
    for pairs in rounds(place.num_ranks):
        for first, second in pairs:
            if place.rank in (first, second):
                other = second if place.rank == first else first
                ways: list[Callable[[], object]] = [
                    partial(dist.send, message, other),
                    partial(dist.recv, message, other),
                ]
                there_and_back = partial(_in_order, ways if place.rank == first else ways[::-1])
                found[other] = 2 * message.nbytes / best_seconds(there_and_back, place.device)
    return found


def rounds(num_ranks: int) -> Iterator[list[tuple[int, int]]]:
    """Yield the pairs of neighbours in a ring, in rounds in which no rank has two.

    >>> list(rounds(4)), list(rounds(3))
    ([[(0, 1), (2, 3)], [(1, 2), (0, 3)]], [[(0, 1)], [(1, 2)], [(0, 2)]])
    """
    even = [(rank, rank + 1) for rank in range(0, num_ranks - 1, 2)]
    odd = [(rank, rank + 1) for rank in range(1, num_ranks - 1, 2)]
    ends = [(0, num_ranks - 1)] if num_ranks > 2 else []
    if num_ranks % 2 == 0:
        odd, ends = odd + ends, []
    yield from filter(None, (even, odd, ends))


def _in_order(works: list[Callable[[], object]]) -> None:
    for work in works:
        work()


class Speed(NamedTuple):
    """Of a collective."""

    seconds: float
    """For a few bytes: its latency."""
    bytes_per_second: float
    """Bus bandwidth, as nccl-tests define it: what each link has carried, whatever the number of ranks."""


def collectives(place: Place) -> dict[str, Speed]:
    """Measure all-reduce, all-gather and reduce-scatter of the same number of bytes over all ranks."""
    count = SIZES[place.device.type].message // 4 // place.num_ranks * place.num_ranks
    share = (place.num_ranks - 1) / place.num_ranks
    found = {}
    kinds: dict[str, tuple[Callable[[Tensor, Tensor], object], float]] = {
        "all-reduce": (lambda whole, part: dist.all_reduce(whole), 2 * share),
        "all-gather": (dist.all_gather_into_tensor, share),
        "reduce-scatter": (lambda whole, part: dist.reduce_scatter_tensor(part, whole), share),
    }
    for name, (collective, crossings) in kinds.items():
        seconds = []
        for elements in (place.num_ranks * BYTES_OF_LATENCY // 4, count):
            whole = torch.zeros(elements, device=place.device)
            part = torch.zeros(elements // place.num_ranks, device=place.device)
            seconds.append(best_seconds(partial(collective, whole, part), place.device))
        found[name] = Speed(seconds[0], crossings * count * 4 / seconds[1])
    return found


def best_seconds(work: Callable[[], object], device: torch.device, times: int = TIMES) -> float:
    """Return the least time that some work takes, of a few times."""
    seconds = []
    for _ in range(WARM_UP + times):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[WARM_UP:])
