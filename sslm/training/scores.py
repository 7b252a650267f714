"""Scores of a task, gathered over a validation's batches and all ranks: F1, Matthews' and Pearson's correlation …

Metrics of torchmetrics do the counting. Ours are those that it lacks, or that take memory of classes squared there.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MultilabelExactMatch, MultilabelF1Score
from torchmetrics.regression import MeanAbsoluteError, PearsonCorrCoef, SpearmanCorrCoef

from sslm.models.network import IGNORED, Predicted, is_scored

OUTSIDE = "O"


BIO = re.compile(r"O|[BIES]-.+", re.DOTALL)
"""Tag of a word that is outside of all spans, or begins one, goes on with it, ends it, or is it alone."""


class Scores(NamedTuple):
    """Metrics of a task, and what they look at."""

    metrics: dict[str, Metric]
    select: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(predictions, labels) of a batch -> those that are scored."""

    def update(self, predicted: Predicted, labels: Tensor, position: int) -> None:
        """Add a batch: predictions and labels of one shape, and the position of its first row."""
        self.add(predicted.tokens, labels)

    def add(self, said: Tensor, labels: Tensor) -> None:
        """Add predictions and labels of one shape."""
        said, labels = self.select(said, labels)
        for metric in self.metrics.values() if len(labels) else ():
            metric.update(said, labels)

    def compute(self) -> dict[str, Tensor]:
        """Scores by name, without those that nothing was added to; all ranks compute them together."""
        return {name: metric.compute() for name, metric in self.metrics.items() if metric.update_called}

    def to(self, device: torch.device) -> "Scores":
        """Move what is counted."""
        return self._replace(metrics={name: metric.to(device) for name, metric in self.metrics.items()})


def each(predicted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Select each label that is scored."""
    scored = is_scored(labels)
    return predicted[scored], labels[scored]


def rows(predicted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Select the rows in which anything is scored."""
    scored = is_scored(labels).any(dim=1)
    return predicted[scored], labels[scored]


def class_scores(num_classes: int) -> Scores:
    """Scores of a choice among classes; a class that is neither there nor predicted has no part in macro-F1."""
    return Scores({"f1_macro": MacroF1(num_classes), "mcc": Matthews(num_classes)}, each)


def label_scores(num_labels: int) -> Scores:
    """Scores of several labels at once."""
    by_label, overall = (MultilabelF1Score(num_labels, average=average) for average in ("macro", "micro"))
    found = {"f1_macro": by_label, "f1_micro": overall, "exact_match": MultilabelExactMatch(num_labels)}
    return Scores(found, rows)


def number_scores() -> Scores:
    """Scores of numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that Spearman's keeps all numbers: they are few
        spearman = SpearmanCorrCoef()
    return Scores({"pearson": PearsonCorrCoef(), "spearman": spearman, "mae": MeanAbsoluteError()}, each)


def tag_scores(names: Sequence[str]) -> Scores:
    """Scores of tagged words: F1 of spans if the tags have prefixes, else those of classes."""
    return Scores({"f1": SpanF1(names)}, rows) if all(map(BIO.fullmatch, names)) else class_scores(len(names))


class CountsByClass(Metric):
    """How often each class is there, is predicted, and is predicted where it is: memory grows with classes alone."""

    full_state_update = False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.right: Tensor
        self.true: Tensor
        self.predicted: Tensor
        for name in ("right", "true", "predicted"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Add classes, [n] of each."""
        ones = torch.ones_like(labels)
        self.right.index_add_(0, labels, (predicted == labels).to(ones.dtype))
        self.true.index_add_(0, labels, ones)
        self.predicted.index_add_(0, predicted, ones)


class MacroF1(CountsByClass):
    """Mean F1 of the classes that are there or predicted.

    >>> metric = MacroF1(3)
    >>> metric.update(torch.tensor([1, 1, 1, 0]), torch.tensor([1, 1, 0, 0]))
    >>> round(float(metric.compute()), 3)
    0.733
    """

    def compute(self) -> Tensor:
        seen = self.true + self.predicted
        found: Tensor = (2 * self.right.double() / seen)[seen > 0].mean()
        return found


class Matthews(CountsByClass):
    """Matthews' correlation coefficient for any number of classes (Gorodkin 2004, R_K), from counts by class.

    With s examples of which c are right, t_k of class k and p_k predicted so:
    (c s - Σ p_k t_k) / √((s² - Σ p_k²) (s² - Σ t_k²)), 0 if all are of one class or predicted so.

    >>> metric = Matthews(2)
    >>> metric.update(torch.tensor([1, 1, 1, 0]), torch.tensor([1, 1, 0, 0]))
    >>> round(float(metric.compute()), 3)
    0.577
    """

    def compute(self) -> Tensor:
        true, predicted = self.true.double(), self.predicted.double()
        num = true.sum()
        spread = ((num**2 - (predicted**2).sum()) * (num**2 - (true**2).sum())).sqrt()
        found: Tensor = torch.where(spread > 0, (self.right.sum() * num - predicted @ true) / spread, 0.0)
        return found


class Span(NamedTuple):
    """Words of one kind that belong together."""

    kind: str
    first: int
    last: int


class SpanF1(Metric):
    """Micro-averaged F1 of spans: one counts as found if kind, first and last word are right (Tjong Kim Sang 2000).

    Args:
        names: of the tags, by their numbers: O, or a prefix (B, I, E, S), a hyphen and a kind.
    """

    full_state_update = False

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        self.right: Tensor
        self.true: Tensor
        self.predicted: Tensor
        for name in ("right", "true", "predicted"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Add rows, [n, words] of numbers of tags each, IGNORED where there is no word."""
        for said, wanted in zip(predicted.tolist(), labels.tolist(), strict=True):
            words = [place for place, tag in enumerate(wanted) if tag != IGNORED]
            found = set(spans(self.names[said[place]] for place in words))
            true = set(spans(self.names[wanted[place]] for place in words))
            self.right += len(found & true)
            self.true += len(true)
            self.predicted += len(found)

    def compute(self) -> Tensor:
        found: Tensor = 2 * self.right / (self.true + self.predicted).clamp(min=1)
        return found


def spans(tags: Iterable[str]) -> Iterator[Span]:
    """Find the spans of a sentence's tags, as conlleval reads them: I- after O, or after another kind, begins one.

    >>> list(spans(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
    [Span(kind='PER', first=0, last=1), Span(kind='LOC', first=3, last=3), Span(kind='LOC', first=4, last=4)]
    """
    first, open_kind, before = 0, "", OUTSIDE
    place = -1
    for place, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        is_outside = prefix == OUTSIDE
        goes_on = (
            open_kind and not is_outside and kind == open_kind and prefix in ("I", "E") and before not in ("E", "S")
        )
        if not goes_on:
            if open_kind:
                yield Span(open_kind, first, place - 1)
            first, open_kind = place, "" if is_outside else kind or "_"
        before = prefix
    if open_kind:
        yield Span(open_kind, first, place)
