"""Scores of long rows, put together from all of their windows: answers to questions, tags of sentences.

Answers are counted as SQuAD counts them (Rajpurkar et al. 2016, 2018): exact match and F1 of words, the best over all
answers that were given; a question without an answer is right if none is found.
"""

import string
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text.squad import squad
from torchmetrics.utilities import dim_zero_cat

from sslm.data.labelled.answers import text_at
from sslm.data.stream.labelled_rows import LabelledRows
from sslm.models.network import Predicted, is_scored
from sslm.models.task import window_with_answer
from sslm.training.scores import tag_scores

ARTICLES = ("a", "an", "the")


class AnswerScores:
    """Gathers what is found in windows, over a validation's batches and all ranks, and scores the answers.

    Args:
        held_out: the questions.
    """

    def __init__(self, held_out: LabelledRows) -> None:
        self.held_out, self.spans = held_out, Gathered()

    def to(self, device: torch.device) -> "AnswerScores":
        """Move what is gathered."""
        self.spans.to(device)
        return self

    def update(self, predicted: Predicted, labels: Tensor, position: int) -> None:
        """Add a batch: what was found, [n, 2] places, and the position of its first window."""
        assert predicted.spans is not None
        numbers = position + torch.arange(len(labels), device=labels.device)
        found = torch.cat([numbers[:, None].double(), predicted.spans.double()], dim=1)
        self.spans.update(found[is_scored(labels).any(dim=1)])

    def compute(self) -> dict[str, Tensor]:
        """Exact match and F1; all ranks compute them together."""
        answers = self.answers(self.spans.compute().cpu())
        examples = self.held_out.examples
        right = [examples[self.held_out.rows[windows[0]]].answers for windows in answers]
        scores = squad_scores(list(answers.values()), right)
        return {name: torch.tensor(score, dtype=torch.float64) for name, score in scores.items()}

    def answers(self, found: Tensor) -> dict[tuple[int, ...], str]:
        """Find each question's answer: its windows -> the text, empty if there is none.

        Args:
            found: [n, 5] number of a window and its `likeliest_spans`.
        """
        found = found[found[:, 0].argsort()]
        numbers = found[:, 0].long().tolist()
        chosen: dict[tuple[int, ...], int | None] = {}
        for _, places in groupby(range(len(numbers)), key=lambda place: self.held_out.rows[numbers[place]]):
            of_row = list(places)
            window = window_with_answer(found[of_row, 1:])
            chosen[tuple(numbers[place] for place in of_row)] = None if window is None else of_row[window]
        there = [place for place in chosen.values() if place is not None]
        texts = dict(zip(there, self._texts(found[there]), strict=True))
        return {windows: "" if place is None else texts[place] for windows, place in chosen.items()}

    def _texts(self, found: Tensor) -> list[str]:
        """Texts of answers that stand in these windows."""
        numbers, first, last = (found[:, i].long().numpy() for i in range(3))
        if not len(numbers):
            return []
        fields = self.held_out.fields(numbers, ("starts", "ends"))
        each = np.arange(len(numbers))
        starts, ends = fields["starts"][each, first].tolist(), fields["ends"][each, last].tolist()
        contexts = [self.held_out.examples[self.held_out.rows[number]].text for number in numbers.tolist()]
        return [text_at(*place)[0] for place in zip(contexts, starts, ends, strict=True)]


class Gathered(Metric):
    """Gathers rows of numbers from all ranks."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("found", [], dist_reduce_fx="cat")
        self.found: list[Tensor]

    def update(self, found: Tensor) -> None:
        """Add [n, columns]; where n is 0 too, as all ranks must have something to gather."""
        self.found.append(found.double())

    def compute(self) -> Tensor:
        """[all n, columns]"""
        found: Tensor = dim_zero_cat(self.found)
        return found


class TagScores:
    """Gathers tags from a validation's batches and all ranks, and scores whole sentences: a span may go across windows.

    Args:
        names: of the tags, by number.
        held_out: the sentences.
    """

    def __init__(self, names: Sequence[str], held_out: LabelledRows) -> None:
        self.names, self.held_out, self.tags = names, held_out, Gathered()

    def to(self, device: torch.device) -> "TagScores":
        """Move what is gathered."""
        self.tags.to(device)
        return self

    def update(self, predicted: Predicted, labels: Tensor, position: int) -> None:
        """Add a batch: [n, seq_len] tags, and the position of its first window."""
        windows, places = is_scored(labels).nonzero().unbind(dim=1)
        columns = position + windows, places, predicted.tokens[windows, places], labels[windows, places]
        self.tags.update(torch.stack(columns, dim=1))

    def compute(self) -> dict[str, Tensor]:
        """Scores by name; all ranks compute them together."""
        scores, found = tag_scores(self.names), torch.unique(self.tags.compute().cpu().long(), dim=0)
        windows = found[:, 0].tolist()
        for _, places in groupby(range(len(windows)), key=lambda place: self.held_out.rows[windows[place]]):
            sentence = found[list(places)]
            scores.add(sentence[None, :, 2], sentence[None, :, 3])
        return scores.compute()


WindowScores = AnswerScores | TagScores


def squad_scores(said: Sequence[str], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score answers, the best over all that are right, as SQuAD 2.0's program does; shares, not percent.

    Args:
        said: answers, "" for none.
        right: all answers to each question, none if it has no answer.

    >>> scores = squad_scores(["the Eiffel Tower", "", "in 1889"], [["Eiffel Tower!"], [], ["1889", "1890"]])
    >>> {name: round(score, 3) for name, score in scores.items()}
    {'exact_match': 0.667, 'f1': 0.889}
    """
    scores = {"exact_match": 0.0, "f1": 0.0}
    for text, answers in zip(said, right, strict=True):
        given = [answer for answer in answers if has_words(answer)] or [""]
        found = squad({"prediction_text": text, "id": ""}, {"answers": {"text": given}, "id": ""})
        for name in scores:
            scores[name] += float(found[name].double()) / 100
    return {name: score / len(said) for name, score in scores.items()}


def has_words(answer: str) -> bool:
    """Whether anything is left of an answer without marks and articles, which SQuAD's program leaves out."""
    plain = "".join(" " if character.isspace() else character for character in answer.lower())
    words = "".join(character for character in plain if character not in string.punctuation).split()
    return any(word not in ARTICLES for word in words)
