"""Let a trained model write: go on with prompts, or fill in what is missing in them.

    sslm generate MODEL --prompt TEXT
    sslm generate MODEL --prompts FILE.jsonl --out FILE.jsonl

Equal flags give equal text, whatever the batch size. If it is killed, the same command goes on behind the last row.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from sslm.cli.generate.answers import Answers
from sslm.cli.generate.flags import flag_parser, parsed
from sslm.cli.generate.prompts import Given, read, typed
from sslm.cli.generate.shown import Shown
from sslm.system.exits import DONE, exits_politely
from sslm.system.output import has_reader
from sslm.system.signals import stops_on_signals
from sslm.system.terminal import Progress, keep_libraries_quiet, plural, say, warn

if TYPE_CHECKING:
    from sslm.cli.generate.tasks import Answer, Task

__all__ = ["flag_parser", "main"]

SHOWN_WARNINGS = 3


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    given = prompts_of(options)
    keep_libraries_quiet()
    answers = None if options.out is None else Answers(options.out, given, made_by(options))
    from sslm.cli.generate.opening import open_task  # brings transformers: --help and wrong flags must not wait for it

    task = open_task(options)
    check(task, given)
    if options.interactive:
        from sslm.cli.generate.conversation import converse

        return converse(task)
    if options.prompt is not None and answers is None and not options.logprobs:
        return show_one(task, given[0])
    if answers is None:
        return write_rows(task, given, options.batch_size, None)
    return stops_on_signals(lambda _=None: write_rows(task, given, options.batch_size, answers))()


def check(task: "Task", given: Sequence[Given]) -> None:
    """Look at all prompts before anything is written, and warn of those that are cut."""
    for one in given:
        task.prompt(one)
    for sentence in list(task.cut.values())[:SHOWN_WARNINGS]:
        warn(sentence)
    if (more := len(task.cut) - SHOWN_WARNINGS) > 0:
        warn(f"{plural(more, 'prompt', exact=True)} more are too long, and are cut")


def prompts_of(options: argparse.Namespace) -> list[Given]:
    if options.interactive:
        return []
    return read(options.prompts) if options.prompts is not None else typed(options.prompt)


def show_one(task: "Task", given: Given) -> int:
    """Write the text of one prompt to stdout, as it comes."""
    shown = Shown()
    if task.echoes(given):
        shown(given.prompt)
    (answer,) = task.answer([given], shown if task.streams else None)
    if not task.streams:
        shown(answer.text)
    print(flush=True)
    return DONE


def write_rows(task: "Task", given: Sequence[Given], batch_size: int, answers: Answers | None) -> int:
    """Write a row for each prompt, into a file or to stdout, a batch at a time."""
    first = answers.num_done if answers else 0
    if answers is not None:
        answers.begin()
    with closing(Progress()) as bar:
        for batch in batches(given[first:], batch_size):
            rows = [row_of(one, answer) for one, answer in zip(batch, task.answer(batch), strict=True)]
            if answers is None:
                print("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), end="", flush=True)
                if not has_reader():
                    return DONE
                continue
            answers.append(rows)
            share = (answers.num_done - first) / (len(given) - first)
            bar.show(
                f"{answers.num_done:,} of {plural(len(given), 'prompt', exact=True)}, {bar.time_left(share)}", share
            )
    if answers is not None:
        answers.close()
        say(f"{answers.file}: {plural(len(given), 'row', exact=True)}")
    return DONE


def batches(given: Sequence[Given], size: int) -> Iterator[list[Given]]:
    rest = iter(given)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def row_of(given: Given, answer: "Answer") -> dict[str, Any]:
    written = {"text": answer.text, "tokens": answer.tokens, "finish_reason": answer.reason}
    logprobs = {} if answer.logprobs is None else {"logprobs": [round(value, 6) for value in answer.logprobs]}
    return {"prompt": given.prompt, **given.row, **written, **logprobs}


def made_by(options: argparse.Namespace) -> dict[str, Any]:
    """What decides the rows of a file: not where it lies, nor how many prompts are a batch."""
    apart = ("out", "prompts", "prompt", "batch_size", "interactive")
    return {name: value for name, value in vars(options).items() if name not in apart}
