"""What is done to a model, step after step."""

import argparse
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from transformers import PreTrainedModel

from sslm.cli.compress.calibration import Batch
from sslm.models.compression.plain import load
from sslm.models.compression.pruning.prune import check_prune_once, prune
from sslm.models.compression.pruning.recipe import Pruning
from sslm.models.compression.pruning.shrink import shrink
from sslm.models.compression.quantize import METHODS, Quantization, check, quantize
from sslm.models.quantized import check_installed
from sslm.system.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """One way to make a model smaller: pruned, then quantized."""

    pruning: Pruning | None
    quantization: Quantization | None

    @property
    def name(self) -> str:
        """Name a folder can have."""
        pruned = [] if self.pruning is None else [_name(self.pruning)]
        return "+".join([*pruned, *([] if self.quantization is None else [self.quantization.method])])

    @property
    def library(self) -> str:
        """Name what must be installed beside transformers, as pip does."""
        return "" if self.quantization is None else METHODS[self.quantization.method]

    @property
    def reads_text(self) -> bool:
        """Whether it must see what the layers read."""
        prunes = self.pruning is not None and self.pruning.method == "wanda"
        return prunes or (self.quantization is not None and self.quantization.reads_text)

    def check(self, model: PreTrainedModel) -> None:
        """Raise UserError if it doesn't go with a model."""
        if self.pruning is not None:
            check_prune_once(model, self.pruning)
        if self.quantization is not None:
            check(model, self.quantization)

    def make(self, folder: Path, out: Path, batches: list[Batch]) -> PreTrainedModel:
        """Make a smaller model of a Hugging Face folder's into another folder; return it as it is in memory."""
        if self.pruning is None:
            assert self.quantization is not None
            return quantize(folder, out, self.quantization, batches)
        model = load(folder)
        prune(model, self.pruning, batches)
        if self.pruning.is_structured:
            model = shrink(model)
        if self.quantization is None:
            model.save_pretrained(out)
            return model
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pruned-") as pruned:
            model.save_pretrained(pruned)
            del model
            check(load(Path(pruned), device_map="meta"), self.quantization)  # rows may be shorter now
            return quantize(Path(pruned), out, self.quantization, batches)


def _name(pruning: Pruning) -> str:
    """Name a way to prune.

    >>> _name(Pruning(0.5, "wanda", "2:4")), _name(Pruning(0.25, pattern="heads"))
    ('2of4-wanda', 'heads-0.25')
    """
    method = "" if pruning.method == "magnitude" else f"-{pruning.method}"
    share = "" if pruning.within else f"-{pruning.sparsity:g}"
    return pruning.pattern.replace(":", "of") + share + method


def recipes_of(options: argparse.Namespace) -> list[Recipe]:
    """List what was asked for: each way to prune with each way to quantize.

    Raises:
        UserError: nothing was.
    """
    quantizations = [
        None if name == "none" else Quantization(name, options.group_size, options.embeddings)
        for name in options.quantize
    ]
    found = [Recipe(*both) for both in product(options.prune, quantizations) if any(both)]
    if not found:
        raise UserError("sslm compress: nothing to do; give --quantize int8, or --prune 2:4")
    return found


def check_libraries(recipes: list[Recipe]) -> None:
    """Raise UserError if a library is missing."""
    for recipe in recipes:
        if recipe.quantization is not None:
            check_installed(recipe.library, f"--quantize {recipe.quantization}:")
