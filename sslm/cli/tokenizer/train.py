"""sslm tokenizer train: a tokenizer of one's own, of text that is read in flat memory."""

import argparse
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from sslm.cli.tokenizer.inputs import add_how, count_of, folder_made, sources_of
from sslm.data.corpus.tokenizer_design import KINDS, SPELLINGS, SPLITS, Design
from sslm.system.exits import DONE
from sslm.system.paths import followed, local_path
from sslm.system.terminal import plural, say

USUAL = {"bpe": ("level", "gpt2"), "unigram": ("fallback", "gpt2"), "wordpiece": ("none", "bert")}
"""Kind -> --bytes and --pre_tokenizer, if they aren't given."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "file, glob, folder or dataset, as --data.train takes them; 'embedded': this Python's documentation"
    add("inputs", nargs="+", type=followed, metavar="IN", help=text)
    add("--out", required=True, type=local_path, help="folder to make; it must not exist")
    add("--kind", choices=KINDS, default="bpe", help="model of the text's pieces (default: %(default)s)")
    add("--size", type=int, default=32000, help="entries, special tokens included (default: %(default)s)")
    spelling = (
        "level: all tokens are bytes; fallback: characters, and bytes for those not known; none: <unk> for these "
        "(default: level with bpe, fallback with unigram, none with wordpiece)"
    )
    add("--bytes", choices=SPELLINGS, help=spelling)
    split = (
        "how a text is split into words: as GPT-2 or GPT-4 do, as GPT-2 with each digit alone, or as BERT "
        "(default: gpt2; bert with wordpiece)"
    )
    add("--pre_tokenizer", choices=SPLITS, help=split)
    add("--special_tokens", nargs="+", default=[], metavar="NAME", help="more special tokens, such as '<|im_start|>'")
    add("--max_chars", help="characters to read, an equal share of each input (default: 268435456)")
    add_how(parser)


def main(options: argparse.Namespace) -> int:
    usual = USUAL[options.kind]
    spelling: Any = options.bytes or usual[0]
    split: Any = options.pre_tokenizer or usual[1]
    design = Design(options.kind, options.size, spelling, split, tuple(options.special_tokens))
    from sslm.data.corpus.tokenizer_training import TRAINING_CHARS, beginning_of, train_tokenizer

    chars = count_of("--max_chars", options.max_chars, TRAINING_CHARS)
    sources = sources_of(options.inputs, options)
    start, num_read = time.monotonic(), 0

    def counted(texts: Iterable[str]) -> Iterator[str]:
        nonlocal num_read
        for text in texts:
            num_read += len(text)
            yield text

    share = -(-chars // len(sources))
    texts = chain.from_iterable(beginning_of(source.pieces(), share) for source in sources)
    with folder_made(options.out) as part:
        tokenizer = train_tokenizer(counted(texts), design)
        tokenizer.save_pretrained(part)
    for remark in (remark for source in sources for remark in source.remarks.values()):
        say(remark)
    seconds = time.monotonic() - start
    read = f"{plural(num_read, 'character')} of {plural(len(sources), 'input')}, in {seconds:.1f} s"
    say(f"{options.out}: {options.kind}, {plural(len(tokenizer), 'entry', exact=True)}, trained on {read}")
    if len(tokenizer) < design.size:
        say(f"There is too little text for --size {design.size}: no other pieces come twice")
    say(f"Train with it: python -m sslm.train --data.tokenizer {options.out} --data.train TEXT", to_copy=True)
    return DONE
