"""Tensor parallelism (Shoeybi et al. 2019, arXiv:1909.08053): devices share each matrix, by the plan that transformers has for
the architecture. Activations between the matrices, and what the plan doesn't name (norms), are whole on each device.
"""

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from transformers import PreTrainedModel

from sslm.system.errors import UserError

EXAMPLES = ("llama", "qwen3", "mistral", "gemma2", "gpt_neox", "phi3", "olmo2")
"""Some architectures with a plan."""


class SumGradient(ParallelStyle):
    """A module whole on each device that sees a part of the heads: its gradient is the sum of what the devices have."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        forward, group = module.forward, device_mesh.get_group()

        def with_summed_gradient(*arguments: Any, **named: Any) -> Any:
            weights: dict[str, Any] = dict(module._parameters)
            shared: dict[str, Any] = {
                name: summed(weight, group) for name, weight in weights.items() if weight is not None
            }
            module._parameters.update(shared)
            try:
                return forward(*arguments, **named)
            finally:
                module._parameters.update(weights)

        module.forward = with_summed_gradient
        return module


class _SumOfGradients(torch.autograd.Function):
    """The identity; backward: the sum over a group."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


def summed(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    out: Tensor = _SumOfGradients.apply(tensor, group)  # type: ignore[no-untyped-call]
    return out


_WHOLE_OUTPUT, _WHOLE_INPUT = (
    partial(ColwiseParallel, output_layouts=Replicate()),
    partial(RowwiseParallel, input_layouts=Replicate()),
)
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
"""transformers' name of a style -> ours. Those of experts (mixtures) and of packed matrices are not among them."""


def planned(model: PreTrainedModel) -> dict[str, str]:
    """Names of modules and their styles, by the architecture's plan; empty where it has none or one that isn't known here."""
    plan: dict[str, str] = getattr(model, "_tp_plan", None) or {}
    if not set(plan.values()) <= STYLES.keys():
        return {}
    names = [name for name, _ in model.named_modules()]
    return {name: style for pattern, style in plan.items() for name in names if fnmatchcase(name, pattern)}


def check_tensor_parallel(model: PreTrainedModel, size: int) -> None:
    """Raises:
    UserError: the architecture has no plan, or `size` does not divide what it shares.
    """
    kind, config, plan = model.config.model_type, model.config, planned(model)
    if sum(style.startswith(("colwise", "rowwise")) for style in plan.values()) < 2:  # one may be the head's
        raise UserError(
            f"--model.model_type {kind}: transformers has no plan for its tensor parallelism that sslm knows; {', '.join(EXAMPLES)} "
            f"and others have one; or give --strategy fsdp"
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
            raise UserError(
                f"--tensor_parallel_size {size}: does not divide the model's {width} ({name}); what would: {', '.join(fitting)}"
            )


def share_matrices(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Change `model` in place: the planned weights become DTensors on `mesh` (1-D); it may be on the meta device."""
    plan = planned(model)
    hooks = {name: list(model.get_submodule(name)._forward_hooks) for name in plan}
    parallelize_module(model, mesh, {name: STYLES[style]() for name, style in plan.items()})
    for name, earlier in hooks.items():  # whoever watches a module is to see its output when it has been put together
        in_order: Any = model.get_submodule(name)._forward_hooks
        for hook in earlier:
            in_order.move_to_end(hook)
    model.tie_weights()  # head and embedding are shared alike
