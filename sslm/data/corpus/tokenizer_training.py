"""Training tokenizers: byte-pair encoding, Unigram and WordPiece, in flat memory, the same bytes each time.

Byte-level BPE: Sennrich et al. 2016 (arXiv:1508.07909) over bytes, as in GPT-2. The threads of the tokenizers library
change nothing in what it trains (docs/lessons.md, 'Not every tokenizer is trained the same way twice').
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from sslm.data.corpus.documents import Piece
from sslm.data.corpus.tokenizer_design import OF_BERT, PREFIX, UNKNOWN, Design
from sslm.data.corpus.unigram import train_unigram
from sslm.system.errors import UserError, short

if TYPE_CHECKING:  # heavy
    from transformers import PreTrainedTokenizerFast

TRAINING_CHARS = 1 << 28
"""Characters of a corpus' beginning to train a tokenizer on: more text changes few merges."""
LONGEST_WORD = 400
LONG_RUN = re.compile(rf"(?:\s{{{LONGEST_WORD}}}|[\S\x1c-\x1f]{{{LONGEST_WORD}}})(?=.)", re.DOTALL)
"""Longer words are split for training, which takes quadratic time in a word's length: a line of base64 is one word, and
so is a run of white space. Python counts four control characters as white space that the tokenizer doesn't."""
MOST_WORDS = 1 << 21
"""Different words to count at once; the rarest are dropped when there are more."""
COVERAGE = 0.9995
"""Share of a text's characters that are to be tokens, as in SentencePiece; the rarest are left to bytes or <unk>."""
SEEDS = 4
"""Unigram begins with so many times the pieces that it ends with."""


def train_bpe(pieces: Iterable[Piece], size: int) -> "PreTrainedTokenizerFast":
    """Train a byte-level BPE of at most `size` entries, the end-of-text token included."""
    return train_tokenizer(beginning_of(pieces), Design("bpe", size, "level", "gpt2"))


def train_tokenizer(texts: Iterable[str], design: Design) -> "PreTrainedTokenizerFast":
    """Train a tokenizer on texts, which are read once; words longer than `LONGEST_WORD` take long (`beginning_of`).

    Raises:
        UserError: there is no text, its characters alone are more than the tokenizer may have entries, or a special
            token is a piece of it.
    """
    if design.kind == "bpe" and design.spelling == "level":
        vocabulary, merges = _merges(texts, design, [], design.pre_tokenizer)
        return design.assembled(_bpe(design, vocabulary, merges))
    words, alphabet = _without_rare(_words(texts, design), design)
    repeated = ([word] * count for word, count in words.items())
    if design.kind == "unigram":
        seeds, _ = _merges(repeated, design, alphabet, None, SEEDS)
        found = train_unigram(words, {*seeds, *alphabet}, design.size - len(design.first_tokens))
        return design.assembled(_unigram(design, found))
    vocabulary, merges = _merges(repeated, design, alphabet, None)
    is_bpe = design.kind == "bpe"
    return design.assembled(_bpe(design, vocabulary, merges) if is_bpe else _wordpiece(design, vocabulary))


def beginning_of(pieces: Iterable[Piece], chars: int = TRAINING_CHARS) -> Iterator[str]:
    """Yield the first `chars` characters and the rest of their piece, cut in the midst of very long words."""
    for text, _ in pieces:
        start = 0
        for run in LONG_RUN.finditer(text):
            yield text[start : run.end()]
            start = run.end()
        yield text[start:]
        chars -= len(text)
        if chars <= 0:
            return


def _words(texts: Iterable[str], design: Design) -> Counter[str]:
    """Count words, as the tokenizer will split them; rare ones are dropped while there are too many to hold.

    Lossy counting: Manku & Motwani 2002.
    """
    splitter, normalizer = design.pre_tokenizer, design.normalizer
    words: Counter[str] = Counter()
    least = 1
    for text in texts:
        text = text if normalizer is None else normalizer.normalize_str(text)
        words.update(word for word, _ in splitter.pre_tokenize_str(text))
        while len(words) > MOST_WORDS:
            least += 1
            words = Counter({word: count for word, count in words.items() if count >= least})
    return words


def _without_rare(words: Counter[str], design: Design) -> tuple[Counter[str], list[str]]:
    """Cut words where the rarest characters stand; return them, and the other characters, the most frequent first.

    Raises:
        UserError: there is no text, or these characters alone are too many.
    """
    if not words:
        raise UserError("there is no text to train a tokenizer on")
    if design.spelling == "level":
        return words, sorted(_byte_characters())
    alphabet = _alphabet(words)
    least = len(design.first_tokens) + len(alphabet) * (2 if design.kind == "wordpiece" else 1)
    if least > design.size:
        instead = f"give {least} at least" + (", or --bytes level" if design.kind != "wordpiece" else "")
        raise UserError(f"--size {design.size}: the characters of this text alone take {least}; {instead}")
    is_known = frozenset(alphabet).__contains__  # a regular expression of 300,000 characters takes minutes
    kept: Counter[str] = Counter()
    for word, count in words.items():
        for known, part in groupby(word, is_known):
            if known:
                kept["".join(part)] += count
    return kept, alphabet


def _alphabet(words: Counter[str]) -> list[str]:
    """List the most frequent characters, as many as make up `COVERAGE` of the text."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    left = COVERAGE * counts.total()
    alphabet = []
    for character in sorted(counts, key=lambda character: (-counts[character], character)):
        if left <= 0:
            break
        alphabet.append(character)
        left -= counts[character]
    return alphabet


def _byte_characters() -> list[str]:
    from tokenizers import pre_tokenizers

    characters: list[str] = pre_tokenizers.ByteLevel.alphabet()
    return characters


def _merges(
    texts: Iterable[str | list[str]], design: Design, alphabet: list[str], splitter: Any, times: int = 1
) -> tuple[list[str], list[tuple[str, str]]]:
    """Train by merging pairs: the entries without those that come first, by their number, and the merges.

    Args:
        alphabet: characters that are entries; of a byte-level tokenizer it is known.
        splitter: cuts texts into words, or None if they are words.
        times: so many times the entries.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, trainers

    is_wordpiece = design.kind == "wordpiece"
    backend = Backend(models.BPE())
    if splitter is not None:
        backend.pre_tokenizer = splitter
    named: dict[str, Any] = {"continuing_subword_prefix": PREFIX} if is_wordpiece else {}
    trainer = trainers.BpeTrainer(
        vocab_size=(design.size - len(design.first_tokens)) * times,
        # else they are numbered as they are met, in the order of a hash table
        special_tokens=[*alphabet, *(PREFIX + character for character in alphabet)] if is_wordpiece else [],
        show_progress=False,
        initial_alphabet=_byte_characters() if design.spelling == "level" else alphabet,
        max_token_length=LONGEST_WORD,
        **named,
    )
    backend.train_from_iterator(texts, trainer)
    ids = backend.get_vocab()
    return sorted(ids, key=ids.__getitem__), [(a, b) for a, b in _model_of(backend)["merges"]]


def _model_of(backend: Any) -> dict[str, Any]:
    model: dict[str, Any] = json.loads(backend.to_str())["model"]
    return model


def _entries(design: Design, pieces: list[str]) -> dict[str, int]:
    """Number the entries, special tokens first; UserError if one of these is a piece of the text, too."""
    if taken := sorted({*design.first_tokens} & {*pieces}):
        name = short(taken[0])
        raise UserError(f"--special_tokens {name}: is a piece of this text, too; give another name, such as <|{name}|>")
    return {token: number for number, token in enumerate([*design.first_tokens, *pieces])}


def _bpe(design: Design, vocabulary: list[str], merges: list[tuple[str, str]]) -> Any:
    from tokenizers.models import BPE

    unknown = {"unk_token": UNKNOWN} if design.spelling == "none" else {}
    return BPE(_entries(design, vocabulary), merges, byte_fallback=design.spelling == "fallback", **unknown)


def _unigram(design: Design, pieces: list[tuple[str, float]]) -> Any:
    from tokenizers.models import Unigram

    scores = dict(pieces)
    entries = _entries(design, [*scores])
    scored = [(name, scores.get(name, 0.0)) for name in entries]
    return Unigram(scored, entries.get(UNKNOWN), design.spelling == "fallback")


def _wordpiece(design: Design, vocabulary: list[str]) -> Any:
    from tokenizers.models import WordPiece

    return WordPiece(_entries(design, vocabulary), unk_token=OF_BERT[1], continuing_subword_prefix=PREFIX)
