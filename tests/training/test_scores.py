"""Scores are what the programs say that the field measures with: SQuAD's own (its formula is written anew here)."""

import collections
import random
import re
import string

import pytest

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
