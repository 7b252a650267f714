"""What a model's blocks say on the way to its outputs: hidden states, and scores of attention before the softmax.

Blocks are told by type, and attention by the function of transformers that computes it: one of ours stands there, which
lets SDPA attend and makes the scores beside it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sslm.models.blocks import evaluating, stacks
from sslm.models.masks import SCORES
from sslm.models.probe import probe_tokens

KEEP = "keep_scores"
"""Attribute of an attention layer that is watched: what is called with scores and mask."""


class Scores(NamedTuple):
    """Attention's scores in a layer."""

    values: Tensor
    """[rows, heads, queries, keys], scaled, before the mask and the softmax."""
    visible: Tensor
    """[rows or 1, heads or 1, queries or 1, keys] whether a query sees a key."""


class Said(NamedTuple):
    """What the watched layers of one stack said in a pass, in their order."""

    hidden: list[Tensor]
    """[rows, length, width] each."""
    scores: list[Scores]


class Shape(NamedTuple):
    """Of a stack of blocks."""

    depth: int
    width: int
    heads: int | None
    """None if its attention's scores can't be had: it has none, or computes them in a way of its own."""


class LayerStates(nn.Module):
    """Keeps what a model's blocks say in a pass, from `begin` to `end`.

    Args:
        model: its blocks are watched from now on.
        hidden: of each stack whose states are kept: 0 is what goes into the first block, n what comes out of block n.
        scores: of each stack whose scores are kept: n is block n. If there are any, SDPA computes the attention.
        widths: of each stack, to what hidden states are projected; None: they are not.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        hidden: Sequence[Sequence[int]],
        scores: Sequence[Sequence[int]],
        widths: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        self._kept_layers = [*zip(hidden, scores, strict=True)]
        self._model = [model]  # in a list: whoever has this is a module, and the model's owner
        self._attention = model.config._attn_implementation
        self._handles: list[Any] = []
        self._is_keeping = False
        self._hidden: dict[tuple[int, int], Tensor] = {}
        self._scores: dict[tuple[int, int], Scores] = {}
        device = next(model.parameters()).device
        self.projections = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(*pair, bias=False, device=device) for name in ("embeddings", "blocks")})
            for pair in widths or ()
        )
        if any(scores):
            model.set_attn_implementation(SCORES)
        for stack, (blocks, (stated, scored)) in enumerate(zip(stacks(model), self._kept_layers, strict=True)):
            if 0 in stated:
                keep_input = partial(self._keep_input, (stack, 0))
                self._handles.append(blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True))
            for number, block in enumerate(blocks, start=1):
                if number in stated:
                    self._handles.append(block.register_forward_hook(partial(self._keep_output, (stack, number))))
                for layer in block.modules() if number in scored else ():
                    setattr(layer, KEEP, partial(self._keep_scores, (stack, number)))

    def release(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        for layer in self._model[0].modules():
            layer.__dict__.pop(KEEP, None)
        self._model[0].set_attn_implementation(self._attention)

    def begin(self) -> None:
        """Keep what is said from now on."""
        self._hidden, self._scores, self._is_keeping = {}, {}, True

    def end(self) -> list[Said]:
        """Return what each stack has said since `begin`, projected if that is wanted."""
        self._is_keeping = False
        said = [
            Said(
                [self._projected((stack, n), self._hidden[stack, n]) for n in stated if (stack, n) in self._hidden],
                [self._scores[stack, n] for n in scored if (stack, n) in self._scores],
            )
            for stack, (stated, scored) in enumerate(self._kept_layers)
        ]
        self._hidden, self._scores = {}, {}
        return said

    def _projected(self, at: tuple[int, int], states: Tensor) -> Tensor:
        if not len(self.projections):
            return states
        stack, layer = at
        projections: Any = self.projections[stack]
        projection: nn.Linear = projections["blocks" if layer else "embeddings"]
        projected: Tensor = projection(states.to(projection.weight.dtype))
        return projected

    def _keep_input(self, at: tuple[int, int], block: nn.Module, arguments: tuple[Any, ...], named: Any) -> None:
        self._keep(self._hidden, at, arguments[0] if arguments else named["hidden_states"])

    def _keep_output(self, at: tuple[int, int], block: nn.Module, arguments: Any, output: Any) -> None:
        self._keep(self._hidden, at, output if isinstance(output, Tensor) else output[0])

    def _keep_scores(self, at: tuple[int, int], make: Callable[[], Scores]) -> None:
        if self._is_keeping and at in self._scores:
            return  # a block attends to itself first, then to what an encoder read
        if torch.is_grad_enabled() or self._is_keeping:  # a block that is computed again must compute the same
            self._keep(self._scores, at, make())

    def _keep(self, kept: dict[tuple[int, int], Any], at: tuple[int, int], value: Any) -> None:
        if not self._is_keeping:
            return
        if at in kept:
            raise ValueError("a block is called more than once")
        kept[at] = value


def shapes_of(model: PreTrainedModel, *, scores: bool) -> list[Shape]:
    """Find out by a try on a few tokens what a model's stacks of blocks have.

    Args:
        scores: whether scores of attention are tried, too.

    Raises:
        ValueError: its blocks can't be told apart.
    """
    scores = scores and model.config._attn_implementation == "sdpa"  # eager has caps or sinks
    every, ids = [range(len(stack) + 1) for stack in stacks(model)], probe_tokens(model)
    scored = [layers[1:] if scores else () for layers in every]
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    states = LayerStates(model, hidden=every, scores=scored)
    try:
        states.begin()
        with evaluating(model), torch.no_grad():
            model(**inputs)
        said = states.end()
    finally:
        states.release()
    if not said:
        raise ValueError("blocks are in no list")
    found = []
    for one, layers in zip(said, every, strict=True):
        if len(one.hidden) < len(layers):
            raise ValueError("a block is not called")
        heads = {scores.values.shape[1] for scores in one.scores}
        knows_scores = len(one.scores) == len(layers) - 1 and len(heads) == 1
        found.append(Shape(len(layers) - 1, one.hidden[-1].shape[-1], heads.pop() if knows_scores else None))
    return found


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: Any
) -> tuple[Tensor, None]:
    """Attend as SDPA does, and show the scores to whoever watches this layer."""
    if (keep := getattr(module, KEEP, None)) is not None:
        keep(partial(_scores, module, query, key, attention_mask, **how))
    attended: tuple[Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **how)
    return attended


def _scores(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **_: Any,
) -> Scores:
    """Make the scores that SDPA computes inside, of what transformers gives to it."""
    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, dim=1) if groups > 1 else key
    values = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if position_bias is not None:
        values = values + position_bias
    if mask is None:
        visible = torch.ones(values.shape[-2:], dtype=torch.bool, device=values.device)[None, None]
        hides_future = getattr(module, "is_causal", True) if is_causal is None else is_causal
        return Scores(values, visible.tril() if hides_future and query.shape[2] > 1 else visible)
    return Scores(values, mask if mask.dtype == torch.bool else mask >= 0)


ALL_ATTENTION_FUNCTIONS.register(SCORES, _attend)
