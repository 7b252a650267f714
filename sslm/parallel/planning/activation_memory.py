"""Memory that a forward pass keeps for the backward pass, measured on tensors that have shapes and no contents.

Each storage that autograd saves counts once: views cost nothing, and weights are not activations. Attention decides at
length: fused kernels keep their inputs, their output and one number per row, eager ones the whole matrix. On CPUs torch
itself chooses the kernel; for GPUs, where a CPU can't ask it, `_FusedAttention` keeps what FlashAttention (Dao 2023,
arXiv:2307.08691) and the memory-efficient kernel keep, and autocast is CUDA's (`cuda_autocast`). Copies of weights that
autocast makes in 16 bits count too: autograd keeps them until it has used them.

A compiled block keeps what goes into and comes out of matmuls and attention, sums (of the residual stream), and which
numbers dropout dropped, each in its narrowest type: torch's partitioner computes the rest again between the matmuls, or
would have to write it for them. What is kept of a number-by-number function of a matmul's output, such as attention's
scores under a soft cap, is that output. Not counted: what a kernel needs while it runs.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from sslm.models.blocks import blocks
from sslm.models.network import Network
from sslm.models.task import network_for
from sslm.parallel.planning.cuda_autocast import cuda_autocast
from sslm.parallel.recompute import ATTENTION, MATMULS
from sslm.parallel.tensor_parallel import planned

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.clone.default}
GROUPED_MATMUL = torch.ops.aten._grouped_mm.default
LSTM_RESERVE = 64
"""Bytes per unit and token that a fused LSTM keeps in a buffer (16 numbers: gates, states and their inputs).

It is the CPU's. cuDNN's is known to cuDNN alone, which tells its size on a GPU only (cudnnGetRNNTempSpaceSizes);
`benchmarks/gpu.py --only memory` compares the plan with what it takes, and has not run on one yet.
"""


class Kept(NamedTuple):
    """Bytes that one micro-batch's forward pass keeps, by where they arise; each counts in one place."""

    outside: float
    """In the model's body outside its blocks: embeddings, the last norm."""
    inputs: float
    """Inputs of blocks that are saved in any case."""
    repeated: float
    """Inputs of blocks that are kept only to run these again."""
    inside: float
    """In blocks."""
    largest: float
    """In the block that keeps most."""
    products: float
    """Outputs of matmuls and of attention in blocks."""
    compiled: float
    """In blocks, if these are compiled: the compiler computes what is cheap again."""
    head: float
    """In head and loss, if every place is scored."""


@dataclass(frozen=True)
class Activations:
    """`Kept` for any micro-batch size, with which it grows linearly."""

    one: Kept
    two: Kept
    has_head: bool
    """Whether it is known where the head begins, so that it gets the scored places alone."""

    def of(self, micro_batch_size: int) -> Kept:
        return Kept(*(a + (b - a) * (micro_batch_size - 1) for a, b in zip(self.one, self.two, strict=True)))


def measure(
    model: PreTrainedModel,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    on_gpu: bool,
    weights: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    tensor_parallel: int = 1,
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
        loss: settings of the loss, such as z_loss.

    Raises:
        Exception: of any kind, if the architecture looks at its tensors' contents for more than `_EvenShares` answers.
    """
    if (
        "segment_ids" in inspect.signature(model.forward).parameters
    ):  # a model of ours, whose state restarts for nothing
        shapes = {name: shape for name, shape in shapes.items() if name != "segment_ids"}
    runs = []
    for size in (1, 2):
        bare = copy.deepcopy(model)
        with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
            _empty(bare, weights, tensor_parallel)
            for module in bare.modules():
                module.to = partial(_same, module)  # type: ignore[method-assign]
            network = network_for(bare.train(), **loss)
            rows = {name: torch.empty(size, *shape, dtype=torch.long) for name, shape in shapes.items()}
            record = _Record(network)
            kernels: Any = _OfGpus(record) if on_gpu else nullcontext()
            shares = _EvenShares(size * shapes["input_ids"][0] * _experts_per_token(model))
            with record.watching(), _autocast(autocast, on_gpu), kernels, shares:
                network(**rows)
        runs.append(record)
    return Activations(runs[0].kept(), runs[1].kept(), runs[0].has_head)


def _autocast(dtype: torch.dtype | None, on_gpu: bool) -> AbstractContextManager[None]:
    if dtype is None:
        return nullcontext()
    return cuda_autocast(dtype) if on_gpu else torch.autocast("cpu", dtype, cache_enabled=False)


def by_formula(
    model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]], *, bytes_per_number: int, casts: bool = False
) -> Activations:
    """Estimate activations that can't be measured (mixtures of experts).

    Per token and block, 13 numbers of the model's width and 4 of the feed-forward layer's, or of those experts' that
    the token is sent to; per logit, two in fp32. After Korthikanti et al. 2022, arXiv:2205.05198, without the
    attention's matrix, and made to agree with a measured Llama. Under autocast (`casts`) four of the 13 are fp32, and
    each weight of the blocks has its copy.
    """
    config = model.config
    tokens, width = shapes["input_ids"][0], config.hidden_size
    feed_forward = getattr(config, "moe_intermediate_size", None) or getattr(config, "intermediate_size", 4 * width)
    feed_forward *= getattr(config, "num_experts_per_tok", None) or 1
    layers, stream = max(len(blocks(model)), 1), 4.0 * tokens * width
    of_block = float(tokens * (bytes_per_number * (13 * width + 4 * feed_forward) + casts * 8 * width))
    copies = casts * sum(float(bytes_per_number * p.numel()) for block in blocks(model) for p in block.parameters())
    products = float(bytes_per_number * tokens * (5 * width + 3 * feed_forward))
    head = 8.0 * shapes["labels"][0] * config.vocab_size
    inside, products = layers * of_block, layers * products

    def kept(rows: int) -> Kept:
        in_blocks, of_largest = rows * inside + copies, rows * of_block + copies / layers
        inputs = rows * layers * stream
        return Kept(2 * rows * stream, inputs, 0.0, in_blocks, of_largest, rows * products, in_blocks, rows * head)

    return Activations(kept(1), kept(2), has_head=True)


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


Place = tuple[int | None, int]
"""Number of the block, or None; and number of bodies that had ended."""


class _Record(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record what a forward pass saves, the inputs of blocks, and the outputs of matmuls and attention in blocks."""

    def __init__(self, network: Network) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.network, self.blocks = network, blocks(network)
        self.saved: dict[int, tuple[int, Place]] = {}
        self.inputs: dict[int, int] = {}
        self.products: dict[int, int] = {}
        self.anchors: dict[int, int] = {}
        """What a compiled block keeps if it is needed: storage that it was copied from, or its own -> bytes."""
        self._origins: dict[int, int] = {}
        """Storage of a copy -> that of what it is a copy of."""
        self._sources: dict[int, int] = {}
        """Storage of a number-by-number function of one tensor -> that of the tensor."""
        self.has_head = False
        self._block: int | None = None
        self._num_bodies = 0
        self._storages: list[Any] = []  # so that no other takes its number
        self._weights = {_key(t) for t in (*network.parameters(), *network.buffers())}

    @contextmanager
    def watching(self) -> Iterator[None]:
        with ExitStack() as stack:
            for module in self.network.modules():
                if isinstance(module, nn.LSTM):
                    stack.callback(module.register_forward_hook(self._lstm).remove)
            for number, block in enumerate(self.blocks):
                stack.callback(block.register_forward_pre_hook(self._enter(number), with_kwargs=True).remove)
                stack.callback(block.register_forward_hook(self._leave).remove)
            for child in self.network.model.children():
                stack.callback(child.register_forward_hook(self._child).remove)
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor))
            stack.enter_context(self)
            yield

    def _enter(self, number: int) -> Any:
        def enter(block: nn.Module, *arguments: Any) -> None:
            self._block = number
            self._note(self.inputs, arguments)

        return enter

    def _leave(self, *_: Any) -> None:
        self._block = None

    def _child(self, child: nn.Module, _: Any, output: Any) -> None:
        """Tell bodies, which give more than a tensor, from the head, which comes after the last of them."""
        self.has_head = isinstance(output, Tensor)
        self._num_bodies += not self.has_head

    def _lstm(self, layer: nn.Module, _: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        number, size = -len(self.saved) - 1, LSTM_RESERVE * hidden.numel()
        self.saved[number] = size, (self._block, self._num_bodies)
        self.products[number] = size

    def _save(self, tensor: Tensor) -> Tensor:
        if (key := _key(tensor)) not in self._weights and key not in self.saved:
            self.saved[key] = tensor.untyped_storage().nbytes(), (self._block, self._num_bodies)
            self._storages.append(tensor.untyped_storage())
            if tensor.dtype == torch.bool:
                self.note_anchors(tensor)
        return tensor

    def note_product(self, output: Any) -> None:
        if self._block is not None:
            self._note(self.products, output)

    def note_anchors(self, values: Any) -> None:
        noted: dict[int, int] = {}
        self._note(noted, values)
        for key, size in noted.items():
            origin = self._origin(key)
            self.anchors[origin] = min(size, self.anchors.get(origin, size))

    def _origin(self, key: int) -> int:
        return self._origins.get(key, key)

    def _anchor(self, key: int) -> int | None:
        """Return the storage that a compiled block keeps for one that is saved, or None if it computes that again."""
        origin = self._origin(key)
        if origin not in self.anchors:
            while origin in self._sources:
                origin = self._origin(self._sources[origin])
            if origin not in self.products:
                return None
        return None if origin in self.inputs else origin

    def _note(self, where: dict[int, int], values: Any) -> None:
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor) and (key := _key(tensor)) not in self._weights:
                where[key] = tensor.untyped_storage().nbytes()
                self._storages.append(tensor.untyped_storage())

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = _grouped_matmul(*args) if function is GROUPED_MATMUL else function(*args, **(kwargs or {}))
        if function in MATMULS or function in ATTENTION:
            self.note_product(output)
            self.note_anchors((args, output))
        elif function in COPIES:
            self._storages += [args[0].untyped_storage(), output.untyped_storage()]
            self._origins[_key(output)] = self._origin(_key(args[0]))
        elif (source := _only_source(function, args)) is not None:
            self._storages += [source.untyped_storage(), output.untyped_storage()]
            self._sources[_key(output)] = _key(source)
        elif function is torch.ops.aten.add.Tensor and all(isinstance(term, Tensor) for term in args[:2]):
            self.note_anchors(output)
        return output

    def kept(self) -> Kept:
        outside, head, inside = 0.0, 0.0, [0.0] * max(len(self.blocks), 1)
        compiled: dict[int, int] = {}
        for key, (size, (block, num_bodies)) in self.saved.items():
            if key in self.inputs:
                continue
            if block is not None:
                inside[block] += size
                if (anchor := self._anchor(key)) is not None:
                    compiled[anchor] = self.anchors.get(anchor, size)
            elif 0 < num_bodies == self._num_bodies:
                head += size
            else:
                outside += size
        inputs = sum(size for key, size in self.inputs.items() if key in self.saved)
        repeated = sum(self.inputs.values()) - inputs
        products = sum(size for key, size in self.products.items() if key not in self.inputs)
        return Kept(outside, inputs, repeated, sum(inside), max(inside), products, sum(compiled.values()), head)


def _grouped_matmul(tokens: Tensor, experts: Tensor, *_: Any) -> Tensor:
    """Multiply no numbers: torch's own shape rule refuses fp32, which its kernels on CPUs and GPUs take.

    Args:
        tokens: [token of an expert, in], sorted by expert.
        experts: [expert, in, out].
    """
    return tokens.new_empty(len(tokens), experts.shape[-1])


def _only_source(function: Any, args: Any) -> Tensor | None:
    """Return the one tensor of which a new one is made number by number, if that is what the function does."""
    if torch.Tag.pointwise not in function.tags or function._schema.is_mutable:
        return None
    tensors = [value for value in args if isinstance(value, Tensor)]
    return tensors[0] if len(tensors) == 1 else None


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _same(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Stand in for `Module.to` of a router that casts itself: tensors that autograd has saved can't be exchanged.

    Raises:
        TypeError: it would be cast, which isn't measured.
    """
    if any(parameter.dtype != dtype for parameter in module.parameters()):
        raise TypeError(f"{type(module).__name__} computes in {dtype}")
    return module


def _experts_per_token(model: PreTrainedModel) -> int:
    return getattr(model.config, "num_experts_per_tok", None) or 1


class _EvenShares(TorchFunctionMode):
    """Tell a mixture of experts, which asks how many tokens go to each of its experts, that equally many do.

    And tell layerdrop, which asks a number drawn by chance, to keep the layer.

    Args:
        num_sent: tokens, each counted as often as there are experts that it is sent to.
    """

    def __init__(self, num_sent: int) -> None:
        super().__init__()
        self.num_sent, self.num_experts = num_sent, 1

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.item and not args[0].is_floating_point():  # JetMoE: the sizes of the shares
            number, num_experts = args[0].storage_offset(), args[0].untyped_storage().nbytes() // args[0].itemsize
            return self.num_sent * (number + 1) // num_experts - self.num_sent * number // num_experts
        if function is torch.Tensor.nonzero and args[0].ndim == 1:  # Switch, NLLB: the experts that any token goes to
            self.num_experts = len(args[0])
            return [[number] for number in range(self.num_experts)]
        if function is torch.where and len(args) == 1:  # which tokens go to one of them, as [expert of a token, token]
            share = args[0].numel() // self.num_experts
            return args[0].new_empty(share, dtype=torch.long), args[0].new_empty(share, dtype=torch.long)
        if function is torch.Tensor.__bool__:
            return False
        return function(*args, **(kwargs or {}))


class _OfGpus(TorchFunctionMode):
    """Keep what a GPU's kernels keep."""

    def __init__(self, record: _Record) -> None:
        super().__init__()
        self.record = record

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if function is torch.lstm:
            return _FusedLstm.over(*args)
        if function is F.dropout and (args[1:] or [kwargs.get("p", 0.5)])[0] and kwargs.get("training", True):
            return torch.native_dropout(args[0], 0.5, True)[0]  # keeps one byte per number
        return function(*args, **kwargs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            query, key, value = (t.to(torch.get_autocast_dtype("cpu")) for t in (query, key, value))
        if enable_gqa and query.dtype == torch.float32 and query.shape[1] != key.shape[1]:  # no fused kernel has that
            how = {"scale": scale, "enable_gqa": True}
            unfused: Any = torch.ops.aten._scaled_dot_product_attention_math
            return unfused(query, key, value, attn_mask, dropout_p, is_causal, **how)[0]  # type: ignore[no-any-return]
        if (
            attn_mask is not None and attn_mask.dtype == torch.bool
        ):  # the kernel adds numbers: another tensor in each block
            attn_mask = torch.where(attn_mask, 0.0, -torch.inf).to(query.dtype)
        output: Tensor = _FusedAttention.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]
        self.record.note_anchors((query, key, value, attn_mask, output))
        if not dropout_p:  # with dropout it is computed again
            self.record.note_product(output)
        return output


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)  # as the kernels lay it
        of_rows = query.new_empty(batch, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, of_rows, mask)
        return output


class _FusedLstm(torch.autograd.Function):
    """Keep what cuDNN keeps beside its buffer: the sequence that comes in, the one that goes out, and the weights."""

    @staticmethod
    def over(inputs: Tensor, _: Any, weights: list[Tensor], *how: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Stand in for `torch.lstm` with one layer in one direction."""
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            inputs, weights = inputs.to(dtype), [weight.to(dtype) for weight in weights]
        output: Tensor = _FusedLstm.apply(inputs, *weights)  # type: ignore[no-untyped-call]
        return output, output, output

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *weights: Tensor) -> Tensor:
        output = inputs.new_empty(*inputs.shape[:-1], weights[1].shape[1])
        ctx.save_for_backward(inputs, output, *weights)
        return output
