"""What can be typed after `sslm compress`."""

import argparse
import math
import re
from typing import Any, NamedTuple, get_args

from sslm.config.prune import UNITS, Method
from sslm.models.compression.pruning.recipe import Pruning
from sslm.system.errors import UserError
from sslm.system.paths import followed, local_path

METHODS = ("int8", "int8-dynamic", "int4", "int4-gptq", "none")


class MostLoss(NamedTuple):
    """How much worse a smaller model may be."""

    amount: float
    is_share: bool
    """Whether it is a share of the original's figure."""

    def allows(self, before: float, after: float, higher_is_better: bool) -> bool:
        """Whether a figure is no worse than this; one that is not a number is.

        >>> MostLoss(0.02, True).allows(3.0, 3.05, False), MostLoss(0.02, True).allows(3.0, 3.07, False)
        (True, False)
        >>> MostLoss(0.01, False).allows(0.9, 0.895, True), MostLoss(0.01, False).allows(0.9, 0.88, True)
        (True, False)
        """
        most = self.amount * abs(before) if self.is_share else self.amount
        worse = before - after if higher_is_better else after - before
        return math.isfinite(after) and worse <= most + 1e-12 * abs(before)

    def __str__(self) -> str:
        return f"{self.amount:.6%}".rstrip("0%").rstrip(".") + " %" if self.is_share else f"{self.amount:g}"


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's flags."""
    from sslm.cli.compress import __doc__ as description

    parser = argparse.ArgumentParser(
        prog="sslm compress", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=followed, metavar="MODEL", help="run folder, checkpoint, Hugging Face folder, or name on the hub")
    add("--out", required=True, type=local_path, metavar="DIR", help="folder to make; it must not exist")
    quantize = (
        f"{', '.join(METHODS)}: weights of 8 or 4 bits, activations too if dynamic, rounded by what text "
        f"tells if gptq; several, separated by commas, are tried beside each other"
    )
    prune = (
        "what goes: share, pattern (unstructured, 2:4, 4:8, heads, neurons, layers) and method (magnitude, wanda), as "
        "in '0.5', '2:4 wanda' or 'heads 0.25'; several, separated by commas, are tried, each with all of --quantize"
    )
    add("--prune", type=_prunings, default=(None,), metavar="WHAT", help=prune)
    calibrate = "text, corpus or labelled rows for wanda and gptq; default: what the run trained on"
    add("--calibrate", metavar="PATH", help=calibrate)
    add("--quantize", type=_methods, default=("none",), metavar="METHODS", help=quantize)
    add("--group_size", type=_positive, default=32, help="int4: weights of a row that share a scale (default: 32)")
    add("--embeddings", action="store_true", help="quantize the vocabulary's table, too: smaller, each step slower")
    data = (
        "text or a corpus to measure on, as --data.train takes them (may be given several times, NAME=PATH gives it a "
        "name); for a fine-tuned model a file of labelled rows; default: what its run has held out"
    )
    add("--data", action="append", metavar="[NAME=]PATH", help=data)
    most = "how much worse the model may be after reloading: +2%% of the original's figure, or 0.01 of its units"
    add("--at_most_loss", type=_most_loss, metavar="AMOUNT", help=f"{most}; else exit code 1, and no folder")
    add("--limit", type=_positive, help="measure on the first so many documents; default: all")
    for name in ("text_field", "pair_field", "label_field", "label_separator", "source_field", "target_field"):
        add(f"--{name}", help=f"as --data.{name}; default: what the run had")
    add("--document_separator", help="regular expression between the documents of a .txt; default: a file is one")
    add("--seq_len", type=_positive, help="tokens of a window, at most; default: what the model was trained with")
    add("--batch_size", type=_positive, help="sequences per forward pass; default: what suits the device")
    add("--device", choices=("auto", "cpu", "gpu"), default="auto", help="where to measure (default: auto)")
    add("--cache_dir", type=local_path, help="folder for downloads; default: the user's cache folder")
    add("--last", action="store_true", help="take the last weights even if a run averages them")
    return parser


def _methods(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [name for name in names if name not in METHODS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(METHODS)}")
    return names


def _prunings(text: str) -> tuple[Pruning | None, ...]:
    """Read what is to be pruned.

    >>> [(p.sparsity, p.pattern, p.method) if p else None for p in _prunings("0.25 heads, wanda 2:4, none")]
    [(0.25, 'heads', 'magnitude'), (0.5, '2:4', 'wanda'), None]
    """
    return tuple(dict.fromkeys(_pruning(part.split()) for part in text.split(",")))


def _pruning(words: list[str]) -> Pruning | None:
    if words == ["none"]:
        return None
    values: dict[str, Any] = {}
    for word in words:
        is_share = re.fullmatch(r"\d*\.?\d+|\d+\.", word)
        name = "sparsity" if is_share else "method" if word in get_args(Method) else "pattern"
        if name in values:
            raise argparse.ArgumentTypeError(f"{values[name]!r} and {word!r} are both a {name}; give one")
        values[name] = float(word) if is_share else word
    if values.get("pattern", "unstructured") in ("unstructured", *UNITS) and "sparsity" not in values:
        raise argparse.ArgumentTypeError(f"{' '.join(words)!r}: expected a share, too, as in 'heads 0.25'")
    try:
        return Pruning(**{"sparsity": 0.5, **values})
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _most_loss(text: str) -> MostLoss:
    if not (found := re.fullmatch(r"\+?(\d+(?:\.\d*)?|\.\d+) ?(%?)", text.strip())):
        raise argparse.ArgumentTypeError(f"expected an amount such as +2% or 0.01, got {text!r}")
    amount, percent = found.groups()
    return MostLoss(float(amount) / 100 if percent else float(amount), bool(percent))


def _positive(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)
