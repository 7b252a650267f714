"""What a fine-tuned model says of a row, in words: classes and their probabilities, tags, numbers, answers."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslm.data.labelled.answers import text_at
from sslm.data.labelled.task import Example
from sslm.data.stream.labelled_rows import LabelledRows
from sslm.data.stream.recipe import Ints
from sslm.models.network import Network
from sslm.models.task import NUMBER, SEVERAL, likeliest_spans, window_with_answer

MOST_SCORES = 20
"""Probabilities of more classes than these are not written, but for the likeliest ones."""

Prediction = dict[str, Any]
Fields = dict[str, Ints]
"""A recipe's fields of one row's records: name -> [records, length]."""


def classes_of(logits: Tensor, example: Example, fields: Fields, labels: Sequence[str], kind: str) -> Prediction:
    """Say a row's class, its labels, or its number.

    Args:
        logits: [1, classes].
        example: the row.
        fields: of its record.
        labels: names of the classes.
        kind: the model's `problem_type`.
    """
    if kind == NUMBER:
        return {"predicted": float(logits[0, 0])}
    shares = (logits.sigmoid() if kind == SEVERAL else logits.softmax(dim=-1))[0].tolist()
    likely = sorted(zip(shares, labels, strict=True), key=lambda pair: -pair[0])
    scores = {name: round(share, 6) for share, name in likely[:MOST_SCORES]}
    if kind == SEVERAL:
        return {
            "predicted": [name for share, name in zip(shares, labels, strict=True) if share > 0.5],
            "scores": scores,
        }
    return {"predicted": likely[0][1], "scores": scores}


def tags_of(logits: Tensor, example: Example, fields: Fields, labels: Sequence[str], kind: str) -> Prediction:
    """Say a tag for each word, from the window that begins it; None for words that have no token."""
    tags: list[str | None] = [None] * len(example.text)
    for window, place in zip(*np.nonzero(fields["words"] > 0), strict=True):
        tags[fields["words"][window, place] - 1] = labels[int(logits[window, place].argmax())]
    return {"words": len(tags), "predicted": tags}


def answer_of(logits: Tensor, example: Example, fields: Fields, labels: Sequence[str], kind: str) -> Prediction:
    """Say where in the context the answer stands: the likeliest span of all windows, or none if [CLS] is likelier.

    Args:
        logits: [windows, 2, seq_len] of beginnings and of ends.
        example: the row.
        fields: of its records, a window each.
        labels: none.
        kind: not used.
    """
    spans = likeliest_spans(logits, torch.from_numpy(fields["ends"][:, : logits.shape[2]] > 0))
    score = float(spans[:, 2].max() - spans[:, 3].min())
    said = {"score": round(score, 6) if np.isfinite(score) else None}
    if (window := window_with_answer(spans)) is None:
        return {"predicted": "", "start": None, **said}
    first, last = spans[window, :2].long().tolist()
    answer, start = text_at(example.text, int(fields["starts"][window, first]), int(fields["ends"][window, last]))
    return {"predicted": answer, "start": start, **said}


WORDS = {"classification": classes_of, "regression": classes_of, "tagging": tags_of, "extraction": answer_of}
"""Objective -> what says a model's prediction in words."""


def truth_of(example: Example, objective: str, kind: str) -> Any:
    """What the file says of a row, or None if it doesn't say: in the form of what is predicted."""
    if objective == "regression":
        return example.target
    if objective == "extraction":
        return None if example.target is None else list(example.answers)
    if objective == "tagging":
        return list(example.labels) if any(example.labels) else None
    return list(example.labels) if kind == SEVERAL else next(iter(example.labels), None)


def pairs_of(rows: Sequence[Prediction]) -> list[tuple[Any, Any]]:
    """Pair what is right with what is predicted, for a picture: classes, tags word by word, numbers, whether there is
    an answer.

    Of several labels a row, each that is there or predicted is a pair, the other half of it `none` if there is none.

    >>> pairs_of([{"label": "a", "predicted": "b"}, {"label": ["O", "B-X"], "predicted": ["O", None], "words": 2}])
    [('a', 'b'), ('O', 'O')]
    >>> pairs_of([{"label": ["red"], "predicted": ["blue", "red"]}])
    [('none', 'blue'), ('red', 'red')]
    """
    pairs: list[tuple[Any, Any]] = []
    for row in rows:
        true, predicted = row["label"], row["predicted"]
        if not isinstance(true, list):
            pairs.append((true, predicted))
        elif "start" in row:
            pairs.append(("an answer" if true else "none", "an answer" if predicted else "none"))
        elif "words" in row:
            pairs += [pair for pair in zip(true, predicted, strict=True) if None not in pair]
        else:
            pairs += [
                (name if name in true else "none", name if name in predicted else "none")
                for name in sorted({*true, *predicted})
            ]
    return pairs


Window = tuple[Tensor, Fields]
"""[1, …] logits of a record, and its fields."""


def predictions(
    rows: LabelledRows,
    network: Network,
    objective: str,
    labels: Sequence[str],
    batch_size: int,
    report: Callable[[int, int], object] = lambda done, number: None,
) -> Iterator[Prediction]:
    """Yield for each row its number, its texts, what is predicted, and what is right if the file says so.

    Args:
        rows: in the order of their file.
        network: in evaluation mode, on its device.
        objective: what the model was trained for.
        labels: names of its labels, by number.
        batch_size: records at a time; logits don't depend on it but for rounding.
        report: told of (records done, all records).
    """
    kind = network.model.config.problem_type or ""
    windows = zip(rows.rows, _windows(rows, network, batch_size, report), strict=True)
    for row, group in groupby(windows, key=lambda pair: pair[0]):
        logits, fields = _joined([window for _, window in group], objective)
        example = rows.examples[row]
        texts = {"text": example.text} | ({} if example.pair is None else {"pair": example.pair})
        said = WORDS[objective](logits, example, fields, labels, kind)
        truth = truth_of(example, objective, kind) if rows.has_truth[row.source] else None
        yield {"row": row.number, **texts, **said, **({} if truth is None else {"label": truth})}


def _windows(
    rows: LabelledRows, network: Network, batch_size: int, report: Callable[[int, int], object]
) -> Iterator[Window]:
    """Run a model on all records, in their order."""
    device, number, recipe = next(network.parameters()).device, len(rows.places.positions), rows.recipe
    for first in range(0, number, batch_size):
        places = rows.places.rows(slice(first, first + batch_size))
        examples = rows.stream.read(places).rows(slice(None))
        fields, arrays = recipe.fields(examples, rows.vocabulary), recipe.make_batch(examples, rows.vocabulary, 0)
        width = int(arrays["attention_mask"].sum(axis=1).max())
        inputs = {n: torch.from_numpy(array[:, :width]).to(device) for n, array in arrays.items() if n != "labels"}
        with torch.no_grad():
            logits = network(**inputs).float().cpu()
        for i in range(len(logits)):
            yield logits[i : i + 1], {name: values[i : i + 1] for name, values in fields.items()}
        report(first + len(logits), number)


def _joined(windows: Sequence[Window], objective: str) -> tuple[Tensor, Fields]:
    """Join a row's windows: [windows, …] logits, and their fields."""
    axis = 1 if objective == "tagging" else -1  # along which places stand
    width = max(logits.shape[axis] for logits, _ in windows)
    logits = torch.cat([padded(logits, width, axis) for logits, _ in windows])
    return logits, {name: np.concatenate([fields[name] for _, fields in windows]) for name in windows[0][1]}


def padded(logits: Tensor, width: int, axis: int) -> Tensor:
    """Widen logits to a width along an axis: batches are as wide as their longest row."""
    missing = [*logits.shape]
    missing[axis] = width - logits.shape[axis]
    return torch.cat([logits, logits.new_full(missing, -torch.inf)], dim=axis)
