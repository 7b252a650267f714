"""Scores of predicted rows: the same, by the same names, as a validation has while the model is trained."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sslm.objectives.predictions import Prediction
from sslm.system.terminal import plural
from sslm.training.scores import Scores, class_scores, label_scores, number_scores, tag_scores
from sslm.training.window_scores import squad_scores


def scores_of(known: Sequence[Prediction], objective: str, labels: Sequence[str]) -> dict[str, float]:
    """Score rows that tell what is right, by an objective but text_to_text.

    Args:
        known: at least one row.
        objective: what the model was trained for.
        labels: names of its labels, by number.

    >>> rows = [{"label": "good", "predicted": "good"}, {"label": "bad", "predicted": "good"}]
    >>> scores_of(rows, "classification", ["bad", "good"])["accuracy"]
    0.5
    """
    said, right = [row["predicted"] for row in known], [row["label"] for row in known]
    number = {name: i for i, name in enumerate(labels)}
    if objective == "extraction":
        return squad_scores(said, right)
    if objective == "tagging":
        return _tags(said, right, number)
    if objective == "regression":
        return _scored(number_scores(), torch.tensor(said), torch.tensor(right))
    if isinstance(right[0], list):
        several = [_several(some, number) for some in (said, right)]
        return {"accuracy": _share(*several), **_scored(label_scores(len(labels)), *several)}
    classes = [_numbers(some, number) for some in (said, right)]
    return {"accuracy": _share(*classes), **_scored(class_scores(len(labels)), *classes)}


def _tags(
    said: Sequence[Sequence[str | None]], right: Sequence[Sequence[str]], number: dict[str, int]
) -> dict[str, float]:
    """Scores of tags; words without a token are left out, as no tag can be predicted there."""
    rows = [[(a, b) for a, b in zip(*row, strict=True) if a is not None and b] for row in zip(said, right, strict=True)]
    scores, same, num = tag_scores(list(number)), 0.0, 0
    for pairs in filter(None, rows):
        tags, wanted = (_numbers(some, number) for some in zip(*pairs, strict=True))
        scores.add(tags[None], wanted[None])
        same, num = same + float((tags == wanted).sum()), num + len(pairs)
    return {"accuracy": same / num, **_floats(scores)} if num else {}


def _numbers(names: Sequence[str], number: dict[str, int]) -> Tensor:
    return torch.tensor([number[name] for name in names])


def _several(rows: Sequence[Sequence[str]], number: dict[str, int]) -> Tensor:
    """[rows, labels] 1 for each label that a row has."""
    found = torch.zeros(len(rows), len(number), dtype=torch.int64)
    for i, names in enumerate(rows):
        found[i, [number[name] for name in names]] = 1
    return found


def _share(said: Tensor, right: Tensor) -> float:
    return float((said == right).double().mean())


def _scored(scores: Scores, said: Tensor, right: Tensor) -> dict[str, float]:
    scores.add(said, right)
    return _floats(scores)


def _floats(scores: Scores) -> dict[str, float]:
    for metric in scores.metrics.values():  # one process predicts: the others have nothing to add, and are gone
        metric.distributed_available_fn = bool
    return {name: float(score) for name, score in scores.compute().items()}


def in_words(scores: dict[str, float], num_rows: int) -> str:
    """Tell scores on one line.

    >>> in_words({"accuracy": 0.5, "mcc": 0.25}, 2)
    'Scores of 2 labelled rows: accuracy 0.5000, mcc 0.2500'
    """
    found = ", ".join(f"{name} {score:.4f}" for name, score in scores.items()) or "none"
    return f"Scores of {plural(num_rows, 'labelled row', exact=True)}: {found}"
