"""What a profiled step spends its time on, in shares and in words.

A device's time is told apart by the operation that asked for it: of a GPU its kernels, of a CPU the operations of the
thread that trains. What no operation accounts for is the host's own: Python, and waiting for other ranks.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from sslm.parallel.planning.machines import rate_in_words

STEP, BETWEEN = "sslm: step", "sslm: between steps"
"""Marks in the trace: a step, and what is done until the next."""
MESSAGES = "communication"
KINDS = {
    "optimizer": r"Optimizer\.|_fused_(adam|sgd)|_foreach_",
    MESSAGES: r"c10d::|nccl|gloo|_c10d_functional::|AllGather|ReduceScatter|AllReduce",
    "attention": r"scaled_dot_product|flash_attention|flex_attention|efficient_attention|varlen_attn",
    "matmuls": r"aten::(mm|addmm|bmm|baddbmm|linear|matmul|_grouped_mm|_scaled_mm|.*conv|.*lstm|.*rnn)|mkldnn_linear",
    "head's loss": r"cross_entropy|CrossEntropy|nll_loss|log_softmax",
    "compiled kernels": r"triton_|cpp_fused|Torch-Compiled Region|CompiledFunction",
}
"""Expressions for operations' names; of an operation and all that called it, the first kind that one of them is."""
OTHERS, HOST = "norms, elementwise, copies", "host, between operations"
WAIT, ROWS = "waiting for data", "rows, validation, saving"
SENDS = re.compile(KINDS[MESSAGES])
IS_OPERATION = re.compile(rf"(?!autograd::|FSDP::)\w+::|{KINDS['compiled kernels']}")
"""What computes: the time of all else (marks of modules, FSDP and optimizers, autograd's nodes) is the host's."""
MOST_NAMES = 8


class Interval(NamedTuple):
    """A stretch of time, in µs."""

    start: float
    end: float


class Shares(NamedTuple):
    """Where the time of some steps went."""

    seconds: float
    """Of a step, from its batch's coming to the next's."""
    parts: dict[str, float]
    """Kind -> share of that time; they add up to 1."""
    names: dict[str, float]
    """Operation -> share, the largest first."""
    hidden: float
    """Share in which ranks sent something while the device computed."""
    matmul_rate: float | None
    """FLOP/s of the matmuls while they ran, or None if there was none."""


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Join intervals that overlap.

    >>> union([Interval(3, 5), Interval(0, 2), Interval(1, 3)])
    [Interval(start=0, end=5)]
    """
    joined: list[Interval] = []
    for start, end in sorted(intervals):
        if joined and start <= joined[-1].end:
            joined[-1] = Interval(joined[-1].start, max(joined[-1].end, end))
        else:
            joined.append(Interval(start, end))
    return joined


def length(intervals: Iterable[Interval]) -> float:
    """Add up intervals that don't overlap."""
    return sum(end - start for start, end in intervals)


def common(a: Iterable[Interval], b: Iterable[Interval]) -> float:
    """How long two sets of intervals overlap.

    >>> common([Interval(0, 4)], [Interval(1, 2), Interval(3, 9)])
    2
    """
    a, b = union(a), union(b)
    return length(a) + length(b) - length(union([*a, *b]))


def shares(events: Sequence[FunctionEvent], waited: float) -> Shares:
    """Work out where the time of the marked steps went.

    Args:
        events: torch's, of one process.
        waited: seconds of waiting for data in all of these steps.
    """
    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    marks = [event for event in on_host if event.name in (STEP, BETWEEN)]
    steps = [event for event in marks if event.name == STEP]
    total, in_steps = length(union(map(_interval, marks))), union(map(_interval, steps))
    operations = [event for event in on_host if IS_OPERATION.match(event.name)]
    kernels = [e for e in events if e.device_type != DeviceType.CPU and not e.is_user_annotation]
    time_of, kind_of = defaultdict[str, float](float), defaultdict[str, float](float)
    of_thread = [event for event in operations if event.thread == steps[0].thread and not event.is_async]
    here = operations if kernels else [event for event in of_thread if common([_interval(event)], in_steps)]
    for event in here:
        if own := event.self_device_time_total if kernels else event.self_cpu_time_total:
            time_of[event.name] += own
            kind_of[kind(event)] += own
    messages = [event for event in kernels or on_host if SENDS.search(event.name)]
    computing = [event for event in kernels or here if not SENDS.search(event.name)]
    sent, busy = union(map(_interval, messages)), union(map(_interval, computing))
    hidden = common(sent, busy)
    kind_of[MESSAGES] = length(sent) - hidden
    kind_of[WAIT], kind_of[ROWS] = waited * 1e6, max(total - length(in_steps) - waited * 1e6, 0.0)
    kind_of[HOST] = max(total - sum(kind_of.values()), 0.0)
    whole = sum(kind_of.values())
    matmuls = [event for event in here if event.flops and kind(event) == "matmuls"]
    took = sum(event.device_time_total if kernels else event.cpu_time_total for event in matmuls)
    return Shares(
        total / 1e6 / len(steps),
        {name: time / whole for name, time in sorted(kind_of.items(), key=_longest) if time},
        {name: time / whole for name, time in sorted(time_of.items(), key=_longest)[:MOST_NAMES]},
        hidden / whole,
        sum(event.flops or 0 for event in matmuls) / took * 1e6 if took else None,
    )


def kind(event: Any) -> str:
    """Find an operation's kind by its name and those of its callers."""
    names, caller = [event.name], event.cpu_parent
    while caller is not None:
        names.append(caller.name)
        caller = caller.cpu_parent
    return next((kind for kind, words in KINDS.items() if any(re.search(words, name) for name in names)), OTHERS)


def _interval(event: FunctionEvent) -> Interval:
    return Interval(event.time_range.start, event.time_range.end)


def _longest(item: tuple[str, float]) -> float:
    return -item[1]


ADVICE = {
    WAIT: (0.05, "--data.num_workers 2, or a corpus prepared beforehand (sslm prepare), on a nearer disk"),
    HOST: (0.2, "larger micro-batches (--micro_batch_size auto), or --compile block: the device waits for the host"),
    MESSAGES: (0.15, "larger micro-batches, or a strategy that shares less (sslm plan)"),
    "optimizer": (0.2, "a larger --batch_size: there would be fewer updates for as many tokens"),
    ROWS: (0.1, "a larger --log_every, --val_every or --checkpoint.every_steps"),
    OTHERS: (0.25, "--compile block, which joins them"),
    "attention": (0.3, "a head size of 64 or 128, and no mask that a kernel can't take (docs/performance.md)"),
}
"""Kind -> from which share on there is something to do about it, and what."""


def in_words(found: Shares, steps: range, ceiling: str) -> str:
    """Write the report."""
    width = max(map(len, found.parts))
    rows = [f"  {name:<{width}}  {share:>4.0%}  {'█' * round(40 * share)}" for name, share in found.parts.items()]
    lines = [f"Steps {steps[0]} to {steps[-1]}: {found.seconds:.3g} s each. The time goes to:", *map(str.rstrip, rows)]
    if found.hidden >= 0.01:
        lines.append(f"Beside computing, ranks sent each other something in {found.hidden:.0%} of the time.")
    names = ", ".join(f"{name} {share:.0%}" for name, share in found.names.items() if share >= 0.01)
    lines.append(f"The longest operations: {names}.")
    if found.matmul_rate is not None:
        lines.append(f"While they run, matmuls reach {rate_in_words(found.matmul_rate)}; the ceiling is {ceiling}.")
    advice = [(share, name) for name, share in found.parts.items() if name in ADVICE and share >= ADVICE[name][0]]
    lines += [f"{name.capitalize()} takes {share:.0%}: {ADVICE[name][1]}." for share, name in sorted(advice)[::-1]]
    if not advice:
        lines.append("Nothing stands out that a setting would change.")
    return "\n".join(lines)
