"""Smaller models, made and measured one after the other, in a folder that appears whole or not at all."""

import argparse
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from sslm.cli.compress.calibration import Batch, calibration
from sslm.cli.compress.flags import MostLoss
from sslm.cli.compress.quality import Measure, Quality
from sslm.cli.compress.recipes import Recipe
from sslm.cli.compress.reloaded import Measured, device_of, measured_elsewhere
from sslm.cli.compress.report import write_card, write_report
from sslm.cli.compress.results import Result, Results
from sslm.models.architecture import read_config
from sslm.models.quantized import library_of
from sslm.runs.trained import Trained, open_trained
from sslm.system.errors import UserError
from sslm.system.files import made_whole, one_maker
from sslm.system.terminal import say

LIBRARIES = ("sslm", "torch", "transformers", "torchao", "compressed-tensors")
ORIGINAL = "original"


class _AllWorse(Exception):
    """Nothing is good enough to be written."""


def compress(options: argparse.Namespace, arguments: list[str], recipes: list[Recipe]) -> Results:
    """Make a folder of smaller models; those that are worse than asked are left out, and if all are, there is none.

    Args:
        options: the flags.
        arguments: as typed.
        recipes: what to make; each has a name of its own.

    Raises:
        UserError: the model can't be opened, measured, or made smaller so.
    """
    device = device_of(options.device)
    trained = open_trained(options.model, options.last, prefers_export=not options.last)
    if library_of(read_config(trained.folder, "")) is not None:
        raise UserError(f"{trained.name}: its weights are quantized already; give the model that it was made of")
    for recipe in recipes:
        recipe.check(trained.model)
    measure = Measure(trained, options)
    batches = calibration(trained, options) if any(recipe.reads_text for recipe in recipes) else []
    with suppress(_AllWorse), one_maker(options.out), made_whole(options.out) as part:
        maker = _Maker(trained, part / ".original", measure, batches, device, arguments, options.at_most_loss)
        results = maker.original(options.model)
        for recipe in recipes:
            results.smaller.append(maker.smaller(recipe, part if len(recipes) == 1 else part / recipe.name, results))
        shutil.rmtree(maker.base)
        if not any(result.is_kept for result in results.smaller):
            raise _AllWorse
        write_report(results, part)
    return results


@dataclass
class _Maker:
    """Makes smaller models of one, and measures them."""

    trained: Trained
    base: Path
    """Folder of the original, while the work goes on."""
    measure: Measure
    batches: list[Batch]
    """To calibrate with."""
    device: torch.device
    arguments: list[str]
    at_most_loss: MostLoss | None

    def original(self, name: str) -> Results:
        """Write the original as a plain folder, measure it, and free its memory."""
        model = self.trained.model
        model.save_pretrained(self.base)
        self.trained.tokenizer.save_pretrained(self.base)
        say(f"{ORIGINAL}: measuring, in a process of its own …")
        found = measured_elsewhere(self.base, self.trained, self.arguments)
        result = _result(ORIGINAL, self.base, model, None, found)
        nn.Module.to(model, "meta")
        versions = {name: version(name) for name in LIBRARIES if find_spec(name.replace("-", "_"))}
        quality = found.quality
        return Results(
            name, quality.metric, quality.higher_is_better, self.at_most_loss, versions, self.device.type, result, []
        )

    def smaller(self, recipe: Recipe, folder: Path, results: Results) -> Result:
        """Make a smaller model in a folder, which is removed again if that is worse than asked."""
        folder.mkdir(exist_ok=True)
        say(f"{recipe.name}: making, measuring, and measuring again in a process of its own …")
        model = recipe.make(self.base, folder, self.batches)
        self.trained.tokenizer.save_pretrained(folder)
        in_memory = self.measure.quality(self.trained._replace(model=model), self.device)
        found = measured_elsewhere(folder, self.trained, self.arguments)
        result = _result(recipe.name, folder, model, in_memory, found)
        before, after = results.original.reloaded, result.reloaded
        if self.at_most_loss is None or self.at_most_loss.allows(before, after, results.higher_is_better):
            write_card(folder, recipe, results, result)
            return result
        if folder != self.base.parent:
            shutil.rmtree(folder)
        return replace(result, is_kept=False)


def _result(name: str, folder: Path, model: PreTrainedModel, in_memory: Quality | None, found: Measured) -> Result:
    num, nonzero = _counts(model)
    return Result(
        name,
        sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        num,
        nonzero / num,
        None if in_memory is None else in_memory.value,
        found.quality.value,
        found.quality.scores,
        found.tokens_per_second,
        found.peak_bytes,
    )


@torch.no_grad()
def _counts(model: PreTrainedModel) -> tuple[int, int]:
    """Count parameters, and those that are not 0; of quantized ones what they stand for."""
    num = nonzero = 0
    for weight in model.parameters():
        plain = weight.dequantize() if hasattr(weight, "qdata") else weight
        num, nonzero = num + plain.numel(), nonzero + int(plain.count_nonzero())
    return num, nonzero
