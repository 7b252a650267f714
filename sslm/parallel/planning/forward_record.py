"""The record of a forward pass on tensors without contents: what it saves, and where that arises.

A compiled block keeps what goes into and comes out of matmuls and attention, sums (of the residual stream), and which
numbers dropout dropped, each in its narrowest type: torch's partitioner computes the rest again between the matmuls, or
would have to write it for them. What is kept of a number-by-number function of a matmul's output, such as attention's
scores under a soft cap, is that output. A block that looks at its tensors' contents ends its graph there; it is taken
to keep what it keeps uncompiled.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslm.models.blocks import blocks
from sslm.models.network import Network
from sslm.parallel.planning.kept import Kept
from sslm.parallel.recompute import ATTENTION, MATMULS

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.clone.default}
GROUPED_MATMUL = torch.ops.aten._grouped_mm.default
LSTM_RESERVE = 64
"""Bytes per unit and token that a fused LSTM keeps in a buffer (16 numbers: gates, states and their inputs).

It is the CPU's. cuDNN's is known to cuDNN alone, which tells its size on a GPU only (cudnnGetRNNTempSpaceSizes);
`benchmarks/gpu.py --only memory` compares the plan with what it takes, and has not run on one yet.
"""

Place = tuple[int | None, int]
"""Number of the block, or None; and number of bodies that had ended."""


class ForwardRecord(TorchDispatchMode):  # type: ignore[no-untyped-call]
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
        self.broken: set[int | None] = set()
        """Blocks that look at their tensors' contents, for which a compiled graph ends there."""
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

    def note_graph_break(self) -> None:
        self.broken.add(self._block)

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
                if block in self.broken:
                    compiled[key] = size
                elif (anchor := self._anchor(key)) is not None:
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
