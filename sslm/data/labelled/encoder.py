"""A tokenizer as labelled rows need it: texts and pairs framed by its own template, and cut to fit."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from sslm.data.corpus.tokenizer import Tokenizer, TokenRules, backend_of, end_of_document, text_encoder, wrapping
from sslm.system.errors import UserError

LEAST_ROOM = 4
"""Tokens of text that a sequence has to have room for, beside the tokenizer's own."""

Strategy = Literal["longest_first", "only_second"]
"""What is cut of a pair that is too long, by its names in tokenizers."""


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
        self.before, self.after = wrapping(tokenizer)
        self.has_types = "token_type_ids" in tokenizer.model_input_names
        self._plain = rules.special_tokens == "plain"
        self._backend = backend_of(tokenizer, rules)
        self._ids_of = text_encoder(tokenizer, rules)

    def check_room(self, seq_len: int, is_pair: bool) -> None:
        """Raise UserError if seq_len tokens leave no room for a text beside the tokenizer's own."""
        own = self.tokenizer.num_special_tokens_to_add(is_pair)
        if seq_len < own + LEAST_ROOM:
            raise UserError(
                f"--seq_len {seq_len}: the tokenizer adds {own} tokens of its own, and there has to be room for "
                f"{LEAST_ROOM} of the text; type --seq_len 128"
            )

    def framed(self, texts: Sequence[str], pairs: Sequence[str] | None, most: int) -> list[Encoded]:
        """Frame texts, or pairs, in the tokenizer's template; of a pair the longer text is cut first.

        What would have no token at all has the end-of-text token.
        """
        if self._backend is None:
            return self._framed_in_python(texts, pairs, most)
        return [self.encoded(found) for found in self.encodings(texts, pairs, most)]

    def encoded(self, found: Any) -> Encoded:
        """Take what a model reads from a text's encoding, as `encodings` gives it."""
        types = found.type_ids if self.has_types else []
        return Encoded(found.ids or [self.end], types or [0] * self.has_types, bool(found.overflowing))

    def encodings(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None,
        most: int,
        strategy: Strategy = "longest_first",
        overlap: int = 0,
    ) -> list[Any]:
        """Frame as `framed` does, and tell where each token stands in the text (`offsets`, `sequence_ids`).

        What was cut off is in `overflowing`, in windows that have `overlap` tokens in common.

        Raises:
            UserError: the tokenizer is one that doesn't tell.
        """
        if self._backend is None:
            raise UserError(
                f"{self.tokenizer.name_or_path}: is written in Python, and doesn't tell where its tokens "
                f"stand in the text; give one with a tokenizer.json"
            )
        side = getattr(self.tokenizer, "truncation_side", "right")
        self._backend.enable_truncation(most, stride=overlap, strategy=strategy, direction=side)
        given = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        found: list[Any] = self._backend.encode_batch(given)
        return found

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts without the template."""
        return list(self._ids_of(texts))

    def _framed_in_python(self, texts: Sequence[str], pairs: Sequence[str] | None, most: int) -> list[Encoded]:
        how = {"split_special_tokens": self._plain, "return_token_type_ids": self.has_types, "verbose": False}
        given = (list(texts), None if pairs is None else list(pairs))
        found = self.tokenizer(*given, truncation="longest_first", max_length=most, **how)
        types = found["token_type_ids"] if self.has_types else [[]] * len(texts)
        return [
            Encoded(ids or [self.end], kinds or [0] * self.has_types, len(ids) == most)
            for ids, kinds in zip(found["input_ids"], types, strict=True)
        ]
