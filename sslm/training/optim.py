"""Optimizer and clipping."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from sslm.config import OptimConfig
from sslm.runs.checkpoints.states import MOMENTS

PIECE = 1 << 24
"""Elements of a bf16 weight that are updated at a time: each takes about 20 bytes of passing memory."""


STATE_SPACE = {"A_log", "D"}
"""How fast a state space model forgets, and its skip connection: never decayed (Gu & Dao 2023, arXiv:2312.00752)."""


RATE = "lr_rate"
"""Key of what a parameter group's learning rate is of the schedule's, 1 if it isn't there."""


def parameter_groups(
    module: nn.Module, weight_decay: float, rates: Mapping[nn.Parameter, float] | None = None
) -> list[dict[str, Any]]:
    """Group a module's trained parameters by weight decay (see `exemptions`), by device mesh, and by rate if given."""
    groups: dict[tuple[bool, DeviceMesh | None, float], list[nn.Parameter]] = {}
    for parameter, exempt in sorted(exemptions(module), key=lambda pair: pair[1] is not None):
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        rate = 1.0 if rates is None else rates[parameter]
        groups.setdefault((exempt is None, mesh, rate), []).append(parameter)
    return [
        {"params": members, "weight_decay": weight_decay if decays else 0.0} | ({} if rates is None else {RATE: rate})
        for (decays, _, rate), members in groups.items()
    ]


def exemptions(module: nn.Module) -> list[tuple[nn.Parameter, str | None]]:
    """List a module's trained parameters, each with the kind that weight decay leaves out, or None if it decays."""
    found: dict[nn.Parameter, str | None] = {}
    for path, layer in module.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if parameter.requires_grad:
                found.setdefault(parameter, _exemption(path, layer, name, parameter))
    return list(found.items())


def _exemption(path: str, layer: nn.Module, name: str, parameter: Tensor) -> str | None:
    """Name the kind of a parameter that weight decay leaves out; None if it decays, as matrices and embeddings do.

    Names tell what shapes don't: scales of queries and keys have a row for each head (Cohere), biases one for each
    expert (GPT-OSS), and A_log one for each channel (Mamba). Dimensions of one make no matrix of a vector (RWKV's time
    mixes), unless it is the weight of a layer that has a single output.
    """
    is_norm = "Norm" in type(layer).__name__ or path.rpartition(".")[2] == "norm"
    if is_norm and not isinstance(layer, nn.Embedding):  # there are normed embeddings
        return "norms"
    if "bias" in name:
        return "biases"
    size = parameter.shape if "weight" in name else [length for length in parameter.shape if length > 1]
    return name if len(size) < 2 or name in STATE_SPACE else None


def set_learning_rate(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Give each parameter group its part of a learning rate."""
    for group in groups:
        group["lr"] = lr * group.get(RATE, 1.0)


def build_optimizer(
    module: nn.Module, optim: OptimConfig, seed: int = 0, rates: Mapping[nn.Parameter, float] | None = None
) -> "AdamW":
    """AdamW for a module whose weights are where they will be trained.

    Args:
        seed: of the rounding.
        rates: what each parameter's learning rate is multiplied by (`layer_decay.rates`); None: all have the same.
    """
    assert optim.lr is not None
    groups, betas = parameter_groups(module, optim.weight_decay, rates), (optim.beta1, optim.beta2)
    set_learning_rate(groups, optim.lr)
    return AdamW(groups, lr=optim.lr, betas=betas, eps=optim.eps, seed=seed)


class AdamW(torch.optim.AdamW):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) by torch's fused kernel, on CPUs too.

    The kernel itself clips, and leaves an update out that the device has found anomalous: the host need not know.

    Moments are in fp32 at least. Weights in bf16 are updated in fp32 and rounded stochastically: rounded to nearest, a
    bf16 weight w keeps no change below |w| / 512, and late in training most are. Rounded to one of its two neighbours,
    with chances that make the mean exact, it keeps all of them on average (Zamirai et al. 2020, arXiv:2010.06192). What
    is drawn is a function of (seed, step, parameter, part of a sharded parameter): there is nothing to save, and
    replicas of a weight stay alike.

    Args:
        groups: as for `torch.optim.AdamW`; tensors may be plain or DTensors, of bf16 or of a wider type.
        seed: of the rounding.
    """

    step_number = 0
    """Number of the next step in the run, from 0, which the rounding follows."""
    grad_scale: Tensor | None = None
    """What gradients are divided by in the next step, a scalar in fp32; None if they stay."""
    withheld: Tensor | None = None
    """1 if the next step changes nothing, else 0, a scalar in fp32; None is 0."""
    found_inf: Tensor | None = None
    """The same, as torch's GradScaler tells it for the length of a step."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        seed: int = 0,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=True)
        self.seed = seed

    @torch.no_grad()
    def make_states(self) -> None:
        """Make the states that weights lack, as the first step would.

        A weight that has had no gradient yet (of a dropped layer, or an expert nobody chose) has them too: all
        checkpoints have the same tensors.
        """
        for parameter in self.parameters():
            if not (state := self.state[parameter]):
                wide = torch.promote_types(parameter.dtype, torch.float32)
                state["step"] = torch.zeros((), device=parameter.device)
                for name in MOMENTS:
                    state[name] = torch.zeros_like(parameter, dtype=wide, memory_format=torch.preserve_format)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.make_states()
        number = 0
        for group in self.param_groups:
            members = {number + i: p for i, p in enumerate(group["params"]) if p.grad is not None}
            number += len(group["params"])
            if not members:
                continue
            self._count(list(members.values()))
            self._update([p for p in members.values() if p.dtype != torch.bfloat16], group)
            for its_number, parameter in members.items():
                if parameter.dtype == torch.bfloat16:
                    self._update_and_round(parameter, group, its_number)
        self.step_number += 1
        return loss

    def parameters(self) -> Iterator[Tensor]:
        """All that are trained, in the groups' order."""
        return (parameter for group in self.param_groups for parameter in group["params"])

    @property
    def _left_out(self) -> Tensor | None:
        """1 if nothing is to change, else 0."""
        if self.withheld is None or self.found_inf is None:
            return self.found_inf if self.withheld is None else self.withheld
        return torch.maximum(self.withheld, self.found_inf)

    def _count(self, members: list[Tensor]) -> None:
        steps = [self.state[parameter]["step"] for parameter in members]
        torch._foreach_add_(steps, 1)
        if (left_out := self._left_out) is not None:
            torch._foreach_sub_(steps, [left_out] * len(steps))

    def _update(self, members: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [_here(_placed_like(parameter, parameter.grad)) for parameter in members]
        states = [self.state[parameter] for parameter in members]
        moments = [[_here(state[name]) for state in states] for name in MOMENTS]
        steps = [state["step"] for state in states]
        self._call_kernel([_here(parameter) for parameter in members], gradients, moments, steps, group)

    def _update_and_round(self, parameter: Tensor, group: dict[str, Any], number: int) -> None:
        state = self.state[parameter]
        key = f"{self.seed} {self.step_number} {number} {_part(parameter)}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        generator = torch.Generator(parameter.device).manual_seed(int.from_bytes(digest, "little"))
        tensors = (parameter, _placed_like(parameter, parameter.grad), *(state[name] for name in MOMENTS))
        for weight, gradient, mean, square in zip(*map(_pieces, tensors), strict=True):
            updated = weight.float().contiguous()
            self._call_kernel([updated], [gradient.float().contiguous()], [[mean], [square]], [state["step"]], group)
            weight.copy_(rounded_to_bf16(updated, generator))

    def _call_kernel(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        moments: list[list[Tensor]],
        steps: list[Tensor],
        group: dict[str, Any],
    ) -> None:
        """Update tensors of this device in place."""
        if not weights:
            return
        torch._fused_adamw_(
            weights,
            gradients,
            moments[0],
            moments[1],
            [],
            steps,
            amsgrad=False,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            grad_scale=self.grad_scale,
            found_inf=self._left_out,
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would round the moments to the weights' type."""
        states = state_dict["state"]
        steps = {key: {k: v for k, v in state.items() if k not in MOMENTS} for key, state in states.items()}
        super().load_state_dict({**state_dict, "state": steps})
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        for parameter, key in zip(self.parameters(), keys, strict=True):
            wide = torch.promote_types(parameter.dtype, torch.float32)
            for name in MOMENTS if key in states else ():
                self.state[parameter][name] = states[key][name].to(device=parameter.device, dtype=wide)


def rounded_to_bf16(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round fp32 values to one of the two bf16 values around each, with the right mean; NaN and infinity stay.

    The lower half of an fp32 is what bf16 lacks: it is carried over with chance (lower half) / 65536.
    """
    bits = values.view(torch.int32)
    drawn = torch.empty_like(bits).random_(0, 1 << 16, generator=generator)
    rounded = drawn.add_(bits).bitwise_and_(-1 << 16).view(torch.float32)
    return torch.where(values.isnan(), values, rounded).to(torch.bfloat16)  # a NaN's carry may reach its sign: -0


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """This device's part of a tensor, cut along its first dimension; views."""
    here = _here(tensor)
    here = here if here.ndim else here[None]
    pieces: tuple[Tensor, ...] = torch.split(here, max(PIECE * len(here) // max(here.numel(), 1), 1))
    return pieces


# ------------------------------------------------------------------------------------------------ clipping


@torch.no_grad()
def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Global norm of the gradients, of the whole model; all ranks call it together.

    Args:
        parameters: plain tensors or DTensors of any meshes; what is plain or replicated is the same on all ranks.

    Returns:
        A scalar of at least fp32; nothing waits for the device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.tensor(0.0)
    wide = torch.promote_types(gradients[0].dtype, torch.float32)
    shared: dict[tuple[DeviceMesh | None, tuple[int, ...]], list[Tensor]] = {}
    for gradient in map(_summed, gradients):
        mesh = gradient.device_mesh if isinstance(gradient, DTensor) else None
        shared.setdefault((mesh, _sharded_dims(gradient)), []).append(_here(gradient))
    total = torch.zeros((), dtype=wide, device=gradients[0].device)
    for (mesh, dims), tensors in shared.items():
        squares = torch.stack(torch._foreach_norm(tensors, 2, dtype=wide)).square().sum()
        for dim in dims:
            assert mesh is not None
            dist.all_reduce(squares, group=mesh.get_group(dim))
        total += squares
    return total.sqrt()


def clipping_scale(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of this norm are divided by, so that it is at most `max_norm`; a scalar of at least 1.

    >>> clipping_scale(torch.tensor(3.0), 1.5).item(), clipping_scale(torch.tensor(1.0), 1.5).item()
    (2.0, 1.0)
    """
    return (norm.float() / max_norm).clamp(min=1.0)


def _here(tensor: Tensor) -> Tensor:
    """This device's part of a tensor; without gradients there is nothing to detach it from."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sharded_dims(tensor: Tensor) -> tuple[int, ...]:
    """Dimensions of its mesh along which devices hold different parts of a tensor."""
    if not isinstance(tensor, DTensor):
        return ()
    return tuple(dim for dim, placement in enumerate(tensor.placements) if not placement.is_replicate())


def _part(tensor: Tensor) -> list[int]:
    """Which part of a sharded tensor this device holds; devices that hold the same one say the same."""
    if not isinstance(tensor, DTensor):
        return []
    here = tensor.device_mesh.get_coordinate()
    assert here is not None
    return [here[dim] for dim in _sharded_dims(tensor)]


def _summed(gradient: Tensor) -> Tensor:
    """A gradient of which each device has a summand, summed."""
    if not isinstance(gradient, DTensor):
        return gradient
    return gradient.redistribute(placements=[Replicate() if p.is_partial() else p for p in gradient.placements])


def _placed_like(parameter: Tensor, gradient: Tensor | None) -> Any:
    """A gradient, distributed as its parameter is."""
    if isinstance(parameter, DTensor) and isinstance(gradient, DTensor):
        return gradient.redistribute(placements=parameter.placements)
    return gradient
