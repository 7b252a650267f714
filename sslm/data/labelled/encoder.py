"""A tokenizer as labelled rows need it: texts and pairs framed by its own template, and cut to fit."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sslm.data.corpus.tokenizer import Tokenizer, TokenRules, end_of_document
from sslm.system.errors import UserError

LEAST_ROOM = 4
"""Tokens of text that a sequence has to have room for, beside the tokenizer's own."""


class Encoded(NamedTuple):
    """A text, or a pair, as a model reads it."""

    ids: list[int]
    types: list[int]
    """Which of a pair's texts each token belongs to, as the tokenizer tells it; empty if its models don't ask."""
    was_cut: bool


class Encoder:
    """Turns texts into what a model reads: as the tokenizer itself does, but for special tokens' names in the text.

    Args:
        tokenizer: the tokenizer.
        rules: whether such names become these tokens.
    """

    def __init__(self, tokenizer: Tokenizer, rules: TokenRules) -> None:
        self.tokenizer = tokenizer
        self.end = end_of_document(tokenizer)
        self.has_types = "token_type_ids" in tokenizer.model_input_names
        self.is_fast = bool(getattr(tokenizer, "is_fast", False))
        self._how = {
            "split_special_tokens": rules.special_tokens == "plain",
            "return_token_type_ids": self.has_types,
            "return_attention_mask": False,
            "verbose": False,
        }

    def check_room(self, seq_len: int, is_pair: bool) -> None:
        """Raise UserError if seq_len tokens leave no room for a text beside the tokenizer's own."""
        own = self.tokenizer.num_special_tokens_to_add(is_pair)
        if seq_len < own + LEAST_ROOM:
            raise UserError(
                f"--seq_len {seq_len}: the tokenizer adds {own} tokens of its own, and {LEAST_ROOM} of the text are "
                f"the least; type --seq_len 128"
            )

    def framed(self, texts: Sequence[str], pairs: Sequence[str] | None, most: int) -> list[Encoded]:
        """Frame texts, or pairs, in the tokenizer's template; of a pair the longer text is cut first.

        What would have no token at all has the end-of-text token.
        """
        cut: dict[str, Any] = {"truncation": "longest_first", "max_length": most}
        found = self.tokenizer(list(texts), None if pairs is None else list(pairs), **cut, **self._how)
        types = found["token_type_ids"] if self.has_types else [[]] * len(texts)
        framed = []
        for i, ids in enumerate(found["input_ids"]):
            was_cut = bool(found.encodings[i].overflowing) if self.is_fast else len(ids) == most
            framed.append(Encoded(ids or [self.end], types[i] or [0] * self.has_types, was_cut))
        return framed

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts without the template."""
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, **self._how)["input_ids"]
        return ids
