"""How good a model is: the loss of its objective on text, or the score of its task on labelled rows."""

import argparse
import math
from typing import NamedTuple

import torch

from sslm.cli.texts import texts_of
from sslm.data.stream.labelled_rows import LabelledRows
from sslm.data.token_documents import TokenDocuments
from sslm.evaluation.journal import Journal
from sslm.evaluation.measuring import Limits, Measuring
from sslm.evaluation.methods import method_of, objective_method, window_len
from sslm.evaluation.texts import named, rules_of
from sslm.models.scoring import LOSS
from sslm.objectives.asked_rows import is_fine_tuned, open_asked
from sslm.objectives.closing import WRITES, labels_of, said_of
from sslm.objectives.predicted_scores import scores_of
from sslm.objectives.text_scores import text_scores
from sslm.objectives.writing import How
from sslm.runs.trained import Trained
from sslm.system.errors import UserError

SCORES = {
    "classification": "accuracy",
    "regression": "pearson",
    "tagging": "f1",
    "extraction": "f1",
    "text_to_text": "chrf",
}
"""Fine-tuning objective -> the score that counts."""
FIELDS = ("text_field", "pair_field", "label_field", "label_separator", "source_field", "target_field", "cache_dir")
ROWS = 32
"""Labelled rows per forward pass, unless told."""


class Quality(NamedTuple):
    """A figure that tells how good a model is."""

    metric: str
    """`loss`, in nats a token, or the name of a task's score."""
    value: float
    scores: dict[str, dict[str, float]]
    """Name of a text or `rows` -> name of a figure -> its value: all that was measured."""

    @property
    def higher_is_better(self) -> bool:
        return self.metric != LOSS


class Measure:
    """What models are measured on, opened once.

    Raises:
        UserError: it can't be opened, or doesn't go with the model.
    """

    texts: list[TokenDocuments]
    rows: LabelledRows | None = None

    def __init__(self, trained: Trained, options: argparse.Namespace) -> None:
        self.options, self.texts = options, []
        if not is_fine_tuned(trained):
            self.texts = texts_of(trained, [named(text) for text in options.data or []], options)
            return
        held_out = trained.settings.get("data", {}).get("val")
        if len(paths := options.data or ([held_out] if held_out else [])) != 1:
            what = "several files are given" if paths else "nothing tells of rows that it has not seen"
            raise UserError(f"{trained.name}: was fine-tuned, and {what}; give one file of labelled rows: --data FILE")
        self.rows = open_asked(trained, paths[0], {name: getattr(options, name) for name in FIELDS})
        if not all(self.rows.has_truth):
            raise UserError(f"--data {paths[0]}: its rows have no labels to compare with; give a file that has them")

    def quality(self, trained: Trained, device: torch.device) -> Quality:
        """Measure a model, on a device."""
        if self.rows is not None:
            return self._of_rows(self.rows, trained, device)
        rules, length, stride = rules_of(trained), window_len(trained, self.options.seq_len), None
        is_causal = trained.objective == "causal_lm"
        method = method_of(trained, rules, length, stride) if is_causal else objective_method(trained, length)
        limits = Limits(self.options.limit, length, self.options.batch_size)
        one = Measuring.of(trained, device, Journal(None), limits)
        found = [one.on_text(text, method) for text in self.texts]
        tokens = [scores.counts["tokens"] for scores in found]
        loss = math.fsum(s.figures[LOSS].value * n for s, n in zip(found, tokens, strict=True)) / sum(tokens)
        all_scores = {s.data: {name: figure.value for name, figure in s.figures.items()} for s in found}
        return Quality(LOSS, loss, all_scores)

    def _of_rows(self, rows: LabelledRows, trained: Trained, device: torch.device) -> Quality:
        known = [
            row for row in said_of(trained, rows, device, self.options.batch_size or ROWS, How()) if "label" in row
        ]
        if not known:
            raise UserError(f"{trained.name}: no row has a label to compare with")
        if trained.objective == WRITES:
            scores = text_scores([row["predicted"] for row in known], [row["label"] for row in known]).scores
        else:
            scores = scores_of(known, trained.objective, labels_of(trained))
        name = next(name for name in (SCORES[trained.objective], *scores) if name in scores)
        return Quality(name, scores[name], {"rows": scores})
