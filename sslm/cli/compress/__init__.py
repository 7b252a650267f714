"""Make a trained model smaller, and tell what that costs.

    sslm compress MODEL --quantize int8 --out DIR
    sslm compress MODEL --quantize int8,int8-dynamic,int4 --at_most_loss +2% --out DIR
    sslm compress MODEL --prune "2:4 wanda,heads 0.25" --quantize none,int8 --out DIR

MODEL is a run, a checkpoint, or a Hugging Face folder or name. DIR is a Hugging Face folder that transformers loads
with one library more; of several recipes each has its folder in DIR. Every one is loaded again by a new process and
measured there, beside the original: compress.md has the table, compress.json all figures, compress.png a picture.
"""

import argparse
import sys

from sslm.cli.compress.flags import flag_parser
from sslm.system.errors import RunFailed, UserError, printable
from sslm.system.exits import DONE, FAILED, exits_politely
from sslm.system.terminal import keep_libraries_quiet, say

__all__ = ["flag_parser", "main"]


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[2:] if arguments is None else arguments
    options = flag_parser().parse_args(arguments)
    if options.out.exists():
        raise UserError(f"--out {options.out}: already exists; remove it, or choose another folder")
    keep_libraries_quiet()

    from sslm.cli.compress.recipes import check_libraries, recipes_of  # --help and wrong flags must not wait for torch

    recipes = recipes_of(options)
    check_libraries(recipes)
    from sslm.cli.compress.make import compress
    from sslm.cli.compress.report import say_table

    results = compress(options, arguments, recipes)
    say_table(results)
    if worse := [result.name for result in results.smaller if not result.is_kept]:
        return _tell_worse(worse, options, len(results.smaller) - len(worse))
    say(f"{printable(str(options.out))}: the table as compress.md, all figures as compress.json, and compress.png")
    return DONE


def _tell_worse(names: list[str], options: argparse.Namespace, num_kept: int) -> int:
    what = f"{', '.join(names)}: worse than --at_most_loss +{options.at_most_loss} allows"
    if not num_kept:
        raise RunFailed(f"{what}; nothing was written")
    say(f"{what}, and left out; {printable(str(options.out))} has the others")
    return FAILED
