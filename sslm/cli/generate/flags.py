"""The flags of `sslm generate`, and what they ask of one another."""

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn

from sslm.system.errors import UserError, nearest, short
from sslm.system.paths import followed, local_path

DRAWN = 0.8
"""Temperature at which a text that goes on is drawn: the likeliest text goes in circles (Holtzman et al. 2020)."""
DRAWS = ("top_k", "top_p", "min_p")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; sslm generate --help lists the flags")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Parse a command line.

    Raises:
        UserError: an unknown flag (naming the nearest), a value out of its range, flags that don't go together.
    """
    parser = flag_parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = [name for action in parser._actions for name in action.option_strings]
        flag = unknown[0].partition("=")[0]
        parser.error(f"there is no flag {short(flag)}{nearest(flag, flags)}")
    given = [name for name in ("prompt", "prompts", "interactive") if getattr(options, name) not in (None, False)]
    if len(given) != 1:
        what = "are given together" if given else "is missing"
        names = " and ".join(f"--{name}" for name in given) or "a prompt"
        raise UserError(f"{names} {what}: type one of --prompt TEXT, --prompts FILE.jsonl, --interactive")
    if options.interactive and options.out is not None:
        raise UserError("--out: a conversation has no rows; leave the flag out")
    if options.interactive and options.logprobs:
        raise UserError("--logprobs: a conversation has no rows; leave the flag out")
    if options.system is not None and not options.chat:
        raise UserError("--system: is a part of a chat; give --chat, too")
    draws = [name for name in DRAWS if getattr(options, name) is not None]
    if options.num_beams > 1 and (options.temperature or draws):
        name = draws[0] if draws else "temperature"
        raise UserError(f"--num_beams and --{name}: beams are searched and not drawn; leave one of them out")
    if options.temperature == 0 and draws:
        raise UserError(f"--{draws[0]}: nothing is drawn at --temperature 0; give --temperature 1, or leave it out")
    return options


def temperature_of(options: argparse.Namespace, goes_on: bool) -> float:
    """Temperature that was given, or the usual one."""
    if options.temperature is not None:
        return float(options.temperature)
    draws = any(getattr(options, name) is not None for name in DRAWS)
    return DRAWN if options.num_beams == 1 and (goes_on or draws) else 0.0


def flag_parser() -> Parser:
    """Make the parser of this verb's flags."""
    parser = Parser(
        prog="sslm generate",
        usage="sslm generate MODEL --prompt TEXT | --prompts FILE.jsonl | --interactive [flags]",
        description="Let a trained model write: go on with prompts, or fill in what is missing in them. "
        "Equal flags give equal text, whatever the batch size.",
        epilog="A causal model goes on with the prompt; so does an encoder-decoder trained by sslm on spans. In a "
        "prompt for a masked, span or denoising model, <fill> stands for what is missing (<fill:3>: three tokens, for "
        "masked models). A prompt begins as a document does in training: with the BOS token if the tokenizer puts one "
        "before a text, else after an end-of-document token if a run of sslm trained on one document after the other.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", type=followed, help="run folder, checkpoint, Hugging Face folder, or hub name")
    add("--prompt", metavar="TEXT", help="what to go on with, or to fill in; may be empty")
    add("--prompts", metavar="FILE", type=local_path, help='.jsonl with lines such as {"prompt": "Once upon"}')
    add("--out", metavar="FILE", type=local_path, help=".jsonl to write, a row for each prompt; killed, it goes on")
    add("--interactive", action="store_true", help="write in turns; Ctrl-C ends a reply, Ctrl-D the conversation")
    add("--chat", action="store_true", help="make a prompt a message, by the tokenizer's chat template")
    add("--system", metavar="TEXT", help="--chat: message of the system, before all others")
    temperature = f"0: the likeliest token; above: draw (default: {DRAWN} for causal_lm; 0 for others and for beams)"
    add("--max_new_tokens", metavar="N", type=_whole(1, 1 << 20), default=128, help="longest text (default: 128)")
    add("--temperature", metavar="T", type=_number(0, 1e6, "0 or more, such as 0.8"), help=temperature)
    add("--top_k", metavar="K", type=_whole(1, 1 << 31), help="draw from the K likeliest tokens")
    share = "more than 0, up to 1, such as 0.9"
    add("--top_p", metavar="P", type=_number(1e-9, 1, share), help="draw from the likeliest, of probability P together")
    add(
        "--min_p",
        metavar="P",
        type=_number(0, 1, "from 0 to 1, such as 0.05"),
        help="draw from tokens with P times the likeliest one's probability at least",
    )
    add("--num_beams", metavar="N", type=_whole(1, 1000), default=1, help="follow the N likeliest texts (default: 1)")
    add(
        "--repetition_penalty",
        metavar="R",
        type=_number(1e-3, 1e3, "more than 0, such as 1.2"),
        default=1.0,
        help="above 1: avoid tokens that are there already (default: 1)",
    )
    add("--stop", metavar="TEXT", type=_stop, action="append", default=[], help="end before this text; may be repeated")
    add(
        "--fill",
        choices=("one_pass", "iterative"),
        default="iterative",
        help="masked models: fill in all masks at once, or one after the other, the surest first (default: iterative)",
    )
    add("--seed", metavar="N", type=_whole(0, (1 << 64) - 1), default=0, help="seed of the draws (default: 0)")
    add("--batch_size", metavar="N", type=_whole(1, 1 << 20), default=8, help="prompts at a time (default: 8)")
    add("--logprobs", action="store_true", help="add the log-probability of each token, as the model has it")
    add(
        "--special_tokens",
        choices=("plain", "parse"),
        default="plain",
        help="names of special tokens in a prompt: plain text, or parsed as these tokens (default: plain)",
    )
    add(
        "--begin",
        choices=("document", "template", "nothing"),
        default="document",
        help="tokens before a prompt: as "
        "before a document in training, as the tokenizer's template says, or none (default: document)",
    )
    add("--device", choices=("auto", "cpu", "gpu"), default="auto", help="auto: a GPU if there is one (default: auto)")
    add(
        "--precision",
        choices=("32", "bf16-true"),
        default="32",
        help="32: a text does not depend on its batch; bf16-true: faster on GPUs (default: 32)",
    )
    add("--last", action="store_true", help="a run's last weights even if it averages them")
    return parser


def _whole(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most or "_" in text:
            raise argparse.ArgumentTypeError(f"{short(text)}: expected a whole number from {least} to {most}")
        return number

    return read


def _number(least: float, most: float, expected: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not least <= number <= most:
            raise argparse.ArgumentTypeError(f"{short(text)}: expected a number, {expected}")
        return number

    return read


def _stop(text: str) -> Any:
    if not text:
        raise argparse.ArgumentTypeError("is empty; expected a text such as '###'")
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
