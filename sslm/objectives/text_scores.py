"""Scores of texts that a model wrote, beside those that are right: exact match, BLEU, chrF, ROUGE.

BLEU (Papineni et al. 2002) and chrF (Popović 2015) are sacrebleu's (Post 2018); ROUGE (Lin 2004) is torchmetrics', of
words in any script. Where scripts put no space between words, characters are the words.
"""

import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from torchmetrics.functional.text.rouge import rouge_score

from sslm.data.stream.vocabulary import unspaced_share
from sslm.system.errors import UserError

Tokenize = Literal["auto", "13a", "intl", "zh", "char", "none"]
"""How BLEU finds words, by sacrebleu's names; auto: as the script of the right texts asks for."""
UNSPACED_SHARE = 0.3
"""Of texts with a larger share of letters whose scripts put no space between words, characters are the words."""
HAN = ("CJK UNIFIED", "CJK COMPATIBILITY")
ROUGE = ("rouge1", "rouge2", "rougeL")
INSTALL = "pip install 'sslm[text-scores]'"


class TextScores(NamedTuple):
    """Scores, and how they were counted."""

    scores: dict[str, float]
    """exact_match and ROUGE as shares, bleu and chrf from 0 to 100."""
    how: str
    """sacrebleu's signature of BLEU, or what to install."""


def text_scores(said: Sequence[str], right: Sequence[str], tokenize: Tokenize = "auto") -> TextScores:
    """Score texts, one that is right for each.

    >>> text_scores(["the cat sat"], ["the cat sat"]).scores["exact_match"]
    1.0
    """
    chosen = tokenizer_for(right) if tokenize == "auto" else tokenize
    exact = sum(a.strip() == b.strip() for a, b in zip(said, right, strict=True)) / len(right)
    bleu, how = _sacrebleu(said, right, chosen)
    return TextScores({"exact_match": exact, **bleu, **_rouge(said, right, chosen in ("zh", "char"))}, how)


def tokenizer_for(texts: Sequence[str]) -> Tokenize:
    """Choose how BLEU finds words: sacrebleu's usual way, 13a, or for scripts without spaces zh (Chinese), or char.

    >>> [tokenizer_for([text]) for text in ("one two", "我们走吧", "今日はいい天気", "สวัสดี")]
    ['13a', 'zh', 'char', 'char']
    """
    text = "".join(texts)
    if unspaced_share(text) <= UNSPACED_SHARE:
        return "13a"
    unspaced = [letter for letter in text if letter.isalpha() and unspaced_share(letter)]
    han = sum(unicodedata.name(letter, "").startswith(HAN) for letter in unspaced)
    return "zh" if han > 0.95 * len(unspaced) else "char"  # Japanese has kana, too


def check_installed(tokenize: str | None) -> None:
    """Raise UserError if a way to find words was chosen, and what counts them so is not installed."""
    if tokenize is not None and find_spec("sacrebleu") is None:
        raise UserError(f"--tokenize {tokenize}: BLEU needs sacrebleu; {INSTALL}, or leave the flag out")


def _sacrebleu(said: Sequence[str], right: Sequence[str], tokenize: Tokenize) -> tuple[dict[str, float], str]:
    if find_spec("sacrebleu") is None:
        return {}, f"BLEU and chrF need sacrebleu: {INSTALL}"
    from sacrebleu.metrics import BLEU, CHRF

    found: dict[str, float] = {}
    how = ""
    metrics: dict[str, Any] = {"bleu": BLEU(tokenize=tokenize), "chrf": CHRF()}
    for name, metric in metrics.items():
        found[name] = float(metric.corpus_score(list(said), [list(right)]).score)
        how = how or f"BLEU's signature: {metric.get_signature()}"
    return found, how


def _rouge(said: Sequence[str], right: Sequence[str], by_character: bool) -> dict[str, float]:
    """ROUGE's F-measures, means over rows; of ASCII text as the program rouge-score counts them, without stemming."""

    def words(text: str) -> list[str]:
        found = "".join(character if is_of_word(character) else " " for character in text).split()
        return [character for word in found for character in word] if by_character else found

    plain, wanted = ([unicodedata.normalize("NFC", text).lower() for text in texts] for texts in (said, right))
    scores: Any = rouge_score(plain, wanted, tokenizer=words, normalizer=str, rouge_keys=ROUGE)
    return {name: float(torch.as_tensor(scores[f"{name}_fmeasure"])) for name in ROUGE}


def is_of_word(character: str) -> bool:
    """Whether a character is a letter, a digit, or a mark on one."""
    return character.isalnum() or unicodedata.category(character).startswith("M")
