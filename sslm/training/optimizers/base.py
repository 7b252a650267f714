"""What all optimizers share: clipping, updates that are left out, states in fp32, weights in bf16."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from sslm.runs.checkpoints.optimizer_states import State, states_of
from sslm.training.optimizers.groups import HIDDEN
from sslm.training.optimizers.placement import here, part, placed_like, reduced_like
from sslm.training.optimizers.rounding import rounded_to_bf16


class Optimizer(torch.optim.Optimizer):
    """An optimizer whose update is a function of a weight, its gradient and its states: `updated`.

    The update itself clips, and leaves out what the device has found anomalous: the host need not know.

    States are in fp32 at least. Weights in bf16 are updated in fp32 and rounded stochastically: rounded to nearest, a
    bf16 weight w keeps no change below |w| / 512, and late in training most are. Rounded to one of its two neighbours,
    with chances that make the mean exact, it keeps all of them on average (Zamirai et al. 2020, arXiv:2010.06192). What
    is drawn is a function of (seed, step, parameter, part of a sharded parameter): there is nothing to save, and
    replicas of a weight stay alike.

    Args:
        groups: as for `torch.optim.AdamW`; tensors may be plain or DTensors, of bf16 or of a wider type.
        seed: of the rounding.
    """

    name: ClassVar[str]
    """As in `--optim.name`."""
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
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.01})
        self.seed = seed
        self._numbers: dict[Tensor, int] = {}
        self._step_supports_amp_scaling = True  # torch's GradScaler then says what it found

    def updated(
        self, parameter: Tensor, weight: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what a weight and its states become; what is given stays.

        Args:
            parameter: what the weight is a part of.
            weight: this device's part, in fp32 at least; gradient and states alike.
            group: settings of its parameter group.
        """
        raise NotImplementedError

    @torch.no_grad()
    def make_states(self) -> None:
        """Make the states that weights lack, as the first step would.

        A weight that has had no gradient yet (of a dropped layer, or an expert nobody chose) has them too: all
        checkpoints have the same tensors.
        """
        for group in self.param_groups:
            for parameter in group["params"]:
                if not (state := self.state[parameter]):
                    state["step"] = torch.zeros((), device=parameter.device)
                    for name, kind in self._kinds(parameter, group).items():
                        state[name] = empty_state(parameter, kind)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.make_states()
        self._numbers = {parameter: number for number, parameter in enumerate(self.parameters())}
        for group in self.param_groups:
            if members := [parameter for parameter in group["params"] if parameter.grad is not None]:
                self._count(members)
                self.update(members, group)
        self.step_number += 1
        return loss

    def update(self, members: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters of a group that have gradients, and their states, in place."""
        for parameter in members:
            state = {name: here(value) for name, value in self.state[parameter].items()}
            gradient = self.gradient_of(parameter)
            weight, states = self.updated(parameter, wide(here(parameter)), gradient, state, group)
            self.write(parameter, weight)
            for name, value in states.items():
                self.keep(state[name], value)

    def parameters(self) -> Iterator[Tensor]:
        """All that are trained, in the groups' order."""
        return (parameter for group in self.param_groups for parameter in group["params"])

    def gradient_of(self, parameter: Tensor) -> Tensor:
        """This device's part of a gradient, clipped, in fp32 at least."""
        gradient = wide(here(placed_like(parameter, parameter.grad)))
        return gradient if self.grad_scale is None else gradient / self.grad_scale

    def write(self, parameter: Tensor, weight: Tensor) -> None:
        """Let this device's part of a parameter become `weight`, rounded stochastically if it is in bf16."""
        if parameter.dtype == torch.bfloat16:
            weight = rounded_to_bf16(weight, self.generator(parameter))
        self.keep(here(parameter), weight)

    def keep(self, tensor: Tensor, value: Tensor) -> None:
        """Let a tensor become `value`, unless this step changes nothing."""
        tensor.copy_(value if self.left_out is None else torch.where(self.left_out > 0, tensor, value))

    @property
    def left_out(self) -> Tensor | None:
        """1 if nothing is to change, else 0."""
        if self.withheld is None or self.found_inf is None:
            return self.found_inf if self.withheld is None else self.withheld
        return torch.maximum(self.withheld, self.found_inf)

    def generator(self, parameter: Tensor) -> torch.Generator:
        """Give what this step's rounding of a parameter draws from."""
        key = f"{self.seed} {self.step_number} {self._numbers[parameter]} {part(parameter)}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return torch.Generator(parameter.device).manual_seed(int.from_bytes(digest, "little"))

    def _kinds(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, State]:
        return states_of(self.name, parameter, group.get(HIDDEN, False))

    def _count(self, members: list[Tensor]) -> None:
        steps = [self.state[parameter]["step"] for parameter in members]
        torch._foreach_add_(steps, 1)
        if (left_out := self.left_out) is not None:
            torch._foreach_sub_(steps, [left_out] * len(steps))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would round the states to the weights' type."""
        states = state_dict["state"]
        steps = {key: {k: v for k, v in state.items() if k == "step"} for key, state in states.items()}
        super().load_state_dict({**state_dict, "state": steps})
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        kinds = [self._kinds(parameter, group) for group in self.param_groups for parameter in group["params"]]
        for parameter, key, of_it in zip(self.parameters(), keys, kinds, strict=True):
            for name, value in states.get(key, {}).items():
                dtype = of_it[name].dtype if name in of_it else value.dtype
                self.state[parameter][name] = value.to(device=parameter.device, dtype=dtype)


def wide(tensor: Tensor) -> Tensor:
    """A tensor in fp32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def empty_state(parameter: Tensor, kind: State) -> Tensor:
    """A state of zeros, distributed as its parameter is; whole in the dimensions that it lacks."""
    if kind.shape == parameter.shape:
        return torch.zeros_like(parameter, dtype=kind.dtype, memory_format=torch.preserve_format)
    if not kind.shape:
        return torch.zeros((), dtype=kind.dtype, device=parameter.device)
    lacks = [dim for dim, size in enumerate(kind.shape) if size != parameter.shape[dim]]
    local = here(parameter)
    shape = [1 if dim in lacks else size for dim, size in enumerate(local.shape)]
    return reduced_like(parameter, torch.zeros(shape, dtype=kind.dtype, device=local.device), kind.shape, lacks)
