"""Memory that a forward pass keeps for the backward pass, measured on tensors that have shapes and no contents.

Each storage that autograd saves counts once: views cost nothing, and weights are not activations. Attention decides at
length: fused kernels keep their inputs, their output and one number per row, eager ones the whole matrix. On CPUs torch
itself chooses the kernel; for GPUs, where a CPU can't ask it, `GpuKernels` keep what the fused ones keep, and autocast
is CUDA's (`cuda_autocast`). Copies of weights that autocast makes in 16 bits count too: autograd keeps them until it
has used them. Not counted: what a kernel needs while it runs.
"""

import copy
import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from sslm.models.task import network_for
from sslm.parallel.planning.cuda_autocast import cuda_autocast
from sslm.parallel.planning.even_shares import even_shares
from sslm.parallel.planning.forward_record import ForwardRecord
from sslm.parallel.planning.gpu_kernels import GpuKernels
from sslm.parallel.planning.kept import Activations
from sslm.parallel.sequence_parallel import take_places
from sslm.parallel.tensor_parallel import planned


def measure(
    model: PreTrainedModel,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    on_gpu: bool,
    weights: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    tensor_parallel: int = 1,
    shares_places: bool = False,
    **loss: Any,
) -> Activations:
    """Measure the activations of a training step.

    Args:
        model: may be on the meta device; it is not changed.
        shapes: of one row of each of the batch's tensors, `labels` among them.
        on_gpu: count what a GPU's kernels keep.
        weights: dtype of the weights that the forward pass sees.
        autocast: dtype of matmuls, or None without autocast.
        tensor_parallel: devices that share each matrix of the architecture's plan.
        shares_places: whether these devices have some places of every row each between the matrices.
        loss: settings of the loss, such as z_loss.

    Raises:
        Exception: of any kind, if the architecture looks at its tensors' contents for more than `even_shares` answers.
    """
    if "segment_ids" in inspect.signature(model.forward).parameters:  # the LSTM's state restarts for nothing
        shapes = {name: shape for name, shape in shapes.items() if name != "segment_ids"}
    runs = []
    for size in (1, 2):
        bare = copy.deepcopy(model)
        with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
            _empty(bare, weights, tensor_parallel)
            if shares_places:
                take_places(bare, _FirstPlaces(tensor_parallel))
            network = network_for(bare.train(), **loss)
            rows = {name: torch.empty(size, *shape, dtype=torch.long) for name, shape in shapes.items()}
            record = ForwardRecord(network)
            kernels: Any = GpuKernels(record) if on_gpu else nullcontext()
            shares = even_shares(bare, size * shapes["input_ids"][0], record.note_graph_break)
            with record.watching(), _autocast(autocast, on_gpu), kernels, shares:
                network(**rows)
        runs.append(record)
    return Activations(runs[0].kept(), runs[1].kept(), runs[0].has_head)


class _FirstPlaces:
    """In the stead of `sequence_parallel.Places`: those of the first rank, of tensors without contents."""

    def __init__(self, size: int) -> None:
        self.size, self.length = size, 0

    def cut(self, whole: Tensor) -> Tensor:
        return whole[:, : -(-self.length // self.size)].clone()

    scatter = cut

    def gather(self, part: Tensor) -> Tensor:
        return part.repeat(1, self.size, 1)[:, : self.length]

    join = gather


def _autocast(dtype: torch.dtype | None, on_gpu: bool) -> AbstractContextManager[None]:
    if dtype is None:
        return nullcontext()
    return cuda_autocast(dtype) if on_gpu else torch.autocast("cpu", dtype, cache_enabled=False)


def _empty(model: PreTrainedModel, weights: torch.dtype, tensor_parallel: int) -> None:
    """Give `model` new tensors without contents, in place; of matrices that devices share, one device's part."""
    halves = {"colwise": 0, "rowwise": 1}
    shared = {name: halves[style] for name, style in planned(model).items() if style in halves}
    made: dict[int, Tensor] = {}  # by what they stand for: tied weights stay tied
    for name, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    is_weight, shape = isinstance(tensor, nn.Parameter), list(tensor.shape)
                    if is_weight and (dim := shared.get(name, len(shape))) < len(shape):
                        shape[dim] //= tensor_parallel
                    dtype = weights if is_weight and tensor.is_floating_point() else tensor.dtype
                    made[id(tensor)] = torch.empty(shape, dtype=dtype)
                    if is_weight:
                        made[id(tensor)] = nn.Parameter(made[id(tensor)], tensor.requires_grad)
                tensors[key] = made[id(tensor)]
