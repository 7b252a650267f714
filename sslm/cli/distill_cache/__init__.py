"""Write down what a teacher says of a run's batches, so that students learn from it without the teacher in memory.

    sslm distill-cache --distill.teacher MODEL --out DIR [--top_k 64] [flags of train]

Of each scored place it keeps the k likeliest classes. Then type `sslm train … --distill.cache DIR` with the same flags:
any number of students, on any number of devices. If it is killed, the same command goes on from where it was.
"""

import argparse
import re

from sslm.cli.parse import parse, split_flags
from sslm.system.errors import UserError, short
from sslm.system.exits import DONE, STOPPED, exits_politely
from sslm.system.paths import local_path
from sslm.system.signals import Stopped, stops_on_signals
from sslm.system.terminal import keep_libraries_quiet, say

OWN = ("help", "out", "top_k")
MOST_KEPT = 1 << 20


@exits_politely
@stops_on_signals
def main(arguments: list[str] | None = None) -> int:
    options, rest = _take_own(list(arguments or []))
    config = parse(rest)
    if config.distill.teacher is None:
        raise UserError("--distill.teacher: which model is to be asked? give a run, a folder or a name on the hub")
    if config.distill.cache is not None:
        raise UserError(f"--distill.cache {config.distill.cache}: is for students; what is made here is --out")
    if not re.fullmatch("[0-9]{1,7}", options.top_k) or not 1 <= int(options.top_k) <= MOST_KEPT:
        raise UserError(f"--top_k {short(options.top_k)}: expected a whole number from 1 to {MOST_KEPT:,}, such as 64")
    keep_libraries_quiet()
    from sslm.cli.distill_cache.make import make  # brings torch: --help and wrong flags must not wait for it

    try:
        make(config, options.out, int(options.top_k))
    except Stopped:
        say(f"{options.out}: stopped; run the same command again to resume")
        return STOPPED
    return DONE


def _take_own(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split this verb's flags from those of train."""
    own: list[str] = []
    rest: list[str] = []
    if "-h" in arguments:
        flag_parser().parse_args(["-h"])
    for flag in split_flags(arguments):
        (own if flag.name in OWN else rest).extend(flag.words)
    return flag_parser().parse_args(own), rest


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's own flags."""
    usage = "sslm distill-cache --distill.teacher MODEL --out DIR [--top_k 64] [any flags of train]"
    what = f"{__doc__.splitlines()[0]} `sslm train --help` lists the flags of train."
    parser = argparse.ArgumentParser(prog="sslm distill-cache", usage=usage, description=what, allow_abbrev=False)
    parser.add_argument("--out", required=True, type=local_path, help="folder to make, or to go on with")
    kept = "classes to keep of each place, the likeliest; the others count as one (default: %(default)s)"
    parser.add_argument("--top_k", metavar="K", default="64", help=kept)
    return parser
