"""Expert parallelism: devices share each block's experts, and tokens travel to the experts that they are sent to.

As in GShard (Lepikhin et al. 2020, arXiv:2006.16668) a device has an equal part of the experts of each block; two
all-to-alls bring tokens to their experts and back. No token is dropped. If there are more devices than share a block's
experts, several have the same ones, and FSDP2 cuts these along their rows.
"""

import copy
import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import PreTrainedModel

from sslm.system.errors import UserError

EXAMPLES = ("mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3")
"""Architectures whose experts can be shared; there are more."""


def experts_of(model: nn.Module) -> list[Any]:
    """List the modules, one of a block, whose parameters hold one matrix (or bias) of each of their experts."""
    return [
        module
        for module in model.modules()
        if (number := getattr(module, "num_experts", None)) is not None
        and any(weight.ndim == 3 for weight in module.parameters(recurse=False))
        and all(weight.shape[:1] == (number,) for weight in module.parameters())
    ]


def share_experts(model: PreTrainedModel, world: DeviceMesh, size: int, replicas: int = 1, **how: Any) -> None:
    """Leave each rank its part of the experts, in place; all may be on the meta device.

    Args:
        world: all devices.
        size: devices that have all experts among them.
        replicas: groups of devices that hold all of the weights among them.
        how: FSDP2's settings.
    """
    names, copies = ("replicas", "copies", "experts"), world.size() // (replicas * size)
    mesh = init_device_mesh(world.device_type, (replicas, copies, size), mesh_dim_names=names)
    shards = mesh["replicas", "copies"] if replicas > 1 else mesh["copies"]
    for module in experts_of(model):
        for name, weight in module.named_parameters(recurse=False):
            part = distribute_tensor(weight.detach(), mesh["experts"], [Shard(0)], src_data_rank=None)
            module._parameters[name] = nn.Parameter(part, weight.requires_grad)
        module.forward = SharedExperts(module, mesh["experts"].get_group())
        fully_shard(module, mesh=shards, shard_placement_fn=_rows, **how)


def _rows(weight: nn.Parameter) -> Shard:
    """What FSDP2 cuts: there may be fewer experts than devices."""
    return Shard(1)


class SharedExperts:
    """The forward pass of a block's experts, of which this rank has a part; all ranks call it together.

    Args:
        group: None sends nothing: one rank has all experts.
    """

    def __init__(self, experts: Any, group: dist.ProcessGroup | None) -> None:
        self.experts, self.forward, self.group = experts, experts.forward, group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.num_all = experts.num_experts
        experts.num_experts //= self.size

    def __call__(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Send each token to its experts, and sum what they make of it.

        Args:
            hidden: [tokens, width]
            chosen: [tokens, k] numbers of the experts that a token is sent to.
            weights: [tokens, k] of their outputs.

        Returns:
            [tokens, width]
        """
        numbers, order = chosen.flatten().sort(stable=True)
        counts = chosen.new_zeros(self.num_all).index_add_(0, numbers, torch.ones_like(numbers)).view(self.size, -1)
        arriving = torch.empty_like(counts)  # [ranks, experts here] tokens that come from each
        self._exchange(arriving, counts)
        received, sent = arriving.sum(1), counts.sum(1)
        there, back = received.tolist(), sent.tolist()  # a GPU's host waits here
        each = _cast(hidden)[order // chosen.shape[1]]
        tokens: Tensor = _Exchange.apply(each, self, there, back, self.size)  # type: ignore[no-untyped-call]
        outputs = self._work(tokens, arriving)
        outputs = _Exchange.apply(outputs, self, back, there, 1 / self.size)  # type: ignore[no-untyped-call]
        outputs = outputs[order.argsort()].view(*weights.shape, -1)
        summed: Tensor = (outputs * weights.unsqueeze(-1)).sum(1).to(hidden.dtype)
        return summed

    def _work(self, tokens: Tensor, arriving: Tensor) -> Tensor:
        """[arrived, width] -> the same, of the experts here."""
        numbers = torch.arange(self.experts.num_experts, device=tokens.device).repeat(self.size)
        numbers = numbers.repeat_interleave(arriving.flatten(), output_size=len(tokens))
        if is_idle := not len(tokens):  # FSDP2 waits for a gradient of these experts, too
            tokens, numbers = tokens.sum(0, keepdim=True), numbers.new_zeros(1)
        kept: dict[str, Any] = dict(self.experts._parameters)
        here = {name: weight.to_local() if isinstance(weight, DTensor) else weight for name, weight in kept.items()}
        self.experts._parameters.update(here)
        try:
            outputs: Tensor = self.forward(tokens, numbers.unsqueeze(1), tokens.new_ones(len(tokens), 1))
        finally:
            self.experts._parameters.update(kept)
        return outputs[:0] if is_idle else outputs

    def _exchange(
        self, arriving: Tensor, leaving: Tensor, received: list[int] | None = None, sent: list[int] | None = None
    ) -> None:
        """Fill `arriving`, so many rows from each rank, with what the ranks send each other; None: equally many."""
        if self.group is None:
            arriving.copy_(leaving)
        else:
            dist.all_to_all_single(arriving, leaving.contiguous(), received, sent, group=self.group)


def _cast(hidden: Tensor) -> Tensor:
    """Tokens travel in the dtype in which they are multiplied."""
    kind = hidden.device.type
    return hidden.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else hidden


class _Exchange(torch.autograd.Function):
    """Rows between ranks; their gradient goes the other way.

    The gradient of an expert is a sum over all ranks' tokens, but a mean over ranks is wanted, as of all other weights.
    So what comes to the experts is divided by the number of ranks, and multiplied when it has passed them: `factor`.
    """

    @staticmethod
    def forward(
        ctx: Any, leaving: Tensor, experts: SharedExperts, received: list[int], sent: list[int], factor: float
    ) -> Tensor:
        ctx.experts, ctx.sizes, ctx.factor = experts, (sent, received), factor
        arriving = leaving.new_empty(sum(received), leaving.shape[1])
        experts._exchange(arriving, leaving, received, sent)
        return arriving

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        back = gradient.new_empty(sum(ctx.sizes[0]), gradient.shape[1])
        ctx.experts._exchange(back, gradient, *ctx.sizes)
        return back * ctx.factor, None, None, None, None


def check_expert_parallel(model: PreTrainedModel, devices: int, size: int) -> None:
    """Refuse a model whose experts so many devices can't share.

    Args:
        devices: that hold all of the weights among them.

    Raises:
        UserError: it has no experts that are called as those of transformers' mixtures are, or `size` does not fit.
    """
    flag, kind, modules = f"--expert_parallel_size {size}", model.config.model_type, experts_of(model)
    if not modules or not suits_shared_experts(modules[0], getattr(model.config, "hidden_size", 0)):
        what = f"not of {kind}: it has no experts, or none that can be told apart"
        raise UserError(f"{flag}: {what}; {', '.join(EXAMPLES)} and others have them")
    if devices % size:
        raise UserError(f"{flag}: does not fit {devices} devices that share the weights; give a divisor of that")
    if number := next((m.num_experts for m in modules if m.num_experts % size), None):
        fitting = [str(n) for n in range(2, number + 1) if number % n == 0 and devices % n == 0]
        instead = f"what would: {', '.join(fitting)}" if fitting else "leave it out"
        raise UserError(f"{flag}: does not divide the model's {number} experts; {instead}")
    copies = devices // size
    if uneven := [len(weight[0]) for m in modules for weight in m.parameters() if len(weight[0]) % copies]:
        what = f"{copies} devices have the same experts, and can't cut {uneven[0]} rows of these evenly"
        raise UserError(f"{flag}: {what}; give a larger size")


@torch.no_grad()
def suits_shared_experts(experts: nn.Module, width: int) -> bool:
    """Try on a few tokens whether experts work on each token for itself, and sum by weights what they make of it.

    Args:
        experts: may be on the meta device; two of them are made.
        width: of a token.
    """
    few: Any = copy.copy(experts)
    few.num_experts, few._parameters = 2, {}
    generator = torch.Generator().manual_seed(0)
    for name, weight in experts.named_parameters(recurse=False):
        values = torch.randn(2, *weight.shape[1:], generator=generator) / math.sqrt(weight.shape[-1])
        few._parameters[name] = nn.Parameter(values)
    hidden, weights = torch.randn(4, width, generator=generator), torch.rand(4, 2, generator=generator)
    chosen = torch.tensor([[0, 1], [1, 0], [1, 0], [0, 1]])
    try:
        plain = few(hidden, chosen, weights)
        ours = SharedExperts(few, None)(hidden, chosen, weights)
    except Exception:  # each architecture calls its experts in its own way
        return False
    return torch.allclose(plain, ours, rtol=1e-4, atol=1e-5)
