"""Prunes a network while it is trained, on any number of devices.

What is pruned stays 0: neither its gradient nor its moments have a part in anything. Which weights go is decided by
whole matrices, gathered one by one, on each device alike; so it does not depend on how they are shared. What has been
kept is a part of the run's state.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from sslm.models.compression.inputs import InputSums, squares
from sslm.models.compression.pruning.matrices import matrices, modules
from sslm.models.compression.pruning.prune import kept_units, mask_of
from sslm.models.compression.pruning.scores import wanda
from sslm.models.compression.pruning.skipping import skip_unless
from sslm.models.compression.pruning.units import groups
from sslm.models.network import Network, is_scored
from sslm.models.weights import local_part
from sslm.training.average import Average
from sslm.training.optimizers.base import Optimizer
from sslm.training.optimizers.placement import here, part_like, placed_like
from sslm.training.pruning.schedule import Schedule

KEPT, MOVEMENT = "prune.kept.", "prune.movement."
"""Prefixes of names in a checkpoint."""


class Pruner:
    """What has been pruned of a network, and what goes next.

    Args:
        network: sharded already, where it will be trained.
        schedule: when how much goes.
    """

    def __init__(self, network: Network, schedule: Schedule) -> None:
        model = network.model
        self.schedule, self.pruning = schedule, schedule.pruning
        self.parameters: dict[str, Any] = dict(model.named_parameters())
        self.layers = matrices(model)
        self.groups = {g.name: g for g in groups(model, self.pruning.pattern)} if self.pruning.is_structured else {}
        self.kept: dict[str, Any] = self._all_kept()
        """Group -> [number] which of its units stay; if none goes as a whole: weight -> its mask, placed alike."""
        is_movement = self.pruning.method == "movement"
        zeros = {name: torch.zeros_like(self.parameters[name], dtype=torch.float32) for name in self.layers}
        self.movement: dict[str, Any] = zeros if is_movement else {}
        """Weight -> how far its gradient moved it away from 0, summed over the steps: -w dL/dw."""
        self._inputs: InputSums | None = None
        self._watching = ExitStack()
        self.masks: dict[str, Tensor] = {}
        """Weight -> this device's part of what stays of it."""
        self.expand()
        if self.pruning.pattern == "layers":
            for group in self.groups.values():
                for number in range(group.size.number):
                    skip_unless(model.get_submodule(f"{group.name}.{number}"), self._is_kept(group.name, number))

    def _all_kept(self) -> dict[str, Any]:
        device = next(iter(self.parameters.values())).device
        if self.groups:
            return {n: torch.ones(g.size.number, dtype=torch.bool, device=device) for n, g in self.groups.items()}
        return {name: torch.ones_like(self.parameters[name], dtype=torch.bool) for name in self.layers}

    def _is_kept(self, group: str, number: int) -> Callable[[], Tensor]:
        return lambda: self.kept[group][number]

    # ------------------------------------------------------------------------------------------------ state

    def tensors(self) -> dict[str, Any]:
        """What a checkpoint holds, by name."""
        kept = {f"{KEPT}{name}": mask for name, mask in self.kept.items()}
        return kept | {f"{MOVEMENT}{name}": moved for name, moved in self.movement.items()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Any]) -> None:
        """Go on from what `tensors` gave, under the same strategy."""
        for name, tensor in self.tensors().items():
            local_part(tensor).copy_(local_part(tensors[name]))
        self.expand()

    @torch.no_grad()
    def expand(self) -> None:
        """Work out this device's masks, of what `kept` says now."""
        if not self.groups:
            self.masks = {name: here(mask) for name, mask in self.kept.items()}
        for group in self.groups.values():
            for name, place in group.places.items():
                parameter = self.parameters[name]
                whole = place.of_weight(self.kept[group.name], parameter.shape).contiguous()
                self.masks[name] = part_like(parameter, whole)

    # ------------------------------------------------------------------------------------------------ a step

    def watch(self, step: int) -> None:
        """Look at what layers read in this step (counted from 0), if what goes after it depends on that."""
        self._end_watch()  # of a step that never ended
        if self.pruning.method == "wanda" and self.schedule.is_stage(step + 1):
            self._inputs = self._watching.enter_context(InputSums(modules(self.layers), squares))

    def begin_pass(self, tensors: Mapping[str, Tensor]) -> None:
        """Tell which places of the next forward pass hold tokens."""
        if self._inputs is not None:
            self._inputs.places = places_of_tokens(tensors)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        for name, mask in self.masks.items():
            if (gradient := self.parameters[name].grad) is not None:
                here(gradient).mul_(mask)

    @torch.no_grad()
    def follow(self, withheld: Tensor | None) -> None:
        """Take the step's gradient into the movement, unless the step is withheld (1 on the device)."""
        for name, moved in self.movement.items():
            parameter = self.parameters[name]
            if parameter.grad is not None:
                moving = here(placed_like(parameter, parameter.grad)).float() * here(parameter.detach()).float()
                moving = moving.nan_to_num(0.0, 0.0, 0.0)
                here(moved).sub_(moving if withheld is None else moving * (1 - withheld))

    @torch.no_grad()
    def finish_step(self, done: int, optimizer: Optimizer, average: Average | None) -> None:
        """Keep what is pruned at 0, and prune more if it is time.

        Args:
            done: optimizer steps that are done.
        """
        is_stage = self.schedule.is_stage(done)
        if is_stage:
            self._choose(self.schedule.sparsity(done))
            self.expand()
        for name, mask in self.masks.items():
            local_part(self.parameters[name]).mul_(mask)
        if is_stage:
            self._forget(optimizer, average)

    def _choose(self, sparsity: float) -> None:
        """Prune up to this share; what is pruned stays so, though a schedule that was moved may ask for less."""
        squares = self._squares()

        def score(name: str) -> Tensor:
            if name in self.movement:
                scores = whole(self.movement[name])
            else:
                weight = whole(self.parameters[name]).float()
                dim = self.layers[name].input_dim
                scores = wanda(weight, squares[name], dim) if name in squares else weight.abs()
            return scores if self.groups else scores.masked_fill(~whole(self.kept[name]), -torch.inf)

        for name, group in self.groups.items():
            self.kept[name].logical_and_(kept_units(group, sparsity, self.layers, score, self.kept[name]))
        if not self.groups:
            for name, matrix in self.layers.items():
                mask = mask_of(score(name), matrix, self.pruning, sparsity).contiguous()
                here(self.kept[name]).logical_and_(part_like(self.parameters[name], mask))

    def _squares(self) -> dict[str, Tensor]:
        """Sums of squares over all devices' tokens; the watch is over."""
        sums = {} if self._inputs is None else self._inputs.sums
        self._end_watch()
        if dist.is_initialized():
            for total in sums.values():
                dist.all_reduce(total)
        return sums

    def _end_watch(self) -> None:
        self._watching.close()
        self._inputs = None

    def _forget(self, optimizer: Optimizer, average: Average | None) -> None:
        """Let moments and averages of what is pruned be 0."""
        averages = {} if average is None else average.tensors
        for name, mask in self.masks.items():
            parameter = self.parameters[name]
            for state in optimizer.state[parameter].values():
                if state.shape == parameter.shape:
                    here(state).mul_(mask)
            if (mean := averages.get(f"model.{name}")) is not None:
                local_part(mean).mul_(mask)


def whole(tensor: Any) -> Tensor:
    """All of a tensor, of which each device has a part; all devices call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def places_of_tokens(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """[rows, length] masks of the places that hold tokens: of the input, and of what a decoder is taught."""
    masks = [tensors[key] != 0 for key in ("attention_mask", "decoder_attention_mask") if key in tensors]
    masks += [tensors[key] >= 0 for key in ("segment_ids", "decoder_segment_ids") if key in tensors]
    labels = tensors.get("labels")
    if labels is not None and labels.ndim == 2 and labels.shape != tensors["input_ids"].shape:
        masks.append(is_scored(labels))
    return masks
