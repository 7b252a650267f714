"""Say with a fine-tuned model what the labels of rows are, or write what belongs to them.

    sslm predict MODEL --data FILE --out FILE.jsonl

MODEL is a fine-tuned run or its export. A row of the output has the number of its row in the file, what is predicted,
and if the file has a label, what is right. If there are labels, scores are told.
"""

import argparse
from typing import TYPE_CHECKING, Any

from sslm.system.errors import UserError
from sslm.system.exits import DONE, exits_politely
from sslm.system.paths import followed, local_path
from sslm.system.terminal import keep_libraries_quiet, plural, say

if TYPE_CHECKING:
    from sslm.runs.trained import Trained

FIELDS = ("text_field", "pair_field", "label_field", "label_separator", "source_field", "target_field")
OF_WRITERS = ("max_new_tokens", "num_beams", "tokenize")
"""Flags that are for models that write."""
TOKENIZE = ("auto", "13a", "intl", "zh", "char", "none")
WRITES = "text_to_text"
NO_LABEL = "no row has a label, so there is nothing to compare with"


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's flags."""
    parser = argparse.ArgumentParser(
        prog="sslm predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=followed, help="fine-tuned run, or its export")
    add("--data", required=True, type=followed, help="rows, in the forms of --data.val; labels may be missing")
    add("--out", required=True, type=local_path, help="file to write, one JSON object a row; it must not exist")
    for name in FIELDS:
        add(f"--{name}", help=f"as --data.{name} of the run; default: what the run had")
    add("--plot", type=local_path, help="picture to write (.png): what is right against what is predicted")
    add("--max_new_tokens", type=int, help="text_to_text: tokens of the longest text (default: of the longest target)")
    add("--num_beams", type=int, help="text_to_text: texts that are followed at a time (default: 1)")
    add("--tokenize", choices=TOKENIZE, help="text_to_text: how BLEU finds words, by sacrebleu's names (default: auto)")
    add("--batch_size", type=int, default=32, help="rows per forward pass (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "gpu"), default="auto", help="a GPU if there is one (default: auto)")
    return parser


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    options = flag_parser().parse_args(arguments)
    for name in ("batch_size", "max_new_tokens", "num_beams"):
        if (number := getattr(options, name)) is not None and number < 1:
            raise UserError(f"--{name} {number}: expected a number above 0")
    if options.out.exists():
        raise UserError(f"--out {options.out}: already exists; remove it, or choose another file")
    return options


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    options = parsed(arguments)
    keep_libraries_quiet()
    from sslm.runs.trained import open_trained  # brings transformers: --help and wrong flags must not wait for it

    trained = open_trained(options.model, prefers_export=True)
    from sslm.objectives.closing import tell_scores, write_rows

    rows = predicted(trained, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_rows(rows, options.out)
    say(f"{options.out}: {plural(len(rows), 'row', exact=True)}")
    known = [row for row in rows if "label" in row]
    tell_scores(known, trained, options.tokenize or "auto")
    if options.plot is not None:
        plot(known, options)
    return DONE


def plot(known: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Draw what is right against what is predicted; UserError if no row has a label."""
    from sslm.objectives.predictions import pairs_of
    from sslm.runs.predicted import draw

    if not (pairs := pairs_of(known)):
        raise UserError(f"--plot {options.plot}: {NO_LABEL}")
    draw(pairs, options.plot, options.model)
    say(f"Picture: {options.plot}")


def predicted(trained: "Trained", options: argparse.Namespace) -> list[dict[str, Any]]:
    """Make a row of the output for each row of the file.

    Raises:
        UserError: the model was not fine-tuned for this, or the rows can't be read.
    """
    import torch

    from sslm.objectives.asked_rows import open_asked
    from sslm.objectives.closing import said_of
    from sslm.objectives.writing import How

    check_flags(trained, options)
    if options.device == "gpu" and not torch.cuda.is_available():
        raise UserError("--device gpu: there is no GPU here; leave the flag out")
    device = torch.device("cuda" if torch.cuda.is_available() and options.device != "cpu" else "cpu")
    opened = open_asked(trained, options.data, {name: getattr(options, name) for name in FIELDS})
    if options.plot is not None and not any(opened.has_truth):
        raise UserError(f"--plot {options.plot}: {NO_LABEL}")
    how = How(options.max_new_tokens, options.num_beams or 1)
    return said_of(trained, opened, device, options.batch_size, how)


def check_flags(trained: "Trained", options: argparse.Namespace) -> None:
    """Raise UserError if a flag is not for this model."""
    from sslm.objectives.text_scores import check_installed

    given = [name for name in OF_WRITERS if getattr(options, name) is not None]
    if given and trained.objective != WRITES:
        raise UserError(f"--{given[0]}: {trained.name} was trained for {trained.objective}, and writes no text")
    if options.plot is not None and trained.objective == WRITES:
        raise UserError(f"--plot {options.plot}: there is no picture of texts; leave the flag out")
    check_installed(options.tokenize)
