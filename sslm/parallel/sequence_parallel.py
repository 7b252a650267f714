"""Sequence parallelism: between the matrices that devices share, each has some places of every row.

Tensor parallelism alone leaves norms, residuals and what they keep for the backward pass whole on each device; here
each does it for its own places (Korthikanti et al. 2022, arXiv:2205.05198, section 4.2.2). Before attention and
feed-forward layers places are gathered, behind them reduced and scattered, which sends what an all-reduce sends.
Embeddings, the last norm and the head see whole rows.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel

from sslm.models.blocks import blocks, is_block
from sslm.models.build import shallow_model
from sslm.models.probe import probe_tokens
from sslm.parallel.tensor_parallel import SumGradient, planned, summed

_of: dict[str, Any] = vars(collectives)  # torch 2.13 has other names
_gather: Any = _of.get("all_gather_single_autograd") or _of["all_gather_tensor_autograd"]
_gather_without_gradient: Any = _of.get("all_gather_single") or _of["all_gather_tensor"]
_reduce_scatter: Any = _of.get("reduce_scatter_single_autograd") or _of["reduce_scatter_tensor_autograd"]


class Places:
    """Takes whole rows, [batch, length, width], to this rank's places, [batch, ⌈length / ranks⌉, width], and back.

    Rows that don't divide are filled up with zeros, which no matrix sees.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)
        self.length = 0
        """Of the rows of this pass; stays until the next, since the backward pass may compute blocks again."""

    def cut(self, whole: Tensor) -> Tensor:
        """Keep this rank's places; the gradient is that of all."""
        return _Cut.apply(self._filled(whole), self.group)  # type: ignore[no-untyped-call,no-any-return]

    def gather(self, part: Tensor) -> Tensor:
        """Gather whole rows; their gradient is the sum over the ranks, which each have a part of the matrices."""
        return self._real(_gather(part, 1, self.group))

    def scatter(self, partial: Tensor) -> Tensor:
        """Sum over the ranks, and keep this rank's places."""
        pieces = self._filled(partial).chunk(self.size, dim=1)  # torch's own cut of dimension 1 breaks compiled graphs
        return _reduce_scatter(torch.cat(pieces), "sum", 0, self.group)  # type: ignore[no-any-return]

    def join(self, part: Tensor) -> Tensor:
        """Gather whole rows, whose whole gradient each rank has."""
        whole: Tensor = _Join.apply(part, self.group)  # type: ignore[no-untyped-call]
        return self._real(whole).clone()  # FSDP2 warns of blocks that return views

    def _filled(self, whole: Tensor) -> Tensor:
        missing = -whole.shape[1] % self.size
        return F.pad(whole, (0, 0, 0, missing)) if missing else whole

    def _real(self, filled: Tensor) -> Tensor:
        return filled[:, : self.length] if filled.shape[1] != self.length else filled


class _Cut(torch.autograd.Function):
    """This rank's places; their gradients are gathered."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _own(whole, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _gather_without_gradient(gradient.contiguous(), 1, ctx.group), None


class _Join(torch.autograd.Function):
    """The places of all ranks, each of which has their whole gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gather_without_gradient(part.contiguous(), 1, group)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _own(gradient, ctx.group), None


def _own(whole: Tensor, group: dist.ProcessGroup) -> Tensor:
    return whole.chunk(dist.get_world_size(group), dim=1)[dist.get_rank(group)].contiguous()


class _Local(ParallelStyle):
    """A linear layer that multiplies by this rank's part of its weight."""

    dim: int

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        for name, weight in list(module.named_parameters(recurse=False)):
            placement = Shard(self.dim) if self.dim < weight.ndim else Replicate()
            part = distribute_tensor(weight.detach(), device_mesh, [placement], src_data_rank=None)
            module.register_parameter(name, nn.Parameter(part, weight.requires_grad))
        module.forward = self.forward_of(module)
        return module

    def forward_of(self, module: Any) -> Callable[[Tensor], Tensor]:
        raise NotImplementedError


class Columns(_Local):
    """Gives this rank's part of the outputs."""

    dim = 0

    def forward_of(self, module: Any) -> Callable[[Tensor], Tensor]:
        return lambda inputs: F.linear(inputs, _part(module.weight), _part(module.bias))


class Rows(_Local):
    """Takes this rank's part of the inputs, and gives its places."""

    dim = 1

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def forward_of(self, module: Any) -> Callable[[Tensor], Tensor]:
        def forward(inputs: Tensor) -> Tensor:
            outputs = self.places.scatter(F.linear(inputs, _part(module.weight)))
            return outputs if module.bias is None else outputs + summed(_part(module.bias), self.places.group)

        return forward


def _part(weight: Any) -> Any:
    return weight.to_local() if isinstance(weight, DTensor) else weight


SUITS: dict[str, bool] = {}
"""What `suits_places` has found in this process, by configuration."""
LOCAL = ("colwise", "rowwise", "replicated_with_grad_allreduce")
"""Styles of a plan that are known to go with places."""


def styles_of_places(model: PreTrainedModel, mesh: DeviceMesh) -> dict[str, ParallelStyle]:
    """Let the blocks of a model work on this rank's places, in place, and return the styles of modules in them."""
    places, plan = Places(mesh.get_group()), planned(model)
    pass_places(model, places)
    styles: dict[str, ParallelStyle] = {}
    for name in _weights_in_blocks(model):
        of_plan = {"colwise": Columns(), "rowwise": Rows(places)}
        styles[name] = of_plan.get(plan.get(name, ""), SumGradient())
    return styles


def pass_places(model: PreTrainedModel, places: Any) -> list[RemovableHandle]:
    """Let `places` change what blocks, and attention and feed-forward layers, get and give; return the hooks."""

    def note_length(module: nn.Module, arguments: Any, named: dict[str, Any]) -> None:
        places.length = (arguments[0] if arguments else named["input_ids"]).shape[1]

    every = blocks(model)
    return [
        model.register_forward_pre_hook(note_length, with_kwargs=True),
        every[0].register_forward_pre_hook(_on_hidden(places.cut), with_kwargs=True),
        every[-1].register_forward_hook(lambda _, arguments, output: _on_first(places.join, output)),
        *(
            module.register_forward_pre_hook(_on_hidden(places.gather), with_kwargs=True)
            for module in whole_row_modules(model)
        ),
    ]


def take_places(model: PreTrainedModel, places: Any) -> list[RemovableHandle]:
    """Do as `pass_places` on a model whose matrices are no DTensors; return the hooks."""
    last = [name for name, style in planned(model).items() if style == "rowwise" and name in _weights_in_blocks(model)]
    return pass_places(model, places) + [
        model.get_submodule(name).register_forward_hook(lambda _, arguments, output: places.scatter(output))
        for name in last
    ]


def _on_hidden(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if arguments:
            return (change(arguments[0]), *arguments[1:]), named
        return arguments, named | {"hidden_states": change(named["hidden_states"])}

    return hook


def _on_first(change: Callable[[Tensor], Tensor], output: Any) -> Any:
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def whole_row_modules(model: PreTrainedModel) -> list[nn.Module]:
    """List the attention and feed-forward layers of a model's blocks: what has the matrices that its plan shares.

    Empty if one has others besides, or ends in another way than with one that is shared by rows.
    """
    plan, of_module = planned(model), dict[str, list[str]]()
    for name in _weights_in_blocks(model):
        if name in plan:
            of_module.setdefault(name.rpartition(".")[0], []).append(plan[name])
    found = [model.get_submodule(name) for name in of_module]
    for module, styles in zip(found, of_module.values(), strict=True):
        num_weights = sum(_has_weights(part) for part in module.modules())
        is_known = set(styles) <= set(LOCAL) and styles.count("rowwise") == 1 and "colwise" in styles
        if is_block(module) or num_weights != len(styles) or not is_known:
            return []
    return found


def _weights_in_blocks(model: PreTrainedModel) -> list[str]:
    """Name the modules in blocks that have weights of their own."""
    in_blocks = {id(module) for block in blocks(model) for module in block.modules()}
    return [name for name, module in model.named_modules() if id(module) in in_blocks and _has_weights(module)]


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


class _Trial:
    """In the stead of `Places` the first of two ranks, which gets what it hasn't from an earlier pass of whole rows."""

    def __init__(self) -> None:
        self.length, self.is_whole = 0, True
        self.seen: list[Tensor] = []

    def cut(self, whole: Tensor) -> Tensor:
        return whole if self.is_whole else whole[:, : self.length // 2]

    scatter = cut

    def gather(self, part: Tensor) -> Tensor:
        if self.is_whole:
            self.seen.append(part)
            return part
        whole = self.seen.pop(0)
        torch.testing.assert_close(part, self.cut(whole), rtol=1e-4, atol=1e-5)
        return whole

    join = gather


def suits_places(config: PreTrainedConfig) -> bool:
    """Try on a shallow model, once a process, whether an architecture's blocks can work on some places of a row.

    Between attention and feed-forward layers each place must be for itself, and nothing may be drawn (dropout).
    """
    key = config.to_json_string()
    if key not in SUITS:
        try:
            SUITS[key] = _can_take_places(shallow_model(config, "AutoModel"))
        except Exception:  # each architecture puts its parts together in its own way
            SUITS[key] = False
    return SUITS[key]


@torch.no_grad()
def _can_take_places(model: PreTrainedModel) -> bool:
    if model.config.is_encoder_decoder or not whole_row_modules(model):
        return False
    trial, ids = _Trial(), probe_tokens(model)
    take_places(model.train(), trial)
    model(input_ids=ids, use_cache=False)
    trial.is_whole = False
    model(input_ids=ids, use_cache=False)
    return not trial.seen
