"""What can be typed after `sslm clean`, and the settings that it means."""

import argparse
import dataclasses
import os
import re
from collections.abc import Iterable
from typing import Any

from sslm.data.cleaning import denoise, normalise, redact, stop_words
from sslm.data.cleaning.blocks import Reading
from sslm.data.cleaning.contamination import Contamination
from sslm.data.cleaning.duplicates import METHODS, Deduplication
from sslm.data.cleaning.rules import RULES
from sslm.data.cleaning.settings import ModelStep, Settings
from sslm.data.cleaning.work import Part
from sslm.system.errors import UserError, nearest, short
from sslm.system.paths import followed, local_path
from sslm.system.typed import typed

DESCRIPTION = "Turn raw text into documents worth learning from: clean, drop, redact, deduplicate, and report."
ALL, NONE = "all", "none"
SECTIONS: dict[str, type[Any]] = {**RULES, "dedup": Deduplication}
"""Name of a section of thresholds -> the dataclass that has them."""


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's flags."""
    parser = argparse.ArgumentParser(
        prog="sslm clean", usage="sslm clean IN... --out DIR [flags]", description=DESCRIPTION, allow_abbrev=False
    )
    add = parser.add_argument
    inputs = "file, glob, folder, dataset, or URL, in .txt, .jsonl or .parquet; several are read in order"
    add("inputs", nargs="*", metavar="IN", type=followed, help=inputs)
    add("--out", type=local_path, metavar="DIR", help="folder to make; it must not exist")
    add("--rules", help=f"drop documents of bad quality, by the rules of: {', '.join(RULES)}; several with commas")
    dedup = f"drop what is there already: {', '.join(METHODS)} (near-duplicates: minhash); several with commas"
    add("--dedup", help=dedup)
    languages = "detect languages and keep these (en,de), or all; detected by a model that is here"
    add("--languages", help=languages)
    add("--redact", help=f"replace by placeholders: {', '.join(redact.KINDS)}, or all; several with commas")
    edits = ", ".join(normalise.EDITORS)
    add("--normalise", default=None, help=f"all, none, or some of {edits} (default: all but those that cost meaning)")
    add("--denoise", help=f"remove what is no text: all, or some of {', '.join(denoise.EDITORS)}")
    words = "remove the stop words of these languages (en,de); it harms language modelling, and is for other uses"
    add("--stop_words", help=words)
    against = (
        "drop documents in which a run of 13 words of this text stands, or a short line of it: text, or a task as "
        "sslm evaluate --tasks takes it; may be given several times"
    )
    add("--decontaminate", action="append", metavar="TEXT_OR_TASK", type=followed, help=against)
    quality = "drop what this fine-tuned classifier, or model of numbers, gives less than --min_quality"
    add("--quality_model", metavar="MODEL", type=followed, help=quality)
    add("--quality_label", help="the label of good documents, whose probability counts")
    add("--min_quality", type=float, help="least probability, or number (default: 0.5)")
    add(
        "--perplexity_model", metavar="MODEL", type=followed, help="measure each document's perplexity under this model"
    )
    add("--min_perplexity", type=float, help="drop documents of less; default: none")
    add("--max_perplexity", type=float, help="drop documents of more; default: none")
    add("--text_field", default="text", help="field of .jsonl, .parquet and datasets (default: text)")
    separator = "regular expression between the documents of a .txt; default: a file is one document"
    add("--document_separator", help=separator)
    add(
        "--tokenizer",
        type=followed,
        help="folder or name of a tokenizer: the report counts its tokens, and tells its fertility",
    )
    part = "filter the third of 16 parts, as 3/16; when all are done, the same command without it does the rest"
    add("--part", help=part)
    add("--workers", type=_positive, help="processes; default: one for each core")
    add("--dry_run", action="store_true", help="clean the first documents of each input, and tell what became of them")
    verify = "tell whether a folder that sslm clean made is what its record says, and end"
    add("--verify", type=local_path, metavar="DIR", help=verify)
    for section, kind in SECTIONS.items():
        group = parser.add_argument_group(f"thresholds of --{'dedup' if kind is Deduplication else 'rules'} {section}")
        docs = _help_of(kind)
        for leaf in dataclasses.fields(kind):
            if leaf.name != "methods":
                text = f"{docs.get(leaf.name, '')} (default: {leaf.default})".replace("%", "%%")
                group.add_argument(f"--{section}.{leaf.name}", metavar="X", dest=f"{section}.{leaf.name}", help=text)
    return parser


def _help_of(kind: type[Any]) -> dict[str, str]:
    """Return each field's docstring, as a phrase."""
    from docstring_parser import parse_from_object  # as jsonargparse reads those of training's settings

    docs = parse_from_object(kind).params
    return {one.arg_name: " ".join((one.description or "").split()).rstrip(".") for one in docs}


def settings_of(
    options: argparse.Namespace, contamination: Contamination | None, models: tuple[ModelStep, ...]
) -> Settings:
    """Turn flags into settings.

    Raises:
        UserError: an unknown name, or a threshold out of its range.
    """
    rules = tuple(RULES[name](**_section(options, name)) for name in _named(options.rules, RULES, "--rules"))
    methods = _named(options.dedup, METHODS, "--dedup")
    for section in SECTIONS:
        chosen = methods if section == "dedup" else _named(options.rules, RULES, "--rules")
        if _given(options, section) and (not chosen if section == "dedup" else section not in chosen):
            flag = f"--{section}.{next(iter(_given(options, section)))}"
            needed = "--dedup" if section == "dedup" else f"--rules {section}"
            raise UserError(f"{flag}: changes nothing without {needed}")
    return Settings(
        reading=Reading(options.text_field, options.document_separator),
        normalise=_edits(options.normalise, normalise.EDITORS, "--normalise", normalise.USUAL),
        denoise=_edits(options.denoise, denoise.EDITORS, "--denoise", ()),
        detects_languages=options.languages is not None,
        languages=() if options.languages in (None, ALL) else _languages(options.languages, "--languages"),
        rules=rules,
        contamination=contamination,
        models=models,
        redact=_edits(options.redact, redact.KINDS, "--redact", ()),
        stop_words=_stop_words(options.stop_words),
        tokenizer=options.tokenizer,
        duplicates=Deduplication(methods=methods, **_section(options, "dedup")),
    )


def _edits(given: str | None, known: Iterable[str], flag: str, usual: Iterable[str]) -> tuple[str, ...]:
    """Names of editors in the order in which they are done; all, none, or those that are named."""
    if given is None:
        return tuple(usual)
    if given == NONE:
        return ()
    named = set(known) if given == ALL else set(_named(given, known, flag))
    return tuple(name for name in known if name in named)


def _named(given: str | None, known: Iterable[str], flag: str) -> tuple[str, ...]:
    names = tuple(filter(None, (given or "").split(",")))
    if given is not None and not names:
        raise UserError(f"{flag} needs a value; it is empty")
    for name in names:
        if name not in known:
            raise UserError(f"{flag} {short(name)}: there is none{nearest(name, known)}; allowed: {', '.join(known)}")
    return tuple(dict.fromkeys(names))


def _languages(given: str, flag: str) -> tuple[str, ...]:
    names = tuple(given.split(","))
    for name in names:
        if not re.fullmatch("[a-z]{2,3}", name):
            raise UserError(f"{flag} {short(name)}: expected codes of languages, such as en,de; or all")
    return names


def _stop_words(given: str | None) -> tuple[str, ...]:
    names = () if given is None else _languages(given, "--stop_words")
    stop_words.stop_words(names)  # which refuses languages that it has no words of
    return names


def _given(options: argparse.Namespace, section: str) -> dict[str, str]:
    prefix = f"{section}."
    given = {name: value for name, value in vars(options).items() if name.startswith(prefix) and value is not None}
    return {name.removeprefix(prefix): value for name, value in given.items()}


def _section(options: argparse.Namespace, section: str) -> dict[str, Any]:
    return typed(SECTIONS[section], section, _given(options, section))


def part_of(given: str | None) -> Part | None:
    """Read --part; UserError if it is not K/N."""
    if given is None:
        return None
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", given)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--part {short(given)}: expected a part and how many there are, such as 3/16")
    return Part(int(match[1]), int(match[2]))


def num_workers(given: int | None) -> int:
    """Return how many processes to take: those asked for, or one for each core that this one may use."""
    return given or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)
