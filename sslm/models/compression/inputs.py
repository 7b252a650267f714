"""What linear layers read, summed over tokens: how much each of their inputs matters."""

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

Sum = Callable[[Tensor], Tensor]
"""[tokens, inputs] what a layer reads -> what is added up."""


def squares(tokens: Tensor) -> Tensor:
    """[inputs] each input's square, summed over tokens."""
    return tokens.square().sum(0)


def products(tokens: Tensor) -> Tensor:
    """[inputs, inputs] products of each two inputs, summed over tokens."""
    return tokens.T @ tokens


class InputSums:
    """Sums over the tokens that pass while this is entered.

    Args:
        layers: by the names that their sums get.
        of: what is summed: `squares` or `products`.
    """

    def __init__(self, layers: Mapping[str, nn.Module], of: Sum) -> None:
        self.layers, self.of = layers, of
        self.sums: dict[str, Tensor] = {}
        """Name -> sum, in fp32; of layers that have read something."""
        self.places: list[Tensor] = []
        """[rows, length] masks of the tokens that count; of inputs of another shape all count."""
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for name, layer in self.layers.items():
            self._hooks.append(layer.register_forward_pre_hook(self._adding_to(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _adding_to(self, name: str) -> Any:
        def add(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
            inputs = arguments[0].detach().float()
            mask = next((m for m in self.places if m.shape == inputs.shape[:-1]), None)
            counted = inputs if mask is None else inputs * (mask != 0)[..., None]
            total = self.of(counted.flatten(0, -2))
            self.sums[name] = self.sums[name] + total if name in self.sums else total

        return add


def masks_in(batch: Mapping[str, Any]) -> list[Tensor]:
    """Masks [rows, length] of a batch's tokens."""
    return [mask for key in ("attention_mask", "decoder_attention_mask") if isinstance(mask := batch.get(key), Tensor)]


@torch.no_grad()
def input_sums(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Mapping[str, Any]], of: Sum
) -> dict[str, Tensor]:
    """Sum over all tokens of batches that are a model's arguments, as `InputSums` does."""
    with InputSums(layers, of) as found:
        for batch in batches:
            found.places = masks_in(batch)
            model(**batch)
    return found.sums
