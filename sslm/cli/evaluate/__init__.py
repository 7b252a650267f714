"""Measure trained models: perplexity and bits per byte, pseudo-perplexity, or the objective's loss and exact spans.

    sslm evaluate MODEL... [--data TEXT_OR_CORPUS]... [--out FILE.json]

A model is a run, a checkpoint, or a Hugging Face folder or name. Without --data a run is measured on the text that it
has held out.
"""

import os
import sys
from pathlib import Path

from sslm.cli.evaluate.flags import flag_parser, parsed
from sslm.system.errors import UserError
from sslm.system.exits import DONE, exits_politely
from sslm.system.terminal import keep_libraries_quiet, say

__all__ = ["flag_parser", "main"]


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    keep_libraries_quiet()
    if options.out is not None:
        _check_out(options.out)

    from sslm.cli.evaluate.measure import measure_all  # brings torch: --help and wrong flags must not wait for it
    from sslm.cli.evaluate.report import say_results, write_results
    from sslm.evaluation.journal import Journal
    from sslm.evaluation.sharing import Processes
    from sslm.parallel.local_processes import check_devices, processes_of

    check_devices(options.devices, options.device)
    typed = sys.argv[2:] if arguments is None else arguments
    with processes_of("evaluate", typed, options.devices) as (rank, group):
        journal = Journal(options.out, writes=rank == 0)
        results = measure_all(options, journal, Processes(rank, options.devices, group))
    if rank:
        return DONE
    say_results(results)
    if options.out is not None:
        write_results(results, options.out)
        journal.remove()
        say(f"{options.out}: the same and more, as JSON", to_copy=True)
    return DONE


def _check_out(out: Path) -> None:
    """Refuse a file that can't be written, before hours of work for it."""
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; give a file in it, such as {out}/scores.json")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first")
    if not os.access(out.absolute().parent, os.W_OK):
        raise UserError(f"--out {out}: nothing may be written in {out.parent}; give another place")
