"""Word vectors, as word2vec and GloVe write them, as the first weights of a model's input embedding.

The file is text, a word and its numbers per line (.gz too); word2vec's begins with a line `words dimension`, GloVe's
doesn't. It is read once, and only what the vocabulary asks for is kept (Mikolov et al. 2013, arXiv:1301.3781;
Pennington et al. 2014, "GloVe").

Which entry of a vocabulary gets a word's vector: an entry stands for its text without the mark of its place in a word
(Ġ or ▁ before a word's beginning, ## before what continues one, </w> after its end). Of entries with the same text, one
that is a whole word or begins one comes first, then one without a mark, then one that continues a word; only the first
gets the vector. A text takes the vector of the same word, or else of the file's first that differs in upper and lower
case only. All other entries stay as they were drawn.

    file: the 3 4 · The 0 1 · Rome 1 0     vocabulary: Ġthe, the, The, Ġrome, zz
    Ġthe: 3 4     The: 0 1     Ġrome: 1 0 (of Rome)     the: as drawn, for Ġthe has it     zz: as drawn
"""

import gzip
import re
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sslm.system.errors import UserError

FORMAT = "the text format of word2vec or GloVe, a word and its numbers per line (.gz too)"

LONE_BYTE = re.compile("<0x[0-9A-F]{2}>")
"""Entry for a byte that has no better one: <0x2C> decodes to the comma, but the comma has an entry of its own."""


class Vectors(NamedTuple):
    """Vectors that a file has for a vocabulary."""

    ids: list[int]
    """Entries with a vector, ascending."""
    rows: NDArray[np.float32]
    """[matched, dimension]"""


# ------------------------------------------------------------------------------------------------ the file


def dimension_of(file: str | Path) -> int:
    """Read a file's numbers per word off its first line; UserError if it is not of this format."""
    return _first_line(file)[1]


def load_vectors(file: str | Path, entries: Mapping[str, int]) -> Vectors:
    """Read the vectors of those entries, text -> id, that have one.

    Raises:
        UserError: no such file, or not of this format.
    """
    lowered = {text.lower() for text in entries}
    same: dict[str, NDArray[np.float32]] = {}
    nearly: dict[str, NDArray[np.float32]] = {}
    for number, word, numbers in _words_in(file):
        if (lower := word.lower()) in lowered:
            vector = _parsed(file, number, word, numbers)
            same.setdefault(word, vector)
            nearly.setdefault(lower, vector)
    found = {entry: same.get(text, nearly.get(text.lower())) for text, entry in entries.items()}
    ids = sorted(entry for entry, vector in found.items() if vector is not None)
    return Vectors(ids, np.array([found[entry] for entry in ids], np.float32))


def _words_in(file: str | Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, word, and its numbers as text: most are not wanted, and not parsed.

    A few words of GloVe's 840B have spaces in them (`. . .`): the dimension, read off the first line, says where a word
    ends.
    """
    announced, dimension = _first_line(file)
    words = 0
    for number, line in _lines(file):
        if number == 1 and announced is not None:
            continue
        spaces = line.count(" ")
        if spaces < dimension:
            _refuse(file, number, line, f"a word and {dimension} numbers")
        word = line.partition(" ")[0] if spaces == dimension else line.rsplit(" ", dimension)[0]
        words += 1
        yield number, word, line[len(word) + 1 :]
    if announced is not None and words < announced:
        cut = f"has {words:,} words, but its first line says {announced:,}"
        raise UserError(f"{_flag(file)}: {cut}; it was cut short, fetch it again")


def _first_line(file: str | Path) -> tuple[int | None, int]:
    """Words that word2vec announces, or None if the line is already a word's (GloVe), and numbers per word."""
    with closing(_lines(file)) as lines:
        _, line = next(lines, (1, ""))
    word, _, numbers = line.partition(" ")
    if word.isdecimal() and numbers.isdecimal():
        return int(word), int(numbers)
    if not numbers:
        _refuse(file, 1, line, "a word and its numbers, or how many words and numbers there are")
    return None, len(_parsed(file, 1, word, numbers))


def _lines(file: str | Path) -> Generator[tuple[int, str], None, None]:
    """Yield lines, numbered from 1. Bytes that aren't UTF-8 become a sign that no entry's text has."""
    if not Path(file).is_file():
        raise UserError(f"{_flag(file)}: there is no such file; expected word vectors in {FORMAT}")
    how: Any = {"encoding": "utf-8", "errors": "replace", "newline": "\n"}
    number = 0
    try:
        with gzip.open(file, "rt", **how) if str(file).endswith(".gz") else open(file, **how) as stream:
            for number, line in enumerate(stream, start=1):
                yield number, line.rstrip(" \r\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        where = f"after line {number} ({error})"
        raise UserError(f"{_flag(file)}: can't be unpacked {where}; it is damaged, fetch it again") from None


def _parsed(file: str | Path, number: int, word: str, numbers: str) -> NDArray[np.float32]:
    try:
        vector = np.array(numbers.split(" "), np.float32)
    except ValueError:
        vector = np.array([np.nan], np.float32)
    if not np.isfinite(vector).all():
        _refuse(file, number, f"{word} {numbers}", "a word and its numbers")
    return vector


def _refuse(file: str | Path, number: int, found: str, expected: str) -> NoReturn:
    shown = found if len(found) <= 60 else f"{found[:60]}…"
    raise UserError(f"{_flag(file)}: line {number} is {shown!r}, expected {expected}; the file must have {FORMAT}")


def _flag(file: str | Path) -> str:
    return f"--model.embedding_init {file}"


# ------------------------------------------------------------------------------------------------ the vocabulary


def words_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Map each text to the entry that gets its vector: of WordPiece's the, ##the and ##ing, {'the': 1, 'ing': 3}.

    Special tokens are left out.
    """
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    continues = getattr(model, "continuing_subword_prefix", None)
    ends = getattr(model, "end_of_word_suffix", None)
    special = set(tokenizer.all_special_ids)

    def rank_and_text(token: str, entry: int) -> tuple[int, str]:
        if continues:
            return (0, token.removeprefix(continues)) if token.startswith(continues) else (2, token)
        if ends and token.endswith(ends):
            return 2, token.removesuffix(ends)
        if token.startswith("▁"):
            return 2, token[1:]
        text = str(tokenizer.decode([entry], clean_up_tokenization_spaces=False))  # bytes: Ġ and its kin
        return (2, text[1:]) if text.startswith(" ") else (1, text)

    best: dict[str, tuple[int, int]] = {}
    for token, entry in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if entry in special or LONE_BYTE.fullmatch(token):
            continue
        rank, text = rank_and_text(token, entry)
        if text and "\ufffd" not in text and rank > best.get(text, (-1, 0))[0]:
            best[text] = rank, entry
    return {text: entry for text, (_, entry) in best.items()}


# ------------------------------------------------------------------------------------------------ the embedding


def check_vectors(
    file: str | Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, project: bool
) -> None:
    """Check that vectors fit a model, which may be on the meta device, as far as the file's first line shows.

    Raises:
        UserError: no such file, not of this format, another dimension and no projection, nothing to match words with.
    """
    if tokenizer is None:
        raise UserError(f"{_flag(file)}: the corpus has no tokenizer, so its ids are no words; give --data.tokenizer")
    had, wanted = dimension_of(file), _embedding(file, model).shape[1]
    if had != wanted and not project:
        raise UserError(
            f"{_flag(file)}: its vectors have {had} numbers, the model's embedding {wanted}; give "
            f"--model.embedding_project true to turn them into {wanted}, or an embedding of {had}"
        )


@torch.no_grad()
def initialise_embedding(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, file: str | Path, project: bool, seed: int
) -> int:
    """Put a file's vectors into a fresh model's input embedding, and count the entries that have one.

    The model is on the CPU, not yet sharded. If dimensions differ and `project` says so, `projection` is applied. One
    factor scales all vectors, so that their numbers have the standard deviation of those they replace and training
    starts as usual. A head that shares the embedding's weights has them too.

    Raises:
        UserError: `check_vectors` refuses, or no entry has a vector.
    """
    check_vectors(file, model, tokenizer, project)
    assert tokenizer is not None
    weight, entries = _embedding(file, model), words_of(tokenizer)
    ids, rows = load_vectors(file, entries)
    if not ids:
        raise UserError(
            f"{_flag(file)}: none of its words is an entry of the tokenizer, which has such as "
            f"{', '.join(list(entries)[-3:])}; give vectors of the text's language"
        )
    vectors = torch.from_numpy(rows).double()
    if vectors.shape[1] != weight.shape[1]:
        vectors = vectors @ projection(vectors.shape[1], weight.shape[1], seed)
    spread = vectors.std(correction=0)
    if not spread > 0:
        alike = f"all numbers of the {len(ids):,} words it shares with the tokenizer are the same"
        raise UserError(f"{_flag(file)}: {alike}; give another file")
    weight[ids] = (vectors * (weight[ids].double().std(correction=0) / spread)).to(weight.dtype)
    return len(ids)


def projection(had: int, wanted: int, seed: int) -> Tensor:
    """[had, wanted] part of a random orthogonal matrix: no direction is likelier than another.

    Into more dimensions it keeps all angles, and lengths. Into fewer it keeps them roughly (Johnson and Lindenstrauss
    1984), lengths times √(wanted/had); the one factor of `initialise_embedding` makes up for that.

    It is Q of the QR decomposition of a Gaussian matrix, its columns turned so that R's diagonal is positive; without
    that, Q would not be uniform (Mezzadri 2007, arXiv:math-ph/0609050).
    """
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(max(had, wanted), min(had, wanted), dtype=torch.float64, generator=generator)
    q, r = torch.linalg.qr(gaussian)
    q *= r.diagonal().sign()
    turned: Tensor = q if had >= wanted else q.T
    return turned


def _embedding(file: str | Path, model: PreTrainedModel) -> Tensor:
    """[vocab_size, dimension] weights of the model's input embedding."""
    weight: Any = None
    with suppress(AttributeError, NotImplementedError):
        weight = model.get_input_embeddings().weight
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise UserError(f"{_flag(file)}: {model.config.model_type} has no embedding of words; leave the flag out")
    return weight
