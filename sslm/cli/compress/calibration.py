"""Windows of text that tell what a model's layers read: what Wanda prunes by, and GPTQ rounds by."""

import argparse
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslm.cli.compress.quality import FIELDS
from sslm.cli.texts import run_stream, texts_of
from sslm.evaluation.methods import objective_method, window_len
from sslm.evaluation.texts import named
from sslm.models.scoring import in_batches
from sslm.objectives.asked_rows import is_fine_tuned, open_asked
from sslm.runs.trained import Trained
from sslm.system.errors import UserError
from sslm.system.terminal import say

WINDOWS = 128
"""Windows to calibrate with, as Wanda and GPTQ take."""
ROWS = 8
Batch = dict[str, Tensor]


def calibration(trained: Trained, options: argparse.Namespace) -> list[Batch]:
    """Return arguments of forward passes, a few windows at a time.

    They are of --calibrate; else the first that the model's run was trained on; else of what is measured.

    Raises:
        UserError: there is no text, or it can't be read.
    """
    stream = run_stream(trained) if options.calibrate is None else None
    if stream is not None:
        places = np.arange(min(WINDOWS, stream.stream.num_windows))
        examples = stream.stream.at(places)
        arrays = [
            stream.recipe.make_batch(examples.rows(places[first : first + ROWS]), stream.vocabulary, stream.seed)
            for first in range(0, len(places), ROWS)
        ]
        return [_arguments(trained, each) for each in arrays]
    paths = options.data if options.calibrate is None else [options.calibrate]
    if not paths:
        raise UserError(f"{trained.name}: is no run, so it has no text to calibrate with; give some: --calibrate TEXT")
    if options.calibrate is None:
        say("Calibrating with text that is measured, too; --calibrate TEXT takes another")
    found = _of_rows(trained, paths[0], options) if is_fine_tuned(trained) else _of_text(trained, paths, options)
    return [_arguments(trained, each) for each in found]


def _of_text(trained: Trained, paths: list[str], options: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
    method = objective_method(trained, window_len(trained, options.seq_len))
    texts = texts_of(trained, [named(path) for path in paths], options)
    rows = islice((row for text in texts for row in method.rows(text.pieces())), WINDOWS)
    return (method.collate(batch) for batch in in_batches(rows, ROWS, 0))


def _of_rows(trained: Trained, path: str, options: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
    rows = open_asked(trained, path, {name: getattr(options, name) for name in FIELDS})
    for first in range(0, min(WINDOWS, len(rows.places.positions)), ROWS):
        examples = rows.stream.read(rows.places.rows(slice(first, first + ROWS))).rows(slice(None))
        yield rows.recipe.make_batch(examples, rows.vocabulary, 0)


def _arguments(trained: Trained, batch: Mapping[str, Any]) -> Batch:
    """Leave the model's inputs of a batch: labels are a decoder's, and each window is one document."""
    has_decoder_inputs = trained.auto_class == "AutoModelForSeq2SeqLM"
    unread = {"segment_ids", "decoder_segment_ids", *([] if has_decoder_inputs else ["labels"])}
    return {name: torch.as_tensor(values) for name, values in batch.items() if name not in unread}
