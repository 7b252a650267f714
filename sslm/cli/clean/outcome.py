"""What became of the documents, as tables in the terminal."""

import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from sslm.data.cleaning.filtering import run
from sslm.data.cleaning.inputs import Input
from sslm.data.cleaning.settings import Settings
from sslm.data.cleaning.tally import DROPPED, KEPT, READ, Tally
from sslm.data.corpus.cleaned import read_record
from sslm.data.corpus.utf8 import Utf8
from sslm.system.errors import UserError
from sslm.system.terminal import bytes_in_words, count, plural, print_table, say

TRIAL_INPUTS = 20
TRIAL_BLOCKS = 2
TITLES = ("", "documents", "", "bytes", "tokens")


def say_counts(folder: Path) -> None:
    """Print how much a clean kept, and what it dropped for which reason."""
    _print(read_record(folder)["counts"])


def say_trial(inputs: Sequence[Input], settings: Settings) -> None:
    """Clean the beginning of inputs, write nothing, and print what became of it.

    Raises:
        UserError: an input can't be read.
    """
    tally, steps = Tally.with_tokens(settings.tokenizer), tuple(settings.steps())
    with tempfile.TemporaryDirectory(prefix="sslm-") as folder:
        for one in inputs[:TRIAL_INPUTS]:
            for block in islice(one.blocks(settings.reading, Path(folder)), TRIAL_BLOCKS):
                documents = list(block.documents(one.name, settings.reading, Utf8(one.name)))
                for document in documents:
                    tally.add_text(READ, document.text)
                for document in run(documents, steps, tally):
                    tally.keep(document)
    if not tally.tables["documents"][READ]:
        raise UserError("there is no text in the inputs")
    _print({name: dict(table) for name, table in tally.tables.items()})
    if settings.duplicates.methods:
        say("Duplicates are found among all documents, so not in a dry run.")
    say(f"That is the beginning of {plural(min(len(inputs), TRIAL_INPUTS), 'input')}; nothing was written.")


def _print(counts: dict[str, dict[str, int]]) -> None:
    documents, num_bytes, tokens = counts["documents"], counts["bytes"], counts.get("tokens", {})
    reasons = sorted((key for key in documents if key.startswith(DROPPED)), key=lambda key: -documents[key])
    rows = []
    for key in (READ, *reasons, KEPT):
        if key in documents:
            share, size = f"{documents[key] / documents[READ]:.1%}", bytes_in_words(num_bytes[key])
            rows.append((key, f"{documents[key]:,}", share, size, count(tokens[key]) if key in tokens else ""))
    columns = len(TITLES) if tokens else len(TITLES) - 1
    print_table(TITLES[:columns], [row[:columns] for row in rows], right=range(1, columns), wide=(0,))
    for table, words in (("changed", "texts changed"), ("redacted", "replaced"), ("consistency", "odd")):
        if found := counts.get(table):
            most = sorted(found.items(), key=lambda item: -item[1])
            say(f"{words}: " + ", ".join(f"{name} {number:,}" for name, number in most))
