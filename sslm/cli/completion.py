"""Print the script by which a shell completes verbs, flags and their values at the Tab key.

    sslm completion bash > ~/.sslm.bash    # and in ~/.bashrc: source ~/.sslm.bash
    sslm completion zsh > ~/.sslm.zsh      # and in ~/.zshrc, after compinit: source ~/.sslm.zsh
    sslm completion fish > ~/.config/fish/completions/sslm.fish

All words stand in the script, so that Tab starts no Python. After an upgrade of sslm, make it anew.
"""

import argparse
import shlex
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal, NamedTuple, get_args, get_origin

from sslm.cli import VERBS, parse
from sslm.config import FLAGS
from sslm.objectives import FINE_TUNING, OBJECTIVES
from sslm.system.exits import DONE, exits_politely

BASH = """\
_sslm() {
    local word=${COMP_WORDS[COMP_CWORD]-} before=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]} given= words=
    if [[ $word == = ]]; then # bash parts --flag=value into three words, zsh does not
        word=
    elif [[ $before == = ]]; then
        before=${COMP_WORDS[COMP_CWORD-2]}
    elif [[ $word == --*=* ]]; then
        before=${word%%=*} given=$before= word=${word#*=}
    fi
    (( COMP_CWORD > 1 )) || verb=
    [[ $verb == ckpt || $verb == tokenizer ]] && (( COMP_CWORD > 2 )) && verb+=" ${COMP_WORDS[2]}"
    if [[ $word == -* ]]; then
        before=-
    elif [[ $before != -* ]]; then
        before=
    fi
    case "$verb $before" in
    CASES
    esac
    COMPREPLY=($(compgen -P "$given" -W "$words" -- "$word"))
}
complete -o default -F _sslm sslm
"""
"""The shell completes the names of files if no word fits."""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n\n" + BASH


class Flag(NamedTuple):
    """A flag of a verb."""

    name: str
    what: str
    values: list[str]
    """What it takes; empty if that can't be listed."""
    takes_value: bool


class Verb(NamedTuple):
    """What may follow a verb, or a verb of a verb (`ckpt ls`)."""

    flags: list[Flag]
    words: dict[str, str]
    """Words that are no flags -> what each is."""
    takes_files: bool


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    shell = flag_parser().parse_args(arguments).shell
    verbs = dict(_verbs())
    print(_fish(verbs) if shell == "fish" else _bash(verbs, ZSH if shell == "zsh" else BASH), end="")
    return DONE


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's flags."""
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="sslm completion", description=__doc__, formatter_class=kind)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    return parser


# ------------------------------------------------------------------------------------------------ what may be typed


def _verbs() -> Iterator[tuple[str, Verb]]:
    """Yield each verb, as typed, with what may follow it."""
    flags_of_train = _flags_of_train()
    seeds = Flag("--seeds", "train a run for each of these seeds: 1,2,3", [], takes_value=True)
    for name in VERBS:
        if name == "train":
            yield name, Verb(flags_of_train, {}, takes_files=False)
        elif name == "finetune":
            own = [
                flag._replace(values=[*FINE_TUNING]) if flag.name == "--objective" else flag for flag in flags_of_train
            ]
            yield name, Verb([*own, seeds], {}, takes_files=False)
        else:
            parser = import_module(f"sslm.cli.{name.replace('-', '_')}").flag_parser()
            more = flags_of_train if name in ("plan", "inspect", "verify-resume") else []
            yield from _of_parser(name, parser, more)


def _of_parser(name: str, parser: argparse.ArgumentParser, more: list[Flag]) -> Iterator[tuple[str, Verb]]:
    words: dict[str, str] = {}
    takes_files = False
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for inner, of_inner in action.choices.items():
                yield from _of_parser(f"{name} {inner}", of_inner, [])
        elif not action.option_strings:
            words |= dict.fromkeys(action.choices or (), "")
            takes_files |= not action.choices
    yield name, Verb(_merged([*_flags(parser), *more]), words, takes_files)


def _flags_of_train() -> list[Flag]:
    """List the flags of a run, and the settings of all objectives."""
    own = [settings for name in OBJECTIVES if (settings := parse.settings_parser(name)) is not None]
    return _merged([flag for parser in (parse.flag_parser(), *own) for flag in _flags(parser)])


def _merged(flags: list[Flag]) -> list[Flag]:
    """Leave one flag of each name, with the values of all: objectives have settings of the same name."""
    merged: dict[str, Flag] = {}
    for flag in flags:
        first = merged.setdefault(flag.name, flag)
        merged[flag.name] = first._replace(values=list(dict.fromkeys(first.values + flag.values)))
    return list(merged.values())


def _flags(parser: argparse.ArgumentParser) -> Iterator[Flag]:
    for action in parser._actions:
        if action.option_strings and action.help != argparse.SUPPRESS:
            what = " ".join((action.help or "").split()).replace("%(default)s", str(action.default))
            name = next(name for name in action.option_strings if name.startswith("--"))
            yield Flag(name, what, _values(action), takes_value=action.nargs != 0)


def _values(action: argparse.Action) -> list[str]:
    if action.dest == "objective.name":
        return [*OBJECTIVES]
    kind = FLAGS[action.dest].type if action.dest in FLAGS else getattr(action, "_typehint", None)  # jsonargparse's
    if kind is bool:
        return ["true", "false"]
    return [str(value) for value in action.choices or _literals(kind)]


def _literals(kind: Any) -> list[Any]:
    """List the values of a Literal, or of those in a union.

    >>> _literals(Literal["lowest", "highest"] | None)
    ['lowest', 'highest']
    """
    if get_origin(kind) is Literal:
        return [*get_args(kind)]
    return [value for part in get_args(kind) for value in _literals(part)]


# ------------------------------------------------------------------------------------------------ scripts


def _bash(verbs: dict[str, Verb], script: str) -> str:
    """Fill in the script: for (verb, what stands before the word), the words that may stand there."""
    cases: dict[str, list[str]] = defaultdict(list)
    cases[" ".join(VERBS)] = [" "]
    for name, verb in verbs.items():
        flags = " ".join(flag.name for flag in verb.flags)
        bare = " ".join(verb.words) if verb.words or verb.takes_files else flags
        cases[flags].append(f"{name} -")
        cases[bare].append(f"{name} ")
        for flag in verb.flags:
            cases[" ".join(flag.values) if flag.takes_value else bare].append(f"{name} {flag.name}")
    lines = [
        f"{'|'.join(map(shlex.quote, places))}) words={shlex.quote(words)} ;;"
        for words, places in cases.items()
        if words
    ]
    return script.replace("CASES", "\n    ".join(lines))


def _fish(verbs: dict[str, Verb]) -> str:
    lines = [
        f"complete -c sslm -n __fish_use_subcommand -f -a {verb} -d {_short(what)}" for verb, what in VERBS.items()
    ]
    for name, verb in verbs.items():
        after = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in name.split())
        files = "" if verb.takes_files else " -f"
        for word, what in verb.words.items():
            others = f"; and not __fish_seen_subcommand_from {' '.join(verb.words)}"
            lines.append(f"complete -c sslm -n '{after}{others}' -f -a {word} -d {_short(what)}")
        for flag in verb.flags:
            takes = (
                f" -x -a {shlex.quote(' '.join(flag.values))}"
                if flag.values
                else " -r -F"
                if flag.takes_value
                else files
            )
            lines.append(f"complete -c sslm -n '{after}' -l {flag.name[2:]}{takes} -d {_short(flag.what)}")
    return "\n".join(lines) + "\n"


def _short(what: str) -> str:
    """Quote the beginning of a phrase of help for fish."""
    text = textwrap.shorten(what, 72, placeholder=" …").replace("\\", r"\\").replace("'", r"\'")
    return f"'{text}'"
