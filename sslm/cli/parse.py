"""Command line and YAML files -> Config.

jsonargparse types the values and writes the help. This module lets flags win whatever the order typed, leaves two
sections open, and says what is wrong in one sentence that names the nearest flag.
"""

import argparse
import dataclasses
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, DefaultHelpFormatter, set_parsing_settings

from sslm.config import FLAGS, OPEN_SECTIONS, SECTIONS, Config, parse_profile, parse_stop_after
from sslm.config.written import to_tree, to_yaml
from sslm.objectives import import_own, load_objective, usual_settings
from sslm.runs.changes import parse_resume_with
from sslm.runs.trackers import parse_trackers
from sslm.system.errors import UserError, nearest, short
from sslm.system.other_names import SETTINGS
from sslm.system.paths import local_path
from sslm.system.plain_yaml import BadYaml, load
from sslm.system.typed import item_of, typed
from sslm.training.stopping import parse_stop_when

CONFIGS = Path(__file__).parents[1] / "configs"
"""YAML files that sslm brings."""
FORMER = {("compile", "false"): "off", ("compile", "true"): "block"}
"""(Setting, value) that config.yaml of older runs has -> value of today."""
Tree = dict[str, dict[str, Any]]
"""Section -> key -> value, as YAML has it or as text; "" is the section of the settings that stand in none."""


def parse(arguments: list[str]) -> Config:
    """Turn a command line into the settings of a run.

    `--help` prints all flags, and with an objective (`--objective masked_lm --help`) its own settings. `--print_config`
    prints the settings as a file for `--config`. Both exit with 0.

    Raises:
        UserError: an unknown flag or key (naming the nearest), a value of the wrong type or out of its range, or a file
            that can't be read.
    """
    given = [word for word in arguments if word not in ("-h", "--help")]
    if given != arguments:
        objective = None
        with suppress(UserError):  # help is for those whose command is wrong, too
            objective = objective_in(given)
        show_help(objective)
    config = _checked(_built(_tree(given)))
    if "--print_config" in given:
        print(to_yaml(config), end="")
        raise SystemExit(0)
    return config


def _tree(arguments: list[str]) -> Tree:
    flags = list(split_flags(arguments))
    tree: Tree = {section: {} for section in SECTIONS}
    for flag in flags:
        if flag.name == "config":
            _merge(tree, _read_file(flag))
    for flag in flags:
        if flag.name not in ("config", "print_config"):
            _put(tree, flag)
        if flag.name in ("objective", "objective.name"):
            import_own(flag.value or "")
    for section, values in usual_settings(tree["objective"].get("name")).items():
        tree[section] = values | tree[section]
    return tree


def objective_in(arguments: list[str]) -> str | None:
    """Find the objective that a command line names, or None if it names none; UserError if the line is wrong."""
    name: str | None = _tree(arguments)["objective"].get("name")
    return name


def show_help(objective: str | None = None) -> None:
    """Print every flag with its phrase of help, those of an objective's settings if one is named, and exit with 0."""
    flag_parser().print_help()
    if objective is not None:
        _show_settings_of(objective)
    raise SystemExit(0)


def flag_parser() -> ArgumentParser:
    """Make the parser whose help lists every flag of a run: a group for each section, SUPPRESS for what is no flag."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        formatter_class=Help,
        prog="python -m sslm.train",
        usage="python -m sslm.train [--config FILE]… [flags]",
        description="Pretrain a language model. No arguments: learn from this Python's documentation in two minutes.",
        epilog="--model.KEY takes any key of the architecture's config (--model.hidden_size 512), --objective.KEY any "
        "setting of the objective. YAML files have the same keys, in the same sections.",
    )
    parser.add_argument(
        "--config",
        help="YAML file with any of these keys, or the name of one that sslm brings, such as laptop; may be given "
        "several times.",
    )
    parser.add_argument(
        "--print_config", action="store_true", help="Print all settings as a file for --config, and end."
    )
    parser.add_class_arguments(Config, help="A run")
    for action in parser._actions:  # hide jsonargparse's own flags, and those of whole sections
        action.option_strings = [name for name in action.option_strings if not name.endswith("+")]
        if action.dest == "objective.name":
            action.option_strings = ["--objective"]
        elif action.dest not in ("help", "config", "print_config", *FLAGS):
            action.help = argparse.SUPPRESS
    return parser


class Help(DefaultHelpFormatter):
    """A flag's phrase, and its default if the phrase doesn't tell: no types of Python."""

    def _get_help_string(self, action: argparse.Action) -> str:
        default = default_of(action)
        return f"{action.help} (default: {default})" if default else action.help or ""


def default_of(action: argparse.Action) -> str:
    """Return a flag's default as a user would type it; empty if the phrase of help tells it."""
    default = action.default
    if default in (None, argparse.SUPPRESS):
        return ""
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    return shown.lower() if isinstance(default, bool) else shown


def _show_settings_of(objective: str) -> None:
    parser = settings_parser(objective)
    print()
    if parser is None:
        print(f"{objective} has no settings of its own.")
    else:
        parser.print_help()


def settings_parser(objective: str) -> ArgumentParser | None:
    """Make the parser whose help lists an objective's own settings; None if it has none."""
    recipe = load_objective(objective).recipe_class
    if not dataclasses.fields(recipe):
        return None
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(formatter_class=Help, usage=argparse.SUPPRESS, add_help=False)
    parser.add_class_arguments(recipe, "objective", help=f"Settings of {objective}")
    for action in parser._actions:  # hide that of the whole section
        if not action.dest.startswith("objective."):
            action.help = argparse.SUPPRESS
    return parser


class Flag(NamedTuple):
    """A flag as typed."""

    name: str
    value: str | None
    """None if no value follows."""
    words: list[str]


def split_flags(arguments: list[str]) -> Iterator[Flag]:
    """Yield the flags of a command line.

    >>> [flag[:2] for flag in split_flags(["--seed", "1", "--devices=2", "--compile"])]
    [('seed', '1'), ('devices', '2'), ('compile', None)]
    """
    rest = list(arguments)
    while rest:
        words = [rest.pop(0)]
        if not words[0].startswith("--"):
            raise UserError(
                f"{short(words[0])!r} is not a flag: flags start with --, as in --data.train {short(words[0])}"
            )
        name, equals, value = words[0][2:].partition("=")
        if not equals and rest and not rest[0].startswith("--"):
            words.append(rest.pop(0))
        yield Flag(name, value if equals else words[-1] if len(words) > 1 else None, words)


def _read_file(flag: Flag) -> Tree:
    if not flag.value:
        raise UserError("--config needs a file, or the name of one that sslm brings: --config laptop")
    where = f"--config {short(flag.value)}"
    try:
        text = _file_of_config(flag.value).read_text(encoding="utf-8")
        content, values = load(text, scalars_as_text=True), load(text)
    except FileNotFoundError:
        ours = [file.stem for file in sorted(CONFIGS.glob("*.yaml"))]
        brought = f"{nearest(Path(flag.value).stem, ours)}; sslm brings {', '.join(ours)}"
        raise UserError(f"{where}: there is no such file{brought}") from None
    except (BadYaml, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not a YAML file ({error})") from None
    if not isinstance(content, dict | None):
        raise UserError(f"{where}: expected keys and values, got {type(values).__name__}")
    tree: Tree = {"": {}}
    for section, keys in (content or {}).items():
        keys = FORMER.get((section, keys), keys) if isinstance(keys, str) else keys
        keys = {"name": keys} if section == "objective" and isinstance(keys, str) else keys
        if section not in SECTIONS:
            tree[""][section] = keys
        elif isinstance(keys, dict | None):  # None: all of its keys are commented out
            is_open = section in OPEN_SECTIONS
            tree[section] = {
                key: values[section][key] if is_open and f"{section}.{key}" not in FLAGS else value
                for key, value in (keys or {}).items()
            }
        else:
            raise UserError(f"{where}: {section} takes keys and values, got {short(keys)}")
    return tree


def _file_of_config(text: str) -> Path:
    """Find a YAML file by its path, or one that sslm brings by its name."""
    file = local_path(text)
    ours = CONFIGS / f"{text}.yaml"
    return ours if re.fullmatch(r"[\w-]+", text) and ours.is_file() and not file.exists() else file


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _put(tree: Tree, flag: Flag) -> None:
    name = "objective.name" if flag.name == "objective" else flag.name
    section, _, key = name.rpartition(".")
    kind = FLAGS[name].type if name in FLAGS else None
    if kind is None and not (section in OPEN_SECTIONS and key):
        close = nearest(f"--{name}", [f"--{known}" for known in FLAGS], SETTINGS)
        raise UserError(f"there is no flag --{short(name)}{close}; python -m sslm.train --help lists them")
    value: Any = "true" if flag.value is None and kind is bool else flag.value
    if value is None:
        raise UserError(f"--{short(name)} needs a value")
    if kind is None or item_of(kind):
        try:
            value = load(value, scalars_as_text=kind is not None)
        except BadYaml as error:
            raise UserError(f"--{name} {short(value)}: can't be read ({error}); quote it as in YAML") from None
    tree[section][key] = value


def _built(tree: Tree) -> Config:
    sections = {}
    for section, kind in SECTIONS.items():
        is_open = section in OPEN_SECTIONS
        fixed = {key: value for key, value in tree[section].items() if not is_open or f"{section}.{key}" in FLAGS}
        sections[section] = typed(kind, section, fixed)
        if is_open:
            sections[section]["settings"] = {key: value for key, value in tree[section].items() if key not in fixed}
    top = sections.pop("")
    return Config(**top, **{section: SECTIONS[section](**values) for section, values in sections.items()})


def _checked(config: Config) -> Config:
    """Check ranges, and what settings ask of one another."""
    for name, value in _leaves(to_tree(config)):
        if value == "":
            raise UserError(f"--{name} needs a value; it is empty")
        numbers = FLAGS[name].metadata.get("numbers") if name in FLAGS else None
        if numbers and isinstance(value, int | float) and not numbers.contains(value):
            raise UserError(f"--{name} {short(value)}: expected {numbers.words}")
    if config.data.train is not None and config.data.sources is not None:
        raise UserError("--data.train and --data.sources: both are given; give one of them")
    if config.data.stages is not None and config.data.sources is None:
        raise UserError("--data.stages: are weights of --data.sources, which are not given")
    if config.total_steps < 1:
        size = config.batch_ramp.numbers[0]
        step, least = f"one step of {size} x {config.window_tokens} tokens", size * config.window_tokens
        raise UserError(f"--max_tokens {config.max_tokens}: less than {step}; give at least {least}")
    if config.stop_after is not None:
        parse_stop_after(config.stop_after)
    if config.profile is not None:
        parse_profile(config.profile)
    if config.stop_when is not None:
        parse_stop_when(config.stop_when)
    parse_resume_with(config.resume_with)
    parse_trackers(config.logger)
    return config


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
