"""Tokenizers: loaded from a folder or the hub, or a byte-level BPE to be trained on the corpus itself."""

import copy
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sslm.data.corpus.tokenizer_design import END_OF_TEXT
from sslm.system.errors import UserError, one_line

if TYPE_CHECKING:  # importing transformers takes seconds, and reading a prepared corpus needs none of it
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    Tokenizer = PreTrainedTokenizerBase
else:
    Tokenizer = Any

Encode = Callable[[Sequence[str]], Iterable[list[int]]]
"""Texts -> their ids."""
USUAL_ENDS = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "[SEP]")
NO_CHARACTER = "\uffff"
"""Unicode keeps it out of texts."""


class TokenRules(NamedTuple):
    """How documents become ids, beside what the tokenizer says."""

    special_tokens: Literal["plain", "parse"] = "plain"
    """Whether the names of special tokens in the text stay text, or become these tokens."""
    bos: Literal["template", "never"] = "template"
    """Whether documents begin with the BOS token if the tokenizer's template begins a text with it."""


@dataclass(frozen=True)
class TrainBPE:
    """Order to train a byte-level BPE on the text that is prepared."""

    size: int

    def __str__(self) -> str:
        return f"bpe:{self.size}"


TokenizerChoice = TrainBPE | str
"""An order to train one, or the folder, tokenizer.json or hub name of one that exists."""


def parse_tokenizer(text: str) -> TokenizerChoice:
    """Parse what `--data.tokenizer` takes; UserError if the size after `bpe:` is no number, or too small.

    >>> parse_tokenizer("bpe:32000"), parse_tokenizer("gpt2")
    (TrainBPE(size=32000), 'gpt2')
    """
    kind, _, size = text.partition(":")
    if kind != "bpe":
        return text
    if not size.isdecimal() or int(size) < 257:
        raise UserError(f"--data.tokenizer {text}: expected bpe:SIZE with a size of at least 257, such as bpe:32000")
    return TrainBPE(int(size))


def loaded(choice: TokenizerChoice) -> "TrainBPE | Tokenizer":
    """Load a tokenizer that exists; an order to train one stays an order."""
    return choice if isinstance(choice, TrainBPE) else load(choice)


def load(name: str | os.PathLike[str], flag: str = "--data.tokenizer ") -> Tokenizer:
    """Load a tokenizer from a folder, a tokenizer.json, or the hub; UserError, naming the flag, if there is none."""
    from transformers import AutoTokenizer  # heavy

    name = str(name)
    path = Path(name)
    if not path.exists() and name.startswith((".", "/")):
        raise UserError(f"{flag}{name}: there is no such folder")
    try:
        tokenizer: Tokenizer = (
            _load_file(name) if path.is_file() else AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        )
    except Exception as error:  # missing files, no network, broken JSON: all are about the name
        what = "no tokenizer could be loaded from it; expected a folder, a hub name or bpe:SIZE"
        raise UserError(f"{flag}{name}: {what} ({one_line(error)})") from None
    end_of_document(tokenizer)
    return tokenizer


def _load_file(file: str) -> "PreTrainedTokenizerFast":
    """Load a bare tokenizer.json, and find its special tokens by their usual names: it does not list them."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=file)
    known = tokenizer.get_vocab()
    tokenizer.eos_token = next((end for end in USUAL_ENDS if end in known), None)
    for kind in ("mask", "pad", "cls", "sep", "unk"):
        name = next((name for name in (f"[{kind.upper()}]", f"<{kind}>") if name in known), None)
        if name is not None:
            setattr(tokenizer, f"{kind}_token", name)
    return tokenizer


def end_of_document(tokenizer: Tokenizer) -> int:
    """Find the id that ends a document: end-of-text, or else the separator."""
    for candidate in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if candidate is not None:
            return int(candidate)
    raise UserError(
        "this tokenizer has neither an end-of-text nor a separator token to end documents with; add one: "
        "tokenizer.add_special_tokens({'eos_token': '</s>'})"
    )


def num_ids(tokenizer: Tokenizer) -> int:
    """One more than the largest id: more than the number of entries if ids have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def wrapping(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Find the ids that the tokenizer puts before and after a text."""
    plain: list[int] = tokenizer("a", add_special_tokens=False).input_ids
    wrapped: list[int] = tokenizer("a").input_ids
    start = next((n for n in range(len(wrapped)) if wrapped[n : n + len(plain)] == plain), 0)
    return wrapped[:start], wrapped[start + len(plain) :]


def beginning(tokenizer: Tokenizer, rules: TokenRules) -> list[int]:
    """Return the ids that begin a document: the BOS token, if the tokenizer's template puts it before a text.

    [CLS] and its like are put around a sequence, not a document, by the objectives that want them.
    """
    bos = tokenizer.bos_token_id
    if rules.bos == "never" or bos is None or bos == tokenizer.cls_token_id:
        return []
    return [bos] if wrapping(tokenizer)[0] == [bos] else []


def special_names(tokenizer: Tokenizer) -> list[str]:
    """List the names of special tokens, the longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {*tokenizer.all_special_tokens, *(token.content for token in added if token.special)}
    return sorted(names, key=lambda name: (-len(name), name))


def backend_of(tokenizer: Tokenizer, rules: TokenRules) -> Any:
    """Copy a tokenizer's backend, which neither cuts nor pads; None if the tokenizer is written in Python.

    A copy: whoever calls a tokenizer sets its backend.
    """
    backend: Any = copy.deepcopy(getattr(tokenizer, "backend_tokenizer", None))
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = rules.special_tokens == "plain"
        if backend.encode_special_tokens and type(backend.model).__name__ == "Unigram":
            backend.model = _without_pieces(backend, set(special_names(tokenizer)))
    return backend


def text_encoder(tokenizer: Tokenizer, rules: TokenRules) -> Encode:
    """Make a function from texts to their ids, without the tokenizer's template."""
    backend = backend_of(tokenizer, rules)
    if backend is None:
        how = {"add_special_tokens": False, "split_special_tokens": rules.special_tokens == "plain", "verbose": False}
        return lambda texts: tokenizer(list(texts), **how)["input_ids"]
    return lambda texts: (found.ids for found in backend.encode_batch_fast(list(texts), add_special_tokens=False))


def _without_pieces(backend: Any, names: set[str]) -> Any:
    """Make a Unigram model that finds no special token in a text (docs/lessons.md): what no text has is their piece."""
    from tokenizers.models import Unigram

    model = json.loads(backend.to_str())["model"]
    pieces = [(f"{piece}{NO_CHARACTER}" if piece in names else piece, score) for piece, score in model["vocab"]]
    return Unigram(pieces, model["unk_id"], model.get("byte_fallback", False))


SPECIAL = ("bos", "eos", "pad", "cls", "sep", "mask")


def special_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """List ids for a model's config, without a padding id that is another token's: its embedding would not train."""
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id", None) for kind in SPECIAL}
    if ids["eos_token_id"] is None:
        ids["eos_token_id"] = ids["sep_token_id"]  # as `end_of_document`
    if ids["pad_token_id"] in (ids["bos_token_id"], ids["eos_token_id"]):
        ids["pad_token_id"] = None
    return ids


def identity(tokenizer: Tokenizer, without_from: int | None = None) -> str:
    """Hash what decides which ids a text gets: equal for equal tokenizers, wherever they were loaded from.

    Tokens that were added with the id `without_from` or a higher one are left out.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    serialised = json.dumps(tokenizer.get_vocab()) if backend is None else backend.to_str()
    return _identity(serialised, backend is not None, end_of_document(tokenizer), without_from)


@functools.lru_cache(maxsize=2)  # takes a tenth of a second, and is called again and again
def _identity(serialised: str, is_backend: bool, end: int, without_from: int | None) -> str:
    parts = json.loads(serialised)
    if is_backend:  # padding and truncation decide no ids
        parts = {key: parts[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        if without_from is not None:
            parts["added_tokens"] = [token for token in parts["added_tokens"] if token["id"] < without_from]
    elif without_from is not None:
        parts = {token: n for token, n in parts.items() if n < without_from}
    return hashlib.sha256(json.dumps([parts, end], sort_keys=True).encode()).hexdigest()
