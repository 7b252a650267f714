"""Tensor parallelism (Shoeybi et al. 2019, arXiv:1909.08053): devices share each matrix.

transformers has the plan for each architecture. Activations between the matrices, and modules that the plan doesn't
name (norms), are whole on each device.
"""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor, all_reduce
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

from sslm.system.errors import UserError

EXAMPLES = ("llama", "qwen3", "mistral", "gemma2", "gpt_neox", "phi3", "olmo2")
"""Architectures with a plan; there are more."""


class SumGradient(ParallelStyle):
    """For a module that is whole on each device and sees a part of the heads: sum its gradient over the devices."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        forward, group = module.forward, device_mesh.get_group()

        def with_summed_gradient(*arguments: Any, **named: Any) -> Any:
            weights: dict[str, Any] = dict(module._parameters)
            shared: dict[str, Any] = {n: summed(weight, group) for n, weight in weights.items() if weight is not None}
            module._parameters.update(shared)
            try:
                return forward(*arguments, **named)
            finally:
                module._parameters.update(weights)

        module.forward = with_summed_gradient
        return module


class _SumOfGradients(torch.autograd.Function):
    """The identity; its backward pass sums the gradient over a group."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce(gradient.contiguous(), "sum", ctx.group), None


def summed(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return the tensor, whose gradient will be summed over a group."""
    out: Tensor = _SumOfGradients.apply(tensor, group)  # type: ignore[no-untyped-call]
    return out


_WHOLE_OUTPUT = partial(ColwiseParallel, output_layouts=Replicate())
_WHOLE_INPUT = partial(RowwiseParallel, input_layouts=Replicate())
STYLES: dict[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "colwise_gather_output": _WHOLE_OUTPUT,
    "colwise_rep": _WHOLE_OUTPUT,
    "rowwise_split_input": _WHOLE_INPUT,
    "rowwise_rep": _WHOLE_INPUT,
    "embedding_rowwise": _WHOLE_INPUT,
    "replicated_with_grad_allreduce": SumGradient,
}
"""Our style by transformers' name of it; those of experts (mixtures) and of packed matrices are missing."""


def planned(model: PreTrainedModel) -> dict[str, str]:
    """Return the style of each module that the architecture's plan names; none if there is no plan that we know."""
    plan: dict[str, str] = getattr(model, "_tp_plan", None) or {}
    if not set(plan.values()) <= STYLES.keys():
        return {}
    names = [name for name, _ in model.named_modules()]
    return {name: style for pattern, style in plan.items() for name in names if fnmatchcase(name, pattern)}


def check_tensor_parallel(model: PreTrainedModel, size: int) -> None:
    """Refuse a model whose matrices so many devices can't share.

    Raises:
        UserError: the architecture has no plan, or `size` does not divide a side or the heads of a matrix.
    """
    kind, config, plan = model.config.model_type, model.config, planned(model)
    if sum(style.startswith(("colwise", "rowwise")) for style in plan.values()) < 2:  # one may be the head's
        raise UserError(
            f"--model.model_type {kind}: transformers has no plan for its tensor parallelism that sslm knows; "
            f"{', '.join(EXAMPLES)} and others have one; or give --strategy fsdp"
        )
    sizes: dict[str, int] = {}
    if any(style == "colwise" and not name.endswith(("up_proj", "gate_proj")) for name, style in plan.items()):
        heads = {name: getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
        sizes |= {name: n for name, n in heads.items() if n is not None}
    for name, style in plan.items():
        module = model.get_submodule(name)
        if isinstance(module, nn.Linear):
            sizes[f"width of {name}"] = module.in_features if style.startswith("rowwise") else module.out_features
    for name, width in sizes.items():
        if width % size:
            fitting = [str(n) for n in range(1, width + 1) if all(other % n == 0 for other in sizes.values())]
            what = f"the model's {width} ({name}); what would: {', '.join(fitting)}"
            raise UserError(f"--tensor_parallel_size {size}: does not divide {what}")


def share_matrices(
    model: PreTrainedModel, mesh: DeviceMesh, other_styles: Mapping[str, ParallelStyle] = MappingProxyType({})
) -> None:
    """Make DTensors of the planned weights over a mesh of one dimension, in place; all may be on the meta device.

    Args:
        other_styles: name of a module -> what is done with it instead of what the plan says.
    """
    plan = planned(model)
    hooks = {name: list(model.get_submodule(name)._forward_hooks) for name in plan}
    parallelize_module(model, mesh, {name: STYLES[style]() for name, style in plan.items()} | dict(other_styles))
    embedding: Any = model.get_input_embeddings()
    embedding.register_forward_hook(_arrived)
    for name, earlier in hooks.items():  # whoever watches a module is to see its output when it has been put together
        in_order: Any = model.get_submodule(name)._forward_hooks
        for hook in earlier:
            in_order.move_to_end(hook)
    model.tie_weights()  # head and embedding are shared alike


def _arrived(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
    """Wait for what is still on its way: a compiled block would give it no gradient; see docs/lessons.md."""
    return output.clone() if isinstance(output, AsyncCollectiveTensor) else output
