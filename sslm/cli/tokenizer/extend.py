"""sslm tokenizer extend: new tokens for a pretrained tokenizer, whose embeddings begin as the mean of their pieces."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sslm.cli.tokenizer.inputs import folder_made
from sslm.system.errors import UserError, printable
from sslm.system.exits import DONE
from sslm.system.paths import followed, local_path
from sslm.system.terminal import plural, say

if TYPE_CHECKING:  # heavy
    from sslm.data.corpus.new_tokens import Extended

SHOWN = 5


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    where = "run folder, checkpoint, Hugging Face folder or hub name; without --model a tokenizer's folder, too"
    add("pretrained", type=followed, metavar="MODEL", help=where)
    add("--tokens", nargs="+", default=[], metavar="TOKEN", help="new tokens, as they stand in a text")
    add("--tokens_file", type=local_path, help="file of new tokens, one a line, in UTF-8")
    add("--special", action="store_true", help="they are special tokens: a corpus' text has their names as plain text")
    add("--model", action="store_true", help="write the model too, with rows for the new tokens")
    add("--out", required=True, type=local_path, help="folder to make; it must not exist")


def main(options: argparse.Namespace) -> int:
    tokens = [*options.tokens, *([] if options.tokens_file is None else _lines(options.tokens_file))]
    if not tokens:
        raise UserError("there are no tokens; give some: --tokens kubectl '<|im_start|>', or --tokens_file FILE")
    with folder_made(options.out) as part:
        extended = _extend(options, tokens, part)
    if extended.known:
        shown = ", ".join(map(printable, extended.known[:SHOWN]))
        more = ", …" if len(extended.known) > SHOWN else ""
        say(f"{plural(len(extended.known), 'token')} it had already, and they stay as they are: {shown}{more}")
    mean = sum(map(len, extended.pieces.values())) / len(extended.pieces)
    rows = "; their embeddings begin as the mean of these" if options.model else ""
    say(
        f"{options.out}: {plural(len(extended.pieces), 'new token')}, "
        f"written in {mean:.1f} pieces each before{rows}; {len(extended.tokenizer):,} entries"
    )
    flag = "--model.pretrained" if options.model else "--data.tokenizer"
    say(f"Train with it: python -m sslm.train {flag} {options.out} --data.train TEXT", to_copy=True)
    return DONE


def _extend(options: argparse.Namespace, tokens: list[str], out: Path) -> "Extended":
    """Write the tokenizer with its new tokens into a folder, and the model if it is asked for."""
    from sslm.data.corpus.new_tokens import with_tokens

    model = None
    if options.model:
        from sslm.models.new_rows import add_rows
        from sslm.runs.trained import open_trained

        trained = open_trained(options.pretrained)
        model, tokenizer = trained.model, trained.tokenizer
    else:
        from sslm.data.corpus.tokenizer import load

        tokenizer = load(options.pretrained, "")
    extended = with_tokens(tokenizer, tokens, options.special)
    if model is not None:
        add_rows(model, extended.pieces)
        model.save_pretrained(out)
    extended.tokenizer.save_pretrained(out)
    return extended


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").split("\n") if line]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--tokens_file {file}: can't be read as UTF-8 text, one token a line ({error})") from None
