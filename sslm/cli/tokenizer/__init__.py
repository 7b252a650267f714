"""Train a tokenizer of one's own, look how tokenizers write texts, or give one new tokens.

sslm tokenizer train IN… --out DIR [--kind bpe] [--size 32000]
sslm tokenizer inspect TOKENIZER… --data [NAME=]IN…
sslm tokenizer extend MODEL --tokens TOKEN… --out DIR [--model]
"""

import argparse
from collections.abc import Callable

from sslm.cli.tokenizer import extend, inspect, train
from sslm.system.exits import exits_politely
from sslm.system.signals import stops_on_signals
from sslm.system.terminal import keep_libraries_quiet


@exits_politely
@stops_on_signals
def main(arguments: list[str] | None = None) -> int:
    options = flag_parser().parse_args(arguments)
    keep_libraries_quiet()
    act: Callable[[argparse.Namespace], int] = options.act
    return act(options)


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's flags."""
    parser = argparse.ArgumentParser(prog="sslm tokenizer", description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name, verb, what in (
        ("train", train, "train a tokenizer on text: the same bytes each time"),
        ("inspect", inspect, "tell in how many tokens tokenizers write texts, and what they don't know"),
        ("extend", extend, "give a tokenizer, and its model, new tokens"),
    ):
        one = verbs.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        verb.add_flags(one)
        one.set_defaults(act=verb.main)
    return parser
