"""A few predictions as lines of text, to print after each validation."""

from itertools import starmap
from typing import Any

from sslm.system.errors import JOINERS

NUM_SAMPLES, SAMPLE_TOKENS = 2, 60
FILLED_IN = "[a>b] where the text has a and the model says b"
WRITTEN = "what the model reads >> what it writes, each token after the true ones before it"
CONTINUED = "held-out text >> what the model writes after it"
LABELLED = "text >> what the model says (what is right)"
"""How to read samples of each kind."""


def filled_in(
    inputs: list[list[int]], labels: list[list[int]], predicted: list[list[int]], tokenizer: Any
) -> list[str]:
    """A line for each row of what a model reads, with [original>predicted] where a label isn't negative."""
    scored = [n for n, column in enumerate(zip(*labels, strict=True)) if max(column) >= 0]
    begin = max((scored or [0])[0] - SAMPLE_TOKENS // 2, 0)  # in whichever row comes first

    def text(token: int) -> str:
        return str(tokenizer.decode([token] if token >= 0 else []))

    def shown(read: int, label: int, said: int) -> str:
        if label < 0 and read == tokenizer.pad_token_id:
            return ""
        return text(read) if label < 0 else f"[{text(label)}>{text(said)}]"

    rows = [list(zip(*row, strict=True)) for row in zip(inputs, labels, predicted, strict=True)]
    return [on_one_line("".join(starmap(shown, row[begin : begin + SAMPLE_TOKENS]))) for row in rows]


def written(inputs: list[list[int]], labels: list[list[int]], predicted: list[list[int]], tokenizer: Any) -> list[str]:
    """A line for each row: what a model reads >> what it writes, each token predicted from the true ones before it."""

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode([n for n in ids if n >= 0][:SAMPLE_TOKENS]))

    read = ([n for n in row if n != tokenizer.pad_token_id] for row in inputs)
    return [on_one_line(f"{text(ids)} >> {text(said)}") for ids, said in zip(read, predicted, strict=True)]


def on_one_line(text: str) -> str:
    """A model that knows nothing yet writes control characters too: no terminal is to obey them."""
    return "".join(c if c.isprintable() or c in JOINERS else "\ufffd" for c in " ".join(text.split()))
