"""Pipeline parallelism: each device has consecutive blocks, and a step's micro-batches follow each other through them.

torch's schedule 1F1B (Narayanan et al. 2021, arXiv:2104.04473, section 2.2) lets a device take one forward and one
backward pass in turn, so that it keeps the activations of no more micro-batches than there are devices.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from sslm.models.blocks import blocks, evaluating, is_block
from sslm.models.masks import unread_masks
from sslm.models.network import Predicted
from sslm.models.probe import probe_tokens

EXAMPLES = ("llama", "qwen3", "gpt2", "gpt_neox")
"""Architectures that can be cut; there are more."""


class Passing(GradientCheckpointingLayer):
    """Stands for a block that another rank has."""

    def forward(self, hidden: Tensor, *arguments: Any, **named: Any) -> Tensor:
        return hidden


class Received(nn.Module):
    """Stands for the embedding, which the first rank has: gives what the rank before sent."""

    hidden: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor | None:
        return self.hidden


class Nothing(nn.Module):
    """Stands for the embedding of places, which the first rank has added."""

    def forward(self, places: Tensor) -> Tensor:
        return torch.zeros((), device=places.device)


def cut(model: PreTrainedModel, rank: int, size: int) -> Received:
    """Leave a model the blocks of a rank, in place; the first has the embeddings besides, the last the norm and head.

    Weights keep their names. An embedding that is the head's weight, too, the first and the last have both.
    """
    received, every = Received(), blocks(model)
    mine = set(every[rank * len(every) // size : (rank + 1) * len(every) // size])
    embedding = model.get_input_embeddings()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_block(child) and child not in mine:
                setattr(parent, name, Passing())
            elif child is embedding and rank == size - 1 and ties_ends(model):
                child.forward = received.forward
            elif isinstance(child, nn.Embedding) and rank > 0:
                setattr(parent, name, received if child is embedding else Nothing())
            elif _is_behind(parent, child, model) and rank < size - 1:
                setattr(parent, name, nn.Identity())
    return received


def ties_ends(model: PreTrainedModel) -> bool:
    """Whether the head's weight is the embedding's."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    return getattr(head, "weight", None) is embedding.weight


def _is_behind(parent: nn.Module, child: nn.Module, model: PreTrainedModel) -> bool:
    """Whether a module comes behind the blocks; `suits_pipeline` tries whether that is so."""
    holds_weights = any(True for _ in child.parameters()) and not isinstance(child, nn.Embedding)
    return parent in (model, model.base_model) and holds_weights and child is not model.base_model and not blocks(child)


def stages_of(model: PreTrainedModel, size: int) -> list[PreTrainedModel]:
    """Return the models that so many ranks have; they share their weights with the whole one."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    parts = [copy.deepcopy(model, dict(shared)) for _ in range(size)]
    for rank, part in enumerate(parts):
        cut(part, rank, size)
    return parts


class _Stage(nn.Module):
    """What torch's schedule calls with a micro-batch."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.forward = forward


class Pipeline:
    """The forward pass of a network of which each rank has some blocks, and its steps; all ranks call it together.

    Args:
        group: the ranks, in the blocks' order.
    """

    def __init__(self, network: Any, model: PreTrainedModel, group: dist.ProcessGroup) -> None:
        self.forward, self.model, self.group = network.forward, model, group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.is_first, self.is_last = self.rank == 0, self.rank == self.size - 1
        self.width, self.num_classes = model.config.hidden_size, network.vocab_size
        self.tied: Any = model.get_input_embeddings().weight if ties_ends(model) else None
        self.received = cut(model, self.rank, self.size)
        self._schedules: dict[tuple[Any, ...], Schedule1F1B] = {}
        self._before: Callable[[int], object] = int
        self._weight, self._number = 1.0, 0
        network.forward = network.pipeline = self

    @property
    def dtype(self) -> torch.dtype:
        """Of what ranks send each other: that of the weights."""
        return next(self.model.parameters()).dtype

    def __call__(self, labels: Tensor | None = None, *, predict: bool = False, **inputs: Tensor) -> Any:
        """Take one forward pass, whose result all ranks get; as `Network.forward`, without gradients."""
        ids = inputs["input_ids"]
        entering = ids
        if not self.is_first:
            entering = torch.empty(*ids.shape, self.width, dtype=self.dtype, device=ids.device)
            dist.recv(entering, group=self.group, group_src=self.rank - 1)
        result = self._run(entering, labels, predict=predict, **inputs)
        if not self.is_last:
            dist.send(result.contiguous(), group=self.group, group_dst=self.rank + 1)
        if labels is None:
            return self._of_last(result, *ids.shape, self.num_classes)
        if not predict:
            return self._of_last(result, len(ids))
        losses, tokens = (result.row_losses, result.tokens) if self.is_last else (None, labels.clone())
        dist.broadcast(tokens, group=self.group, group_src=self.size - 1)
        return Predicted(self._of_last(losses, len(ids)), tokens)

    def step(self, tensors: dict[str, Any], rows: int, weight: float, before: Callable[[int], object]) -> Tensor:
        """Take a step's forward and backward passes.

        Args:
            tensors: of the whole batch, as the network takes them.
            rows: of a micro-batch.
            weight: what the losses' sum is multiplied by, whose gradient is wanted.
            before: called with the number of each micro-batch before its forward pass.

        Returns:
            [batch] each row's loss, on every rank.
        """
        self._before, self._weight, self._number = before, weight, 0
        ids = tensors["input_ids"]
        schedule = self._schedule(len(ids) // rows, ids[:rows])
        losses = schedule.step(*([ids] if self.is_first else []), target=tensors["labels"], **tensors)
        self._share_gradient()
        return self._of_last(losses, len(ids))

    def _share_gradient(self) -> None:
        """Give the first rank and the last the sum of their gradients of the weight that both have."""
        if self.tied is None or not (self.is_first or self.is_last):
            return
        gradient = self.tied.grad
        other = torch.empty_like(gradient)
        if self.is_first:
            dist.recv(other, group=self.group, group_src=self.size - 1)
            gradient += other
            dist.send(gradient, group=self.group, group_dst=self.size - 1)
        else:
            dist.send(gradient, group=self.group, group_dst=0)
            dist.recv(gradient, group=self.group, group_src=0)

    def counted(self, parameters: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield this rank's parameters that no rank before it yields."""
        return (parameter for parameter in parameters if self.is_first or parameter is not self.tied)

    def _schedule(self, number: int, ids: Tensor) -> Schedule1F1B:
        """Make a schedule of so many micro-batches, once for each shape."""
        key = number, *ids.shape
        if key not in self._schedules:
            hidden = torch.empty(*ids.shape, self.width, dtype=self.dtype, device="meta")
            losses = torch.empty(len(ids), dtype=torch.promote_types(self.dtype, torch.float32), device="meta")
            stage = PipelineStage(
                _Stage(self._micro_batch),
                self.rank,
                self.size,
                ids.device,
                input_args=ids.to("meta") if self.is_first else hidden.requires_grad_(),
                output_args=losses.requires_grad_() if self.is_last else hidden.detach().requires_grad_(),
                group=self.group,
            )
            self._schedules[key] = Schedule1F1B(stage, number, loss_fn=self._loss, scale_grads=False)
        return self._schedules[key]

    def _micro_batch(self, entering: Tensor, **tensors: Any) -> Any:
        self._before(self._number)
        self._number += 1
        return self._run(entering, **tensors)

    def _run(self, entering: Tensor, labels: Tensor | None, *, predict: bool = False, **inputs: Tensor) -> Any:
        """What comes of this rank's blocks: [batch, length, width], on the last what the network returns."""
        self.received.hidden = entering
        if self.is_last:
            return self.forward(labels, predict=predict, **inputs)
        with unread_masks(self.model):
            return self.model(**inputs, use_cache=False).logits.to(self.dtype)

    def _loss(self, losses: Tensor, labels: Tensor) -> Tensor:
        return losses.sum() * self._weight

    def _of_last(self, result: Tensor | None, *shape: int) -> Tensor:
        """Give all ranks the last one's result, in fp32 at least."""
        dtype = torch.promote_types(self.dtype, torch.float32)
        device = next(self.model.parameters()).device
        here = self.is_last and result is not None
        shared = result.detach().to(dtype).contiguous() if here else torch.empty(shape, dtype=dtype, device=device)  # type: ignore[union-attr]
        dist.broadcast(shared, group=self.group, group_src=self.size - 1)
        return shared


@torch.no_grad()
def suits_pipeline(model: PreTrainedModel) -> bool:
    """Try with two stages of a model that can be run whether it can be cut."""
    if model.config.is_encoder_decoder or len(blocks(model)) < 2 or not hasattr(model.config, "hidden_size"):
        return False
    ids = probe_tokens(model)
    try:
        with evaluating(model):
            whole: Tensor = model(input_ids=ids, use_cache=False).logits
        first, last = stages_of(model, 2)
        embed: Any = last.get_input_embeddings().forward  # of the stand-in, even if the embedding itself is there
        with evaluating(first), evaluating(last):
            embed.__self__.hidden = first(input_ids=ids, use_cache=False).logits
            cut_in_two: Tensor = last(input_ids=ids, use_cache=False).logits
    except Exception:  # each architecture puts its parts together in its own way
        return False
    return torch.allclose(whole, cut_in_two, rtol=1e-4, atol=1e-5)
