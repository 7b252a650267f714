"""What a fine-tuned model says of the rows that were held out: predictions.jsonl in the run folder, and a picture."""

import json
from contextlib import closing
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from sslm.data.stream.labelled_rows import LabelledRows
from sslm.models.task import network_for
from sslm.models.weights import in_fp32
from sslm.objectives.predicted_scores import in_words, scores_of
from sslm.objectives.predictions import Prediction, pairs_of, predictions
from sslm.objectives.text_scores import Tokenize, text_scores
from sslm.objectives.writing import How, written
from sslm.runs.folder import RunFolder
from sslm.runs.predicted import draw
from sslm.runs.trained import Trained, open_trained
from sslm.system.files import write_atomically
from sslm.system.terminal import Progress, plural, say, warn

WRITES: Literal["text_to_text"] = "text_to_text"
MOST_WRITTEN = 1000
"""Rows for which a run's end writes texts, spread evenly over those held out: one takes as long as many labels."""
BATCH_SIZE = 32


def predict_held_out(run: RunFolder, held_out: LabelledRows, device: torch.device) -> None:
    """Predict the rows that a run was validated on by its export; predictions.jsonl comes last, and whole.

    One process does it alone. If the device has too little memory it is left out, and that is said.
    """
    trained = open_trained(str(run.path), prefers_export=True)
    if trained.objective == WRITES and (number := len(held_out.places.positions)) > MOST_WRITTEN:
        some = np.arange(MOST_WRITTEN) * number // MOST_WRITTEN
        held_out = replace(held_out, places=held_out.places.rows(some))
    try:
        rows = said_of(trained, held_out, device, BATCH_SIZE, How())
    except torch.OutOfMemoryError:
        warn(f"No predictions.jsonl: one device has too little memory; type sslm predict {run.path} --data … --out …")
        return
    known = [row for row in rows if "label" in row]
    tell_scores(known, trained, "auto")
    if pairs := pairs_of(known) if trained.objective != WRITES else []:
        draw(pairs, run.predicted, run.path.name)
        say(f"Picture:  {run.predicted}", to_copy=True)
    write_rows(rows, run.predictions)
    say(f"Held-out rows and what is predicted: {run.predictions}", to_copy=True)


def said_of(trained: Trained, rows: LabelledRows, device: torch.device, batch_size: int, how: How) -> list[Prediction]:
    """Predict rows, whatever the model was fine-tuned for; progress is shown."""
    with closing(Progress()) as bar:

        def report(done: int, number: int) -> None:
            share = done / number
            bar.show(f"{done:,} of {plural(number, 'row', exact=True)}, {bar.time_left(share)}", share)

        if trained.objective == WRITES:
            nn.Module.to(in_fp32(trained.model), device)
            return list(written(rows, trained, how, batch_size, report))
        network = network_for(in_fp32(trained.model)).eval().to(device)
        return list(predictions(rows, network, trained.objective, labels_of(trained), batch_size, report))


def write_rows(rows: list[Prediction], file: Any) -> None:
    """Write rows as .jsonl, all or none."""
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def tell_scores(known: list[Prediction], trained: Trained, tokenize: Tokenize) -> None:
    """Say how well the rows that have labels are predicted."""
    if not known:
        return
    if trained.objective != WRITES:
        say(in_words(scores_of(known, trained.objective, labels_of(trained)), len(known)))
        return
    found = text_scores([row["predicted"] for row in known], [row["label"] for row in known], tokenize)
    say(in_words(found.scores, len(known)))
    say(found.how)


def labels_of(trained: Trained) -> list[str]:
    """Names of a model's labels, by number."""
    names: Any = trained.model.config.id2label
    return [str(names[number]) for number in range(len(names))]
