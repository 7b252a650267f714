"""Text to tokens and back, as a trained model knows them."""

from collections.abc import Iterable
from typing import Literal

from sslm.data.corpus import tokenizer as tokenizers
from sslm.data.corpus.tokenizer import TokenRules
from sslm.runs.trained import Trained

Begin = Literal["document", "template", "nothing"]


class Texts:
    """A tokenizer, and where a text begins and ends for a model.

    Args:
        trained: the model.
        special_tokens: whether the names of special tokens in a text are plain text, or these tokens.
        begin: what a text that is continued begins with.
    """

    def __init__(self, trained: Trained, special_tokens: Literal["plain", "parse"], begin: Begin) -> None:
        self.tokenizer = trained.tokenizer
        self._ids_of = tokenizers.text_encoder(self.tokenizer, TokenRules(special_tokens))
        self.end = tokenizers.end_of_document(self.tokenizer)
        self.before, self.after = tokenizers.wrapping(self.tokenizer)
        """What the tokenizer puts around a text."""
        self.ended = self.after if self.end in self.after else [*self.after, self.end]
        """What the tokenizer puts after a text, with an end in any case."""
        self.begin = beginning(trained, begin)
        self.vocab_size = min(tokenizers.num_ids(self.tokenizer), trained.model.config.vocab_size)
        backend = self.tokenizer("(a) b", add_special_tokens=False).input_ids
        self.keeps_spaces = self.decode(backend).lstrip() == "(a) b"
        """Whether decoding gives white space back as it was: WordPiece doesn't."""

    def encode(self, text: str) -> list[int]:
        [ids] = self._ids_of([text])
        return ids

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def special_named(self, names: Iterable[str]) -> list[int]:
        """List the ids of those names that are special tokens': decoding leaves them out."""
        known, special = self.tokenizer.get_vocab(), set(tokenizers.special_names(self.tokenizer))
        return [known[name] for name in names if name in special and name in known]

    def special_ids(self) -> list[int]:
        """List the ids of special tokens."""
        return self.special_named(tokenizers.special_names(self.tokenizer))


def beginning(trained: Trained, begin: Begin) -> list[int]:
    """Return the tokens before a text that is continued.

    `document`: as a document begins in training. If that is with no token of its own, a run's documents follow the end
    of another one, unless they are kept apart; of other models nobody knows, and the tokenizer's template decides.
    """
    before, _ = tokenizers.wrapping(trained.tokenizer)
    data = trained.settings.get("data", {})
    if begin == "nothing":
        return []
    if begin == "template" or not data:
        return before
    rules = TokenRules(bos="never") if data.get("bos") == "never" else TokenRules()
    own = tokenizers.beginning(trained.tokenizer, rules)
    follows = not own and data.get("document_mask") is not True
    return [tokenizers.end_of_document(trained.tokenizer)] if follows else own
