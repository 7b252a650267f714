"""Tokenise text into a corpus that `--data.train` takes.

    sslm prepare IN --out DIR

If it is killed or stopped by a signal, the same command goes on from where it was.
"""

import argparse
import time

from sslm.system.errors import UserError
from sslm.system.exits import DONE, STOPPED, exits_politely
from sslm.system.paths import followed, local_path
from sslm.system.signals import Stopped, stops_on_signals
from sslm.system.terminal import count, keep_libraries_quiet, plural, preparation_progress, say

LEAST_SHARD_TOKENS = 256
"""Smallest size of a shard: below it there would be a file or two for every few sentences."""


@exits_politely
@stops_on_signals
def main(arguments: list[str] | None = None) -> int:
    options = flag_parser().parse_args(arguments)
    keep_libraries_quiet()

    from sslm.data.corpus import documents  # brings torch: --help and wrong flags must not wait for it
    from sslm.data.corpus.embedded import EMBEDDED
    from sslm.data.corpus.prepare import prepare
    from sslm.data.corpus.tokenizer import TokenRules, loaded, parse_tokenizer
    from sslm.data.corpus.writer import SHARD_TOKENS

    shard_tokens = SHARD_TOKENS if options.shard_tokens is None else _shard_tokens(options.shard_tokens)
    given = None if options.input == EMBEDDED else options.input
    if options.out.exists():
        raise UserError(f"--out {options.out}: already exists; remove it, or choose another folder")
    source = documents.open_source(given, text_field=options.text_field, document_separator=options.document_separator)
    known = loaded(parse_tokenizer(options.tokenizer))
    rules = TokenRules(options.special_tokens, options.bos)
    start = time.monotonic()
    num_documents = num_tokens = 0  # of this process: an earlier one may have begun
    with preparation_progress(f"Preparing {source.name}") as show:

        def report(documents: int, tokens: int, share: float | None = None) -> None:
            nonlocal num_documents, num_tokens
            num_documents, num_tokens = documents, tokens
            show(documents, tokens, share)

        try:
            prepared = prepare(source, known, options.out, report, shard_tokens, rules)
        except Stopped:
            say(f"{options.out}: stopped; run the same command again to resume")
            return STOPPED
    seconds = time.monotonic() - start
    say(
        f"{options.out}: {plural(prepared.num_documents, 'document')}, {plural(prepared.num_tokens, 'token')} "
        f"({prepared.bytes_per_token:.2f} bytes each), vocabulary {prepared.vocab_size}, in {seconds:.1f} s: "
        f"{count(num_documents / seconds)} documents/s, {count(num_tokens / seconds)} tokens/s"
    )
    say(f"Train on it: python -m sslm.train --data.train {options.out}", to_copy=True)
    return DONE


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's flags."""
    parser = argparse.ArgumentParser(prog="sslm prepare", description=__doc__.split("\n")[0])
    text = "file, glob, folder or dataset, as --data.train takes them; 'embedded': this Python's documentation"
    separator = "regular expression between the documents of a .txt; default: a file is one document"
    size = "tokens per shard file, 2 or 4 bytes each; fewer if the corpus will be read over a network"
    tokenizer = "folder, hub name, or bpe:SIZE to train one (default: %(default)s)"
    field = "field that holds the text, in .jsonl, .parquet and datasets (default: %(default)s)"
    special = "names of special tokens in the text: plain text, or parsed as these tokens (default: %(default)s)"
    bos = (
        "whether documents begin with the BOS token: as the tokenizer's template says, or never (default: %(default)s)"
    )
    parser.add_argument("input", type=followed, help=text)
    parser.add_argument("--document_separator", help=separator)
    parser.add_argument("--shard_tokens", help=f"{size} (default: 134217728)")
    parser.add_argument("--out", required=True, type=local_path, help="folder to make; it must not exist")
    parser.add_argument("--tokenizer", default="bpe:32000", type=followed, help=tokenizer)
    parser.add_argument("--text_field", default="text", help=field)
    parser.add_argument("--special_tokens", choices=("plain", "parse"), default="plain", help=special)
    parser.add_argument("--bos", choices=("template", "never"), default="template", help=bos)
    return parser


def _shard_tokens(given: str) -> int:
    if not given.isdecimal() or int(given) < LEAST_SHARD_TOKENS:
        expected = f"a whole number of tokens, at least {LEAST_SHARD_TOKENS}, such as 16777216"
        raise UserError(f"--shard_tokens {given}: expected {expected}")
    return int(given)
