"""How long a step takes on many devices: a model of FLOPs, bytes and latency on paper.

A device computes at the share of its peak that it reaches alone. Collectives are rings: each byte goes once through the
narrowest link, and each of the ring's hops takes `HOP_SECONDS`. Messages of gradients and of sharded weights hide
behind computation as far as it lasts; those of tensor parallelism do not. Not in it: pipelines, data, stragglers.
"""

from typing import NamedTuple

HOP_SECONDS = 5e-6
"""From one device to the next in a ring; fitted to one published table (docs/scale.md)."""
LINK_SHARE = 0.8
"""Share of a link's stated rate that NCCL reaches with large messages."""


class Cluster(NamedTuple):
    """Equal devices in equal nodes."""

    peak: float
    """FLOP/s of a device."""
    link: float
    """Bytes/s that a device sends within its node, as the maker states it."""
    network: float
    """Bytes/s that a device sends to other nodes."""
    per_node: int = 8
    """Devices of a node."""


class Work(NamedTuple):
    """What a step asks of one device if nobody shared its weights."""

    parameters: float
    flops_per_token: float
    micro_batch_tokens: int
    """Tokens of a forward pass of one device; of those that share matrices, of all together."""
    micro_batches: int
    """Forward passes in a step."""
    layers: int
    width: int
    is_recomputed: bool = False
    """Whether each block is computed again, and sends its messages again."""
    gradient_bytes: int = 4
    """Of a gradient that is reduced."""


class StepTime(NamedTuple):
    """Seconds of a step."""

    compute: float
    hidden: float
    """Of messages while others compute."""
    exposed: float
    """Of messages that all wait for."""
    latency: float
    """Of all messages, hidden or not, that part which grows with the number of devices."""

    @property
    def total(self) -> float:
        return self.compute + self.exposed

    @property
    def efficiency(self) -> float:
        """Share of the speed without any message."""
        return self.compute / self.total


def ring_seconds(num_bytes: float, ranks: int, per_node: int, cluster: Cluster) -> tuple[float, float]:
    """Seconds of a ring that gathers or reduces `num_bytes`, and those of them that are latency.

    Args:
        num_bytes: of the whole, which each rank has in the end or had at the beginning.
        ranks: in the ring.
        per_node: of these, in one node; as many of its links to other nodes are used.
    """
    if ranks == 1:
        return 0.0, 0.0
    rate = cluster.link if ranks <= per_node else min(cluster.link, per_node * cluster.network)
    latency = (ranks - 1) * HOP_SECONDS
    return num_bytes * (ranks - 1) / ranks / (LINK_SHARE * rate) + latency, latency


def step_time(
    work: Work, cluster: Cluster, strategy: str, devices: int, mfu: float, tensor_parallel: int = 1
) -> StepTime:
    """Estimate a step.

    Args:
        strategy: ddp, fsdp (weights gathered twice for each micro-batch), or hsdp (inside nodes).
        devices: on all nodes.
        mfu: share of the peak that a device's model FLOPs reach if it waits for nobody.
        tensor_parallel: devices of a node that share each matrix.
    """
    groups = devices // tensor_parallel
    in_node = max(min(cluster.per_node, devices) // tensor_parallel, 1)
    weights, passes = work.parameters / tensor_parallel, work.micro_batches
    tokens = work.micro_batch_tokens * passes
    compute = tokens * work.flops_per_token / tensor_parallel / (cluster.peak * mfu)
    gradients = work.gradient_bytes * weights

    def ring(num_bytes: float, ranks: int) -> tuple[float, float]:
        """In as many messages as there are layers."""
        seconds, latency = ring_seconds(num_bytes, ranks, in_node, cluster)
        return seconds + (work.layers - 1) * latency, work.layers * latency

    if strategy == "ddp":
        rings = [(2, *ring(gradients, groups))]  # reduce, and gather the sums
    elif strategy == "fsdp":
        rings = [(2 * passes, *ring(2 * weights, groups)), (passes, *ring(gradients, groups))]
    else:
        shard, nodes = 1 / in_node, groups // in_node
        across = ring_seconds(gradients * shard, nodes, 1, cluster)
        rings = [(2 * passes, *ring(2 * weights, in_node)), (passes, *ring(gradients, in_node)), (2, *across)]
    messages = sum(times * seconds for times, seconds, _ in rings)
    latency = sum(times * seconds for times, _, seconds in rings)
    behind = compute if strategy != "ddp" else compute * 2 / 3  # gradients come in the backward pass
    exposed = max(messages - behind, messages / work.layers)  # of a layer, nothing hides the last or the first
    activations = 2 * work.micro_batch_tokens * work.width
    each, _ = ring_seconds(activations, tensor_parallel, tensor_parallel, cluster)
    in_layers = (12 if work.is_recomputed else 8) * passes * work.layers * each  # two all-reduces a pass of a layer
    return StepTime(compute, messages - exposed, exposed + in_layers, latency)
