"""What a fine-tuned model says of a row, in words: classes and their probabilities, tags, numbers, answers."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslm.data.labelled.rows import Rows
from sslm.data.labelled.task import Example
from sslm.data.stream.recipe import Ints
from sslm.data.stream.stream import Stream
from sslm.data.stream.vocabulary import Vocabulary
from sslm.models.network import Network
from sslm.models.task import NUMBER, SEVERAL, best_spans
from sslm.objectives.labelled import LabelledRecipe

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
    found: list[tuple[float, int, int]] = []
    least_nothing = np.inf
    for edges, starts, ends in zip(logits, fields["starts"], fields["ends"], strict=True):
        length = edges.shape[1]
        is_context = torch.from_numpy(ends[:length] > 0)
        inside = edges.masked_fill(~is_context.to(edges.device), -torch.inf)
        first, last = best_spans(inside[None], torch.zeros(1, 2, dtype=torch.long, device=edges.device))[0].tolist()
        least_nothing = min(least_nothing, float(edges[:, 0].sum()))
        if is_context.any():
            found.append((float(edges[0, first] + edges[1, last]), int(starts[first]), int(ends[last])))
    score, start, end = max(found, default=(-np.inf, 0, 0))
    if score <= least_nothing:
        return {"predicted": "", "start": None, "score": round(score - least_nothing, 6)}
    answer = example.text[start:end]
    start += len(answer) - len(answer.lstrip())  # a token may begin with the space before its word
    return {"predicted": answer.strip(), "start": start, "score": round(score - least_nothing, 6)}


WORDS = {"classification": classes_of, "regression": classes_of, "tagging": tags_of, "extraction": answer_of}
"""Objective -> what says a model's prediction in words."""


def truth_of(example: Example, objective: str, kind: str) -> Any:
    """What the file says of a row, or None if it doesn't say: in the form of what is predicted."""
    if objective == "regression":
        return example.target
    if objective == "extraction":
        return None if example.target is None else example.text[slice(*example.target)]
    if objective == "tagging":
        return list(example.labels) if any(example.labels) else None
    return list(example.labels) if kind == SEVERAL else next(iter(example.labels), None)


def pairs_of(rows: Sequence[Prediction]) -> list[tuple[Any, Any]]:
    """Pair what is right with what is predicted, for a picture: classes, tags word by word, numbers.

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
        elif "words" in row:
            pairs += [pair for pair in zip(true, predicted, strict=True) if None not in pair]
        else:
            pairs += [
                (name if name in true else "none", name if name in predicted else "none")
                for name in sorted({*true, *predicted})
            ]
    return pairs


class Record(NamedTuple):
    """What a model says of a record, of which a row has one or more."""

    row: int
    logits: Tensor
    """[1, …]."""
    fields: Fields


def records(
    network: Network,
    stream: Stream,
    recipe: LabelledRecipe,
    vocabulary: Vocabulary,
    batch_size: int,
    report: Callable[[int, int], None],
) -> Iterator[Record]:
    """Run a model on all records of a stream, in the order of the file.

    Args:
        network: in evaluation mode, on its device.
        stream: labelled rows, of one source.
        recipe: what makes batches of them.
        vocabulary: the tokenizer's tables.
        batch_size: records at a time; logits don't depend on it but for rounding.
        report: told of (records done, all records).
    """
    device = next(network.parameters()).device
    for first in range(0, stream.num_windows, batch_size):
        places = np.arange(first, min(first + batch_size, stream.num_windows))
        examples = stream.read(stream.places_of(0, places)).rows(slice(None))
        fields, arrays = recipe.fields(examples, vocabulary), recipe.make_batch(examples, vocabulary, 0)
        width = int(arrays["attention_mask"].sum(axis=1).max())
        inputs = {n: torch.from_numpy(array[:, :width]).to(device) for n, array in arrays.items() if n != "labels"}
        with torch.no_grad():
            logits = network(**inputs).float().cpu()
        for i in range(len(places)):
            one = slice(i, i + 1)
            yield Record(int(fields["row"][i, 0]), logits[one], {name: values[one] for name, values in fields.items()})
        report(first + len(places), stream.num_windows)


def predictions(
    found: Iterator[Record], rows: Rows, objective: str, labels: Sequence[str], kind: str
) -> Iterator[Prediction]:
    """Yield for each row its number, its texts, what is predicted, and what is right if the file says so."""
    examples = rows.examples()
    for number, group in groupby(found, key=lambda record: record.row):
        of_row = list(group)
        example = next(example for example in examples if example.row == number)
        axis = 1 if objective == "tagging" else -1  # along which places stand
        width = max(record.logits.shape[axis] for record in of_row)
        logits = torch.cat([padded(record.logits, width, axis) for record in of_row])
        fields = {name: np.concatenate([record.fields[name] for record in of_row]) for name in of_row[0].fields}
        texts = {"text": example.text} | ({} if example.pair is None else {"pair": example.pair})
        said = WORDS[objective](logits, example, fields, labels, kind)
        truth = truth_of(example, objective, kind) if {"label", "target"} & rows.columns.keys() else None
        yield {"row": number, **texts, **said, **({} if truth is None else {"label": truth})}


def padded(logits: Tensor, width: int, axis: int) -> Tensor:
    """Widen logits to a width along an axis: batches are as wide as their longest row."""
    missing = [*logits.shape]
    missing[axis] = width - logits.shape[axis]
    return torch.cat([logits, logits.new_full(missing, -torch.inf)], dim=axis)
