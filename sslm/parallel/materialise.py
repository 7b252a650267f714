"""Weights after sharding: a model is built and sharded without weights, then gets those of `build`, bit for bit.

A fresh weight depends on the seed and its module's name only, so each process can make any. It makes one unit of the
model at a time in host memory, keeps its shard and drops the rest: first everything outside the blocks (embeddings,
head), then block by block. Nothing is sent.

    model = on_meta(config, auto_class)
    network = LanguageModel(model)
    parallelize(network, model, mesh)
    materialise(network, model, auto_class, seed, device)
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from sslm.models.adapters import first_values, is_of_adapter, plain_name
from sslm.models.blocks import blocks
from sslm.models.build import Named, build, construct, draw, named_modules


class Entangled(Exception):
    """The architecture's weights can't be made block by block: a constructor draws them, or blocks share some."""


@torch.no_grad()
def materialise(
    network: nn.Module, model: PreTrainedModel, auto_class: str, seed: int, device: torch.device | str
) -> None:
    """Give a network on the meta device memory and the weights of `build`, in place.

    Parameters may have become DTensors of any placements, or of another dtype, to which the weights are cast then. For
    the few architectures that are `Entangled`, each process makes the whole model for a moment.

    Args:
        network: what was sharded; it holds `model`.
        device: where the memory is.
    """
    with kept_tied():
        network.to_empty(device=device)
    every = dict(model.named_parameters(remove_duplicate=False))
    targets = {plain_name(name): weight for name, weight in every.items() if not is_of_adapter(name)}
    for name in every.keys() - targets.keys():
        if is_of_adapter(name):
            fill(every[name], first_values(name, every[name].shape, seed))
    try:
        source = without_weights(model.config, auto_class)
        for name, weight in in_turn(source, seed):
            if (target := targets.get(name)) is not None:  # else another rank has it
                fill(target, weight)
            del weight  # or its unit would be there while the next is made
    except Entangled:
        source = build(copy.deepcopy(model.config), auto_class, seed)
        for name, target in targets.items():
            fill(target, source.get_parameter(name))
    for name, buffer in model.named_buffers(remove_duplicate=False):
        fill(buffer, source.get_buffer(name))


@contextmanager
def kept_tied() -> Iterator[None]:
    """Keep parameters the objects that they are while they are moved, so that modules still share what they shared."""
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)


def fill(target: Tensor, whole: Tensor) -> None:
    """Copy `whole` into `target`, or its shard if `target` is a DTensor."""
    whole = whole.detach().to(target.dtype)
    if isinstance(target, DTensor):  # without a source rank nothing is sent
        part = distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
        target, whole = target.to_local(), part.to_local()
    assert target.shape == whole.shape
    target.copy_(whole)


# ------------------------------------------------------------------------------------------------ in parts


def without_weights(config: PreTrainedConfig, auto_class: str) -> PreTrainedModel:
    """Construct a model with its parameters on the meta device, and its buffers in memory.

    Raises:
        Entangled: a constructor draws a buffer.
    """

    def constructed(seed: int) -> tuple[PreTrainedModel, bool]:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), no_init_weights(), parameters_on_meta():
            before = torch.manual_seed(seed).get_state()
            model = construct(copy.deepcopy(config), auto_class)
            return model, not torch.equal(torch.get_rng_state(), before)

    model, draws = constructed(0)
    if draws and not all(map(torch.equal, model.buffers(), constructed(1)[0].buffers())):
        raise Entangled
    model.tie_weights()
    return model


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Send each parameter that a module gets to the meta device at once: one at a time is in memory."""
    register = nn.Module.register_parameter

    def without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = without_memory  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def units(model: PreTrainedModel) -> list[list[Named]]:
    """Return the modules outside the blocks, then those of each block; within a unit children before parents.

    Raises:
        Entangled: two units share a parameter.
    """
    unit_of: dict[nn.Module, int] = {}
    for number, block in enumerate(blocks(model)):
        for module in block.modules():
            unit_of.setdefault(module, number)  # of blocks in blocks the outer one
    found: dict[int, list[Named]] = {}
    owners: dict[nn.Parameter, int] = {}
    for named in named_modules(model):
        unit = unit_of.get(named.module, -1)  # the rest comes first, while there is least else
        found.setdefault(unit, []).append(named)
        if any(owners.setdefault(parameter, unit) != unit for parameter in named.module.parameters(recurse=False)):
            raise Entangled
    return [found[unit] for unit in sorted(found)]


def in_turn(model: PreTrainedModel, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield name and weight of each parameter of a model without weights; one unit at a time has memory.

    Raises:
        Entangled: a parameter keeps what its constructor gave it, or a unit's module touches another unit's.
    """
    for unit in units(model):
        place(unit, "cpu")
        with Alone():  # type: ignore[no-untyped-call]
            draw(unit, seed)
        yield from parameters(unit)
        if any(weight.sum().isnan() for _, weight in parameters(unit)):
            raise Entangled
        place(unit, "meta")


def parameters(unit: list[Named]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of a unit by all their names: one that two modules share comes twice."""
    for name, module, _ in unit:
        yield from module.named_parameters(name, recurse=False, remove_duplicate=False)


def place(unit: list[Named], device: str) -> None:
    """Put a unit's parameters on a device, without values (NaN), in place.

    They get one piece of memory: many small ones would leave holes when freed.

    Raises:
        Entangled: a parameter isn't in fp32.
    """
    sizes = {parameter: parameter.numel() for _, parameter in parameters(unit)}
    if any(parameter.dtype != torch.float32 for parameter in sizes):
        raise Entangled
    whole = torch.full((sum(sizes.values()),), math.nan, dtype=torch.float32, device=device)
    parts = torch.split(whole, list(sizes.values()))
    placed = {old: nn.Parameter(part.view_as(old), old.requires_grad) for old, part in zip(sizes, parts, strict=True)}
    for module in {named.module for named in unit}:
        for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            setattr(module, name, placed[old])


class Alone(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raise `Entangled` if anything is done with a tensor on the meta device, where all other units are."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs))):
            raise Entangled
        return function(*args, **(kwargs or {}))
