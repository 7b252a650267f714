"""Turn raw text into documents worth learning from: clean, drop, redact, deduplicate, and report.

    sslm clean IN... --out DIR [--rules gopher,c4,fineweb] [--dedup exact,minhash] [--languages en] [--redact all]

If it is killed or stopped by a signal, the same command goes on from where it was.
"""

import argparse
from collections.abc import Callable
from contextlib import closing

from sslm.cli.clean.flags import flag_parser
from sslm.system.errors import UserError
from sslm.system.exits import DONE, FAILED, exits_politely
from sslm.system.signals import stops_on_signals
from sslm.system.terminal import Progress as Bar
from sslm.system.terminal import bytes_in_words, count, plural, say, transfer_progress

__all__ = ["flag_parser", "main"]


@exits_politely
@stops_on_signals
def main(arguments: list[str] | None = None) -> int:
    options = flag_parser().parse_args(arguments)
    if options.verify is not None:
        return _verify(options)
    if not options.inputs:
        what = "there is nothing to clean; name a file, folder, pattern, dataset or URL"
        raise UserError(f"{what}: sslm clean IN --out DIR")
    if options.out is None and not options.dry_run:
        raise UserError("--out: where the cleaned documents go is missing; give a folder: --out DIR")
    return _clean(options)


def _clean(options: argparse.Namespace) -> int:
    from sslm.cli.clean.against import gathered  # numpy and pyarrow: --help and wrong flags must not wait for them
    from sslm.cli.clean.flags import num_workers, part_of, settings_of
    from sslm.cli.clean.models import model_steps
    from sslm.cli.clean.outcome import say_counts, say_trial
    from sslm.data.cleaning.clean import Progress, clean
    from sslm.data.cleaning.inputs import find_inputs

    part, workers = part_of(options.part), num_workers(options.workers)
    settings_of(options, None, ())  # a wrong flag is told before anything is read
    models = model_steps(options, workers)
    inputs, remarks = find_inputs(options.inputs)
    for remark in remarks:
        say(remark)
    with gathered(options) as contamination:
        settings = settings_of(options, contamination, models)
        if options.dry_run:
            say_trial(inputs, settings)
            return DONE
        sizes = [one.num_bytes for one in inputs]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        with closing(Bar()) as bar:
            progress = Progress(_shown(bar, total), bar.show)
            is_there = clean(inputs, options.out, settings, workers, progress, part)
            seconds = bar.seconds()
    speed = f"{count(progress.documents / seconds)} documents/s, {bytes_in_words(progress.num_bytes / seconds)}/s"
    done = f"{plural(progress.documents, 'document')} in {seconds:.1f} s, {speed}"
    if not is_there:
        say(f"{options.out}: part {options.part} is done: {done}")
        say("When all parts are done, the same command without --part does the rest.")
        return DONE
    say_counts(options.out)
    if progress.documents:  # by this process
        say(f"{options.out}: {done}")
    say(f"What is in it, and what was dropped: {options.out}/report.html", to_copy=True)
    say(f"Train on it: python -m sslm.train --data.train {options.out}", to_copy=True)
    return DONE


def _shown(bar: Bar, total: int | None) -> Callable[[int, int], None]:
    """Return what shows how many documents and bytes have been filtered."""

    def show(documents: int, num_bytes: int) -> None:
        share = min(num_bytes / total, 1.0) if total else None
        done = f"{plural(documents, 'document')} ({count(documents / bar.seconds())}/s), {bytes_in_words(num_bytes)}"
        bar.show(f"Filtering: {done}" + ("" if share is None else f", {bar.time_left(share)}"), share)

    return show


def _verify(options: argparse.Namespace) -> int:
    from sslm.data.cleaning.record import verify
    from sslm.data.corpus.cleaned import read_record

    if options.inputs or options.out:
        raise UserError("--verify DIR reads a folder that is there; give neither IN nor --out with it")
    record = read_record(options.verify)
    num_bytes = sum(one["num_bytes"] for one in record["files"])
    with transfer_progress(f"Reading {options.verify}", num_bytes) as told:
        wrong = verify(options.verify, told)
    for what in wrong:
        say(f"DAMAGED: {what}")
    if wrong:
        say(f"{options.verify}: is not what its record says; clean the text again, or copy the folder again")
        return FAILED
    documents = sum(one["documents"] for one in record["files"])
    say(f"{options.verify}: good, {plural(documents, 'document')} in {plural(len(record['files']), 'file')}")
    return DONE
