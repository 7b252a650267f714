"""How a tokenizer writes a text: in how many tokens, and how many of them stand for what it doesn't know."""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from sslm.data.corpus.documents import Piece
from sslm.data.corpus.encode import batches, encode_pieces, without_empty
from sslm.data.corpus.tokenizer import Tokenizer, TokenRules, num_ids
from sslm.data.corpus.utf8 import REPLACEMENT
from sslm.data.stream.vocabulary import ONE_BYTE, unspaced_share

SCRIPT_CHARS = 1 << 14
"""Characters of a text's beginning that tell whether its words have spaces between them."""


@dataclass(frozen=True)
class Fertility:
    """What was counted."""

    num_tokens: int
    num_words: int
    """Stretches without white space."""
    num_chars: int
    num_bytes: int
    num_unknown: int
    """Tokens that stand for what the tokenizer doesn't know."""
    num_in_bytes: int
    """Tokens that are bytes of a character: those of byte fallback, and parts of characters."""
    has_spaces: bool
    """Whether words have spaces between them, in the script of most letters."""

    @property
    def tokens_per_word(self) -> float | None:
        """None if words can't be told apart."""
        return self.num_tokens / max(self.num_words, 1) if self.has_spaces else None

    @property
    def tokens_per_char(self) -> float:
        return self.num_tokens / max(self.num_chars, 1)

    @property
    def bytes_per_token(self) -> float:
        return self.num_bytes / max(self.num_tokens, 1)

    @property
    def unknown_share(self) -> float:
        return self.num_unknown / max(self.num_tokens, 1)

    @property
    def in_bytes_share(self) -> float:
        return self.num_in_bytes / max(self.num_tokens, 1)


def fertility(pieces: Iterable[Piece], tokenizer: Tokenizer, most_chars: int) -> Fertility:
    """Count how a tokenizer writes the first `most_chars` characters of a text; special tokens' names are text."""
    counts = np.zeros(num_ids(tokenizer), np.int64)
    words = chars = num_bytes = 0
    beginning = ""
    to_encode = batches(first_of(without_empty(pieces), most_chars), 0)
    with closing(encode_pieces(to_encode, tokenizer, TokenRules())) as encoded:
        for batch, ids in encoded:
            counts += np.bincount(np.concatenate([np.array(row, np.int64) for row in ids]), minlength=len(counts))
            for text, _ in batch.pieces:
                words, chars, num_bytes = words + len(text.split()), chars + len(text), num_bytes + len(text.encode())
                beginning += text[: SCRIPT_CHARS - len(beginning)]
    unknown = tokenizer.unk_token_id
    return Fertility(
        num_tokens=int(counts.sum()),
        num_words=words,
        num_chars=chars,
        num_bytes=num_bytes,
        num_unknown=0 if unknown is None else int(counts[unknown]),
        num_in_bytes=sum(int(counts[n]) for n in np.flatnonzero(counts).tolist() if _is_bytes(tokenizer, n)),
        has_spaces=unspaced_share(beginning) < 0.5,
    )


def _is_bytes(tokenizer: Tokenizer, number: int) -> bool:
    """Whether an entry stands for bytes instead of characters."""
    token = tokenizer.convert_ids_to_tokens(number)
    is_fallback = isinstance(token, str) and ONE_BYTE.fullmatch(token) is not None
    return is_fallback or REPLACEMENT in tokenizer.decode([number])


def first_of(pieces: Iterable[Piece], chars: int) -> Iterable[Piece]:
    """Yield pieces up to the one with character number `chars`."""
    for piece in pieces:
        yield piece
        chars -= len(piece[0])
        if chars <= 0:
            return
