"""Show what a model will read: documents, windows of the stream, and batches as the objective makes them.

    sslm inspect [CORPUS|FILE] [--show documents|windows|batches] [--position 0] [--rows 2] [any flags of train]

It is what `sslm train` with the same flags is trained on: the same corpus, order, seed and noise. Nothing is trained,
and nothing is written except the cache of prepared corpora.
"""

import argparse

from sslm.cli.parse import parse, split_flags
from sslm.system.errors import UserError, short
from sslm.system.exits import DONE, exits_politely
from sslm.system.terminal import keep_libraries_quiet

SECTIONS = ("documents", "windows", "batches")
MOST_POSITION = 10**15
MOST_ROWS = 10_000
"""Windows and batches to hold in memory at once."""


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    options, rest = _take_own(list(arguments or []))
    config = parse(rest)
    position = _number("--position", options.position, 0, MOST_POSITION)
    rows = _number("--rows", options.rows, 1, MOST_ROWS)
    keep_libraries_quiet()
    from sslm.cli.inspect.sections import Shown  # brings torch: --help and wrong flags must not wait for it
    from sslm.objectives.choose import choose_objective, open_data, with_epochs

    objective, recipe = choose_objective(config)
    data = open_data(config, recipe)
    with_epochs(config, data)
    shown = Shown(data, writes_target=objective.auto_class == "AutoModelForSeq2SeqLM")
    for section in SECTIONS if options.show is None else (options.show,):
        getattr(shown, section)(position, rows)
    return DONE


def _take_own(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split this verb's flags from those of train; the text is the first word, if that is no flag."""
    own: list[str] = []
    rest: list[str] = []
    if arguments and not arguments[0].startswith("-"):
        rest += ["--data.train", arguments.pop(0)]
    if "-h" in arguments:
        flag_parser().parse_args(["-h"])
    for flag in split_flags(arguments):
        (own if flag.name in ("help", "show", "position", "rows") else rest).extend(flag.words)
    return flag_parser().parse_args(own), rest


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's own flags."""
    usage = "sslm inspect [CORPUS|FILE] [--show batches] [--position 0] [--rows 2] [any flags of train]"
    what = f"{__doc__.splitlines()[0]} `sslm train --help` lists the flags of train."
    parser = argparse.ArgumentParser(prog="sslm inspect", usage=usage, description=what, allow_abbrev=False)
    parser.add_argument("text", nargs="?", metavar="CORPUS|FILE", help="the same as --data.train; it comes first")
    parser.add_argument("--show", choices=SECTIONS, help="one of them (default: all)")
    position = "number of the first document on the disk, and position of the first window in the run (default: 0)"
    parser.add_argument("--position", metavar="N", help=position)
    parser.add_argument("--rows", metavar="N", help="how many of each (default: 2)")
    return parser


def _number(flag: str, given: str | None, least: int, most: int) -> int:
    if given is None:
        return 2 if least else 0
    if not given.isdecimal() or len(given) > 20 or not least <= int(given) <= most:
        raise UserError(f"{flag} {short(given)}: expected a whole number, at least {least} and at most {most:,}")
    return int(given)
