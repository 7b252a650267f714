"""Mixtures of experts, measured as if equally many tokens went to each expert: who goes where is in no shape."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel


@contextmanager
def even_shares(
    model: PreTrainedModel, num_tokens: int, on_question: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Let a model run on tensors without contents, each of its experts with an equal share of the tokens.

    Args:
        model: its modules' `to` stays replaced.
        num_tokens: of the batch.
        on_question: is called whenever the model asks for the shares.
    """
    for module in model.modules():
        module.to = partial(_same, module)  # type: ignore[method-assign]
    experts_per_token = getattr(model.config, "num_experts_per_tok", None) or 1
    with EvenShares(num_tokens * experts_per_token, on_question):
        yield


class EvenShares(TorchFunctionMode):
    """Tell a mixture of experts, which asks how many tokens go to each of its experts, that equally many do.

    And tell layerdrop, which asks a number drawn by chance, to keep the layer.

    Args:
        num_sent: tokens, each counted as often as there are experts that it is sent to.
        on_question: is called whenever it asks.
    """

    def __init__(self, num_sent: int, on_question: Callable[[], None]) -> None:
        super().__init__()
        self.num_sent, self.num_experts = num_sent, 1
        self.on_question = on_question

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # JetMoE asks for the sizes of the shares; tensors without contents are asked for one number after the other
        if function is torch.Tensor.tolist and not isinstance(args[0], FakeTensor):
            return [self._share(number, len(args[0])) for number in range(len(args[0]))]
        if function is torch.Tensor.item and not args[0].is_floating_point():
            self.on_question()
            return self._share(args[0].storage_offset(), args[0].untyped_storage().nbytes() // args[0].itemsize)
        if function is torch.Tensor.nonzero and args[0].ndim == 1:  # Switch, NLLB: the experts that any token goes to
            self.on_question()
            self.num_experts = len(args[0])
            return [[number] for number in range(self.num_experts)]
        if function is torch.where and len(args) == 1:  # which tokens go to one of them, as [expert of a token, token]
            share = args[0].numel() // self.num_experts
            return args[0].new_empty(share, dtype=torch.long), args[0].new_empty(share, dtype=torch.long)
        if function is torch.Tensor.__bool__:
            return False
        return function(*args, **(kwargs or {}))

    def _share(self, expert: int, num_experts: int) -> int:
        return self.num_sent * (expert + 1) // num_experts - self.num_sent * expert // num_experts


def _same(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Stand in for `Module.to` of a router that casts itself: tensors that autograd has saved can't be exchanged.

    Raises:
        TypeError: it would be cast, which isn't measured.
    """
    if any(parameter.dtype != dtype for parameter in module.parameters()):
        raise TypeError(f"{type(module).__name__} computes in {dtype}")
    return module
