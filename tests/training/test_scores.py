"""Scores are what the programs say that the field measures with: SQuAD's (its formula is written anew), seqeval."""

import collections
import random
import re
import string

import pytest
import torch
from torchmetrics.classification import MulticlassF1Score, MulticlassMatthewsCorrCoef

from sslm.training.scores import class_scores, spans
from sslm.training.window_scores import squad_scores

WORDS = [
    "the",
    "The",
    "a",
    "an",
    "Paris",
    "paris",
    "in",
    "1889,",
    "U.S.",
    "it's",
    "—",
    "!",
    "Größe",
    "東京",
    "",
    "\u00a0",
]

ODD_TAGS = {
    "I-A I-L O": "A00 L11",
    "B-A": "A00",
    "O E-A O": "A11",
    "I-L": "L00",
    "B-A E-A B-A I-L": "A01 A22 L33",
    "O I-L": "L11",
    "E-A": "A00",
    "I-A": "A00",
    "I-L I-A B-A": "L00 A11 A22",
    "S-A I-A B-A E-A B-L": "A00 A11 A23 L44",
    "O E-A E-L I-L B-L": "A11 L22 L33 L44",
    "E-L B-L S-A E-A": "L00 L11 A22 A33",
    "E-A B-A": "A00 A11",
    "S-A E-L B-L E-L S-A": "A00 L11 L23 A44",
    "B-A B-A I-L I-A B-L": "A00 A11 L22 A33 L44",
    "E-L I-L": "L00 L11",
    "B-L B-L B-L E-L E-L": "L00 L11 L23 L44",
    "E-L B-A O": "L00 A11",
    "S-A E-L S-A I-L B-L O": "A00 L11 A22 L33 L44",
    "B-L I-A B-A E-L": "L00 A11 A22 L33",
    "I-A E-A I-L": "A01 L22",
    "E-L B-A I-A E-L": "L00 A12 L33",
    "S-A I-A I-L S-A": "A00 A11 L22 A33",
    "I-L B-L I-L E-A I-A B-A": "L00 L12 A33 A44 A55",
    "I-A E-A": "A01",
    "E-A O E-L I-A S-A S-A": "A00 L22 A33 A44 A55",
    "B-L B-L I-A O": "L00 L11 A22",
    "I-L I-L I-L I-L": "L03",
    "E-L": "L00",
    "I-L O E-A B-A E-A E-L": "L00 A22 A34 L55",
    "B-A B-L": "A00 L11",
    "O B-A O I-A B-A": "A11 A33 A44",
    "O B-A E-A": "A12",
    "I-L I-A S-A B-L B-L": "L00 A11 A22 L33 L44",
    "B-A B-A E-L E-L": "A00 A11 L22 L33",
    "E-L S-A B-A I-A": "L00 A11 A23",
}
"""Tags -> spans as seqeval 1.2.2 finds them: kind, first and last word."""


def normalised(text: str) -> str:
    """As in SQuAD's evaluation: no capitals, punctuation, articles, nor white space but between words."""
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1_of(said: str, right: str) -> float:
    """F1 of two answers' words; of an empty one whether both are."""
    a, b = normalised(said).split(), normalised(right).split()
    if not a or not b:
        return float(a == b)
    common = sum((collections.Counter(a) & collections.Counter(b)).values())
    precision, recall = common / len(a), common / len(b)
    return 0.0 if common == 0 else 2 * precision * recall / (precision + recall)


def test_classes_are_scored_as_torchmetrics_does_in_memory_of_classes_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    said, right = (torch.randint(0, high, (500,), generator=generator) for high in (7, 9))
    oracle = {"f1_macro": MulticlassF1Score(12, average="macro"), "mcc": MulticlassMatthewsCorrCoef(12)}
    for num_classes in (12, 200_000):  # squared: 320 GB
        scores = class_scores(num_classes)
        for part in (slice(0, 99), slice(99, 500)):
            scores.add(said[part], right[part])
        for name, score in scores.compute().items():
            assert float(score) == pytest.approx(float(oracle[name](said, right)), abs=1e-6), name


def test_answers_are_scored_as_squads_program_does() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randrange(5))) for _ in range(900)]
    said, right = texts[:300], [texts[300 + 2 * i :][: rng.randrange(3)] for i in range(300)]
    found = squad_scores(said, right)
    golds = [[gold for gold in answers if normalised(gold)] or [""] for answers in right]
    pairs = list(zip(said, golds, strict=True))
    exact = [max(normalised(text) == normalised(gold) for gold in answers) for text, answers in pairs]
    assert found["exact_match"] == pytest.approx(sum(exact) / 300, abs=1e-6)
    assert 0.05 < found["exact_match"] < 0.95
    assert found["f1"] == pytest.approx(sum(max(f1_of(t, gold) for gold in some) for t, some in pairs) / 300, abs=1e-6)


def test_spans_of_any_tags_are_those_that_seqeval_finds() -> None:
    for tags, expected in ODD_TAGS.items():
        found = " ".join(f"{span.kind}{span.first}{span.last}" for span in spans(tags.split()))
        assert found == expected, tags
