"""A plain Hugging Face folder of a checkpoint: it loads with transformers alone.

sslm export RUN --out DIR
"""

import argparse

from sslm.runs.find import find_checkpoint
from sslm.system.errors import UserError
from sslm.system.exits import exits_politely
from sslm.system.paths import followed, local_path
from sslm.system.terminal import keep_libraries_quiet, say


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    options = flag_parser().parse_args(arguments)
    keep_libraries_quiet()
    from sslm.runs.export import export  # brings transformers: --help and wrong flags must not wait for it

    checkpoint = find_checkpoint(options.run)
    if options.out.exists():
        raise UserError(f"--out {options.out}: already exists; remove it, or choose another folder")
    export(checkpoint, options.out, options.last)
    say(f"{checkpoint} -> {options.out}")
    return 0


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's flags."""
    parser = argparse.ArgumentParser(prog="sslm export", description=__doc__.split("\n")[0])
    parser.add_argument(
        "run", type=followed, help="run folder (its newest checkpoint is taken), or one checkpoint's folder"
    )
    parser.add_argument("--out", required=True, type=local_path, help="folder to make; it must not exist")
    parser.add_argument("--last", action="store_true", help="the last weights, where the run averages them")
    return parser
