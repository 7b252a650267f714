"""The tokenizer as tables over its ids: special tokens, and where words and sentences begin and end.

A batch of ids is looked up at once, and no text is decoded while training.
"""

import copy
import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslm.data.corpus.new_tokens import check_ids
from sslm.data.corpus.tokenizer import Tokenizer, end_of_document, num_ids, wrapping

MASK, PAD, SENTINEL = "<mask>", "<pad>", "<extra_id_{}>"
"""Names of added tokens; T5's tokenizers call their sentinels so too."""

ONE_BYTE = re.compile("<0x[0-9A-F]{2}>")
"""Name of a token of a byte that is no character alone, where the others are characters (byte fallback)."""

PARTIAL, LETTER, NUMBER, OTHER, SPACE = range(5)
"""Kinds of characters that byte-level tokenizers keep apart; PARTIAL stands for bytes that are no character alone."""

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""How Unicode begins the names of letters of scripts that put no space between words."""
SENTENCE_ENDS = (*".!?…", *"。！？｡．", *"؟۔।॥።։")
"""Marks that end a sentence, in Latin, East Asian, Arabic, Indic, Ethiopic and Armenian script."""
CLOSING = "\"'”’»)]}」』）】》"
"""Characters that may follow the mark that ends a sentence."""


class SpecialTokens(NamedTuple):
    """Special tokens that an objective needs."""

    mask: bool = False
    pad: bool = False
    sentinels: int = 0


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's ids, and tables over them, each [size]."""

    end: int
    """Id that ends a document, or a sequence."""
    prefix: NDArray[np.int64]
    """[any] ids that the tokenizer puts before a text ([CLS])."""
    suffix: NDArray[np.int64]
    """[any] ids that the tokenizer puts after a text ([SEP], </s>)."""
    mask: int | None
    pad: int
    """Id of padding, or 0 if the tokenizer has none: masks and labels tell what is padding."""
    sentinels: NDArray[np.int64]
    """[any] ids of the sentinels, in the order of their use."""
    special: NDArray[np.bool_]
    """Whether an id stands for no text: it is never masked, and never drawn as a random token."""
    begins_word: NDArray[np.bool_]
    first_kind: NDArray[np.uint8]
    """Kind of a token's first character, or 0 if `begins_word` alone tells words apart."""
    last_kind: NDArray[np.uint8]
    ends_sentence: NDArray[np.bool_]
    labels: tuple[str, ...] = ()
    """Names of the labels of labelled data, by their numbers."""

    @property
    def size(self) -> int:
        return len(self.special)

    @property
    def ordinary(self) -> NDArray[np.int64]:
        """[any] ids of text."""
        return np.flatnonzero(~self.special)

    def word_starts(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Find where words begin in [n, length] ids, as the tokenizer splits text; a special token is a word.

        A character cut into bytes is of unknown kind: it belongs to the word before it.
        """
        special, kinds = self.special[tokens], self.first_kind[tokens]
        starts = self.begins_word[tokens] | special
        first, last = kinds[:, 1:], self.last_kind[tokens][:, :-1]
        # the last piece of white space before a word without a leading space is a word
        pieces = (kinds[:, :-1] == SPACE) & (first != SPACE) & ~starts[:, 1:]
        starts[:, 1:] |= special[:, :-1] | ((first != last) & (first > PARTIAL) & (last > PARTIAL))
        starts[:, :-1] |= pieces
        starts[:, :1] = True
        return starts


def extended(tokenizer: Tokenizer, needs: SpecialTokens) -> Tokenizer:
    """Copy a tokenizer, and append the special tokens that it lacks.

    Raises:
        UserError: the tokenizer's ids have gaps, so that a new token would get an id that is taken.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if needs.mask and tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    if needs.pad and tokenizer.pad_token_id in (None, tokenizer.bos_token_id, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": PAD})
    if missing := range(len(_sentinels(tokenizer)), needs.sentinels):
        names = [SENTINEL.format(number) for number in missing]
        tokenizer.add_special_tokens({"extra_special_tokens": names}, replace_extra_special_tokens=False)
    check_ids(tokenizer)
    return tokenizer


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Make the tables of a tokenizer."""
    size = num_ids(tokenizer)
    tokens = [""] * size
    special = np.ones(size, bool)  # an id that no token has stands for no text
    for token, number in tokenizer.get_vocab().items():
        tokens[number], special[number] = token, False
    special[[*_special_ids(tokenizer), *_sentinels(tokenizer)]] = True
    texts = [_text(tokenizer, token, n) for n, token in enumerate(tokens)]
    begins, first, last = _word_tables(tokenizer, tokens, texts)
    prefix, suffix = wrapping(tokenizer)
    ends_sentence = np.array([text.rstrip().rstrip(CLOSING).endswith(SENTENCE_ENDS) for text in texts])
    return Vocabulary(
        end=end_of_document(tokenizer),
        prefix=np.array(prefix, np.int64),
        suffix=np.array(suffix, np.int64),
        mask=tokenizer.mask_token_id,
        pad=tokenizer.pad_token_id or 0,
        sentinels=np.array(_sentinels(tokenizer), np.int64),
        special=special,
        begins_word=begins,
        first_kind=first,
        last_kind=last,
        ends_sentence=ends_sentence & ~special,
    )


def text_bytes(tokenizer: Tokenizer) -> tuple[NDArray[np.float64], bool]:
    """Count the bytes of UTF-8 that each id's entry stands for, [num_ids], and tell if these are the text's own.

    They are with byte-level tokenizers. Others may know characters not at all, or in lower case only: of WordPiece, a
    token that begins a word counts the white space before it. Special tokens, the unknown one among them, have none.
    """
    table = np.zeros(num_ids(tokenizer))
    backend = _backend(tokenizer)
    is_byte_level = "ByteLevel" in _types(backend.get("decoder"))
    prefix = (backend.get("model") or {}).get("continuing_subword_prefix")
    added = getattr(tokenizer, "added_tokens_decoder", {})
    for token, number in tokenizer.get_vocab().items():
        if is_byte_level and number not in added:  # each character stands for a byte
            table[number] = len(token)
        elif ONE_BYTE.fullmatch(token):
            table[number] = 1
        elif prefix:
            table[number] = len(token.removeprefix(prefix).encode()) + (not token.startswith(prefix))
        else:
            table[number] = len(token.replace("▁", " ").replace("</w>", " ").encode())
    table[_special_ids(tokenizer)] = 0
    return table, is_byte_level and not backend.get("normalizer")


def unspaced_share(text: str) -> float:
    """Tell the share of a text's letters whose scripts put no space between words.

    >>> unspaced_share("今日は good"), unspaced_share("one two")
    (0.42857142857142855, 0.0)
    """
    letters = [character for character in text if character.isalpha()]
    return sum(unicodedata.name(letter, "").startswith(UNSPACED) for letter in letters) / max(len(letters), 1)


def _special_ids(tokenizer: Tokenizer) -> list[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    unnamed = [number for number, token in added.items() if token.special]  # <|im_start|>, <|reserved_0|>
    return [*tokenizer.all_special_ids, *unnamed]


def _backend(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the parts of a serialised tokenizer, or none of a tokenizer written in Python."""
    is_fast = hasattr(tokenizer, "backend_tokenizer")
    parts: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str()) if is_fast else {}
    return parts


def _sentinels(tokenizer: Tokenizer) -> list[int]:
    """List the ids of <extra_id_0>, <extra_id_1> … as far as there are any."""
    known = tokenizer.get_vocab()
    found: list[int] = []
    while (name := SENTINEL.format(len(found))) in known:
        found.append(known[name])
    return found


def _text(tokenizer: Tokenizer, token: str, number: int) -> str:
    """Decode one token, its spaces kept."""
    if token.startswith("▁"):
        return " " + token[1:]
    return str(tokenizer.decode([number], clean_up_tokenization_spaces=False))


Tables = tuple[NDArray[np.bool_], NDArray[np.uint8], NDArray[np.uint8]]


def _word_tables(tokenizer: Tokenizer, tokens: list[str], texts: list[str]) -> Tables:
    """Make begins_word, first_kind and last_kind, by the kind of tokenizer."""
    nothing = np.zeros(len(tokens), np.uint8)
    backend = _backend(tokenizer)
    if prefix := (backend.get("model") or {}).get("continuing_subword_prefix"):  # WordPiece
        return np.array([not token.startswith(prefix) for token in tokens]), nothing, nothing
    if suffix := (backend.get("model") or {}).get("end_of_word_suffix"):  # the first BPE: a word begins after </w>
        last = np.array([SPACE if token.endswith(suffix) else LETTER for token in tokens], np.uint8)
        return np.zeros(len(tokens), bool), np.full_like(nothing, LETTER), last
    has_spaces = any(re.match(r" \S", token) for token in tokens)  # byte fallback of `sslm tokenizer train`
    if "ByteLevel" not in _types(backend) and not has_spaces:  # Unigram and its kin: a word begins with ▁
        begins = np.array([token.startswith("▁") for token in tokens])
        return begins if begins.any() else ~begins, nothing, nothing  # without any ▁, each token is a word
    # Tokens with spaces: GPT-2's expression splits a text where the kind of character changes, and before a space
    begins = np.array([bool(re.match(r"\s+\S", text)) for text in texts])
    first = np.array([_kind(text.strip()[:1] or text[:1]) for text in texts], np.uint8)
    last = np.array([PARTIAL if text == " " else _kind(text[-1:]) for text in texts], np.uint8)  # the next word's own
    return begins, first, last


def _types(tree: Any) -> set[str]:
    """List the types of all parts of a serialised tokenizer; its vocabulary, which may be huge, is left out."""
    if isinstance(tree, list):
        return set().union(*map(_types, tree))
    if not isinstance(tree, dict):
        return set()
    return {str(tree.get("type"))}.union(*map(_types, () if "vocab" in tree else tree.values()))


def _kind(character: str) -> int:
    if not character or character == "\ufffd":
        return PARTIAL
    if character.isspace():
        return SPACE
    return {"L": LETTER, "N": NUMBER}.get(unicodedata.category(character)[0], OTHER)
