"""New tokens for a tokenizer that exists: each is found whole in a text, wherever it stands."""

import copy
from collections.abc import Iterable
from typing import NamedTuple

from sslm.data.corpus.tokenizer import Tokenizer
from sslm.system.errors import UserError, short


class Extended(NamedTuple):
    """A tokenizer with new tokens."""

    tokenizer: Tokenizer
    pieces: dict[int, list[int]]
    """New id -> the ids by which the tokenizer wrote that token before."""
    known: list[str]
    """Tokens that it had already."""


def with_tokens(tokenizer: Tokenizer, tokens: Iterable[str], special: bool = False) -> Extended:
    """Copy a tokenizer, and append tokens to it.

    Args:
        special: whether they are special tokens, which a corpus' text has as plain text.

    Raises:
        UserError: a token is empty, white space or no Unicode, all are known, the tokenizer takes one for no text, or
            its ids have gaps.
    """
    from tokenizers import AddedToken  # heavy

    known, new = tokenizer.get_vocab(), list(dict.fromkeys(tokens))
    if any(not token.strip() for token in new):
        raise UserError("a token of --tokens is empty or white space; give words or names, such as --tokens kubectl")
    if broken := [token for token in new if any("\ud800" <= char <= "\udfff" for char in token)]:
        raise UserError(f"--tokens {short(ascii(broken[0]))}: is no Unicode text; give it in UTF-8")
    known_ones = [token for token in new if token in known]
    new = [token for token in new if token not in known]
    if not new:
        raise UserError("there is no new token: the tokenizer has all of them; give others: --tokens kubectl")
    pieces = [list(tokenizer(token, add_special_tokens=False)["input_ids"]) for token in new]
    if lost := [token for token, old in zip(new, pieces, strict=True) if not old]:
        why = "this tokenizer takes it for no text at all, so its embedding has nothing to begin as"
        raise UserError(f"--tokens {short(ascii(lost[0]))}: {why}; leave it out")
    tokenizer = copy.deepcopy(tokenizer)
    added = [AddedToken(token, special=special, normalized=False) for token in new]
    tokenizer.add_tokens(added, special_tokens=special)
    check_ids(tokenizer)
    ids = tokenizer.get_vocab()
    return Extended(tokenizer, {ids[token]: old for token, old in zip(new, pieces, strict=True)}, known_ones)


def check_ids(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that has given a new token an id that was taken."""
    known = tokenizer.get_vocab()
    if len(set(known.values())) < len(known):
        raise UserError("this tokenizer's ids have gaps, so that new tokens can't be appended; renumber its ids")
