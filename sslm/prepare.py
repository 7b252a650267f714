"""Tokenise text into a corpus that `--data.train` takes.

python -m sslm.prepare IN --out DIR
"""

import argparse
import time
from pathlib import Path

from sslm.errors import UserError, exits_politely
from sslm.terminal import count, keep_libraries_quiet, preparation_progress, say


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sslm prepare", description=__doc__.split("\n")[0])
    parser.add_argument(
        "input",
        help="file, glob, folder or dataset, as --data.train takes them; 'embedded': this Python's own documentation",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to make; it must not exist")
    parser.add_argument(
        "--tokenizer",
        default="bpe:32000",
        help="folder, hub name, or bpe:SIZE to train one (default: %(default)s)",
    )
    parser.add_argument(
        "--text_field", default="text", help="field that holds the text, in .jsonl, .parquet and datasets"
    )
    parser.add_argument(
        "--document_separator",
        help="regular expression between the documents of a .txt; default: a file is one",
    )
    options = parser.parse_args(arguments)
    keep_libraries_quiet()

    from sslm.data import corpus, tokenizer
    from sslm.data.embedded import EMBEDDED
    from sslm.data.preparation import prepare

    given = None if options.input == EMBEDDED else options.input
    if options.out.exists():
        raise UserError(f"--out {options.out}: already exists; remove it, or choose another folder")
    source = corpus.open_source(given, text_field=options.text_field, document_separator=options.document_separator)
    known = options.tokenizer if tokenizer.bpe_size(options.tokenizer) else tokenizer.load(options.tokenizer)
    start = time.monotonic()
    with preparation_progress(f"Preparing {source.name}") as report:
        prepared = prepare(source, known, options.out, report)
    seconds = time.monotonic() - start
    say(f"{options.out}: {count(prepared.num_documents)} documents, {count(prepared.num_tokens)} tokens "
        f"({prepared.bytes_per_token:.2f} bytes each), vocabulary {prepared.vocab_size}, in {seconds:.1f} s: "
        f"{count(prepared.num_documents / seconds)} documents/s, {count(prepared.num_tokens / seconds)} tokens/s")  # fmt: skip
    say(f"Train on it: python -m sslm.train --data.train {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
