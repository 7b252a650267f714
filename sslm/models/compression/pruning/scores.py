"""How much each weight matters: pure functions of weights, and of what their layers read."""

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from sslm.models.compression.pruning.matrices import Matrix


def wanda(weight: Tensor, input_squares: Tensor, input_dim: int) -> Tensor:
    """Score weights by |W| · ‖x‖ (Sun et al. 2023, arXiv:2306.11695).

    Args:
        weight: a matrix.
        input_squares: [inputs] sum over tokens of each input's square.
        input_dim: dimension of the matrix along which its inputs stand.
    """
    norms = input_squares.sqrt()
    return weight.abs() * (norms if input_dim == 1 else norms[:, None])


class InputSquares:
    """Sums, over the tokens that pass while this is entered, the squares of what linear layers read.

    Args:
        layers: by the names of their weights.
    """

    def __init__(self, layers: Mapping[str, Matrix]) -> None:
        self.layers = layers
        self.sums: dict[str, Tensor] = {}
        """Name -> [inputs] sum of squares, in fp32."""
        self.places: list[Tensor] = []
        """[rows, length] masks of the tokens that count; of inputs of another shape all count."""
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        for name, (layer, _) in self.layers.items():
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
            squares = inputs.square() if mask is None else inputs.square() * (mask != 0)[..., None]
            total = squares.flatten(0, -2).sum(0)
            self.sums[name] = self.sums[name] + total if name in self.sums else total

        return add


def masks_in(batch: Mapping[str, Any]) -> list[Tensor]:
    """Masks [rows, length] of a batch's tokens."""
    return [mask for key in ("attention_mask", "decoder_attention_mask") if isinstance(mask := batch.get(key), Tensor)]


@torch.no_grad()
def input_squares(
    model: nn.Module, layers: Mapping[str, Matrix], batches: Iterable[Mapping[str, Any]]
) -> dict[str, Tensor]:
    """Sum the squares of what linear layers read, over all tokens of batches that are a model's arguments."""
    with InputSquares(layers) as squares:
        for batch in batches:
            squares.places = masks_in(batch)
            model(**batch)
    return squares.sums
