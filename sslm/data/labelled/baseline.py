"""What labels there are, and how well somebody does who doesn't read the texts: what a model has to beat."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sslm.data.corpus.labelled import Tally
from sslm.system.errors import short
from sslm.system.terminal import plural

MOST_SHOWN = 12


class Baseline(NamedTuple):
    """The held-out score of a model that always says the same."""

    metric: str
    """accuracy, or rmse: the root of the mean squared error."""
    value: float
    words: str
    """The answer that it always gives."""

    def __str__(self) -> str:
        value = f"{self.value:.1%}" if self.metric == "accuracy" else f"{self.value:.4g}"
        return f"Baseline to beat: {self.metric} {value} ({self.words})"


def baseline(names: Sequence[str], train: Tally, val: Tally, is_one_each: bool = True) -> Baseline | None:
    """Work out the majority baseline: always the most frequent training label, or the mean of the training numbers.

    Args:
        names: names of the labels, by number.
        train: what is counted of the training rows.
        val: what is counted of the held-out rows.
        is_one_each: whether each row, or each tagged word, has one label; else each label is there or not, and the
            accuracy is that over all rows and labels.

    Returns:
        None if there is nothing to count, as of texts that are to be written.

    >>> str(baseline(["bad", "good"], Tally(4, (1, 3)), Tally(10, (4, 6))))
    "Baseline to beat: accuracy 60.0% (always 'good')"
    """
    if train.targets and val.targets:
        mean = train.total / train.targets
        squared = val.squares / val.targets - 2 * mean * val.total / val.targets + mean**2
        return Baseline("rmse", math.sqrt(max(squared, 0.0)), f"always {mean:.4g}, the mean")
    if not names or not val.rows or not any(train.counts):
        return None
    counts = [*val.counts, *[0] * (len(names) - len(val.counts))]
    if is_one_each:
        most = max(range(len(names)), key=lambda i: train.counts[i])
        return Baseline("accuracy", counts[most] / max(sum(counts), 1), f"always '{short(names[most])}'")
    likely = [2 * there > train.rows for there in train.counts]
    right = sum(n if says else val.rows - n for n, says in zip(counts, likely, strict=True))
    return Baseline("accuracy", right / (val.rows * len(names)), "each label as in most rows")


def baseline_loss(train: Tally, val: Tally, is_one_each: bool = True) -> float:
    """Work out the held-out loss of a model that knows nothing but how often each label comes in training.

    Cross-entropy in nats of classes (each counted once more than it came); binary cross-entropy of labels that are
    there or not; of numbers the mean squared error of the training mean.

    >>> round(baseline_loss(Tally(4, (1, 3)), Tally(10, (4, 6))), 4)
    0.6827
    """
    if train.targets and val.targets:
        mean = train.total / train.targets
        return val.squares / val.targets - 2 * mean * val.total / val.targets + mean**2
    counts = [*val.counts, *[0] * (len(train.counts) - len(val.counts))]
    if is_one_each:
        total = sum(train.counts) + len(train.counts)
        likely = [math.log((there + 1) / total) for there in train.counts]
        return -sum(n * log for n, log in zip(counts, likely, strict=True)) / max(sum(counts), 1)
    shares = [(there + 1) / (train.rows + 2) for there in train.counts]
    found = -sum(
        n * math.log(share) + (val.rows - n) * math.log(1 - share) for n, share in zip(counts, shares, strict=True)
    )
    return found / max(val.rows * len(counts), 1)


def describe(names: Sequence[str], tally: Tally) -> str:
    """Say how often each label stands there, or the mean and spread of the numbers.

    >>> describe(["bad", "good"], Tally(4, (1, 3)))
    "4 rows, 2 labels: 'good' 3 (75.0%), 'bad' 1 (25.0%)"
    """
    rows = plural(tally.rows, "row", exact=True)
    if tally.targets:
        mean = tally.total / tally.targets
        deviation = math.sqrt(max(tally.squares / tally.targets - mean**2, 0.0))
        return f"{rows}, numbers of mean {mean:.4g} and standard deviation {deviation:.4g}"
    if not names:
        return rows
    total = max(sum(tally.counts), 1)
    often = sorted(zip(tally.counts, names, strict=False), key=lambda pair: -pair[0])
    shown = ", ".join(f"'{short(name)}' {count:,} ({count / total:.1%})" for count, name in often[:MOST_SHOWN])
    more = f" and {len(names) - MOST_SHOWN:,} more" if len(names) > MOST_SHOWN else ""
    return f"{rows}, {plural(len(names), 'label', exact=True)}: {shown}{more}"
