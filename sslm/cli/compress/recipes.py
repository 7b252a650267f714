"""What is done to a model, step after step."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from sslm.models.compression.quantize import METHODS, Quantization, check, check_installed, quantize
from sslm.system.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """One way to make a model smaller."""

    quantization: Quantization | None

    @property
    def name(self) -> str:
        """Name a folder can have."""
        return str(self.quantization)

    @property
    def library(self) -> str:
        """Name what must be installed beside transformers, as pip does."""
        return "" if self.quantization is None else METHODS[self.quantization.method].replace("_", "-")

    def check(self, model: PreTrainedModel) -> None:
        """Raise UserError if it doesn't go with a model."""
        if self.quantization is not None:
            check(model, self.quantization)

    def make(self, folder: Path, out: Path) -> PreTrainedModel:
        """Make a smaller model of a Hugging Face folder's into another folder; return it as it is in memory."""
        assert self.quantization is not None
        return quantize(folder, out, self.quantization)


def recipes_of(options: argparse.Namespace) -> list[Recipe]:
    """List what was asked for.

    Raises:
        UserError: nothing was.
    """
    methods = [name for name in options.quantize if name != "none"]
    if not methods:
        raise UserError("sslm compress: nothing to do; give --quantize int8")
    return [Recipe(Quantization(name, options.group_size, options.embeddings)) for name in methods]


def check_libraries(recipes: list[Recipe]) -> None:
    """Raise UserError if a library is missing."""
    for recipe in recipes:
        if recipe.quantization is not None:
            check_installed(recipe.quantization.method)
