"""Values as a command line or a YAML file has them, turned into what a dataclass's types ask for."""

import dataclasses
import functools
import re
import types
import typing
from argparse import ArgumentError
from collections.abc import Mapping
from typing import Any, Literal

from jsonargparse import ArgumentParser

from sslm.system.errors import UserError, nearest, short
from sslm.system.other_names import SETTINGS
from sslm.system.plain_yaml import BadYaml, load


def typed(kind: type[Any], section: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn settings into the types of a dataclass's fields.

    Args:
        section: what stands before a setting's name in its flag (`--SECTION.NAME`), or "" if nothing does.
        settings: name -> value, as YAML has it or as text. `1e9` is a whole number, too.

    Raises:
        UserError: there is no such field, or a value is not of its type.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(kind)}
    values = {}
    for key, value in settings.items():
        flag = f"--{section}.{key}" if section else f"--{key}"
        if key not in kinds:
            known = f"; there are {', '.join(kinds)}" if kinds else ", and no other one either; leave it out"
            close = nearest(key, kinds, SETTINGS if "." not in section else None)
            raise UserError(f"{short(flag)}: there is no such setting{close}{known}")
        values[key] = _converted(value, kinds[key], flag)
    return values


def _converted(value: Any, kind: Any, flag: str) -> Any:
    if (item := item_of(kind)) and value is not None:
        return _items(value, item, flag)
    try:
        value = _plain(value, kind)
        if value is None and type(None) not in _parts(kind):  # jsonargparse takes it for any type
            raise ArgumentError(None, "null")
        return _parser(kind).parse_object({"value": _whole(value, kind)}).value
    except (ArgumentError, BadYaml):
        close = nearest(str(value), _choices(kind))
        raise UserError(f"{flag} {short(value)}: expected {_in_words(kind)}{close}") from None


def _plain(value: Any, kind: Any) -> Any:
    """Read text as YAML 1.2 does if no text is asked for; jsonargparse would read it as YAML 1.1."""
    if not isinstance(value, str) or str in _parts(kind) or value in _choices(kind):
        return value
    if isinstance(read := load(value), str):
        raise BadYaml("text")
    return read


@functools.cache
def _parser(kind: Any) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    return parser


def item_of(kind: Any) -> Any:
    """Return the dataclass of which a type is a list, or None if it is something else."""
    listed = next((part for part in _parts(kind) if typing.get_origin(part) is list), None)
    item = typing.get_args(listed)[0] if listed else None
    return item if dataclasses.is_dataclass(item) else None


def _items(value: Any, item: Any, flag: str) -> list[Any]:
    needed = [field.name for field in dataclasses.fields(item) if field.default is dataclasses.MISSING]
    example = f"[{{{', '.join(f'{key}: …' for key in needed)}}}, …]"
    if not isinstance(value, list) or not value or not all(isinstance(settings, dict) for settings in value):
        raise UserError(f"{flag} {short(value)}: expected a list such as {example}")
    for settings in value:
        if missing := [key for key in needed if settings.get(key) is None]:
            raise UserError(f"{flag} {short(settings)}: {missing[0]} is missing; expected {example}")
    return [item(**typed(item, flag.removeprefix("--"), settings)) for settings in value]


def _whole(value: Any, kind: Any) -> Any:
    """Turn 1e9 into 1000000000 if a whole number is asked for; leave anything else as it is."""
    is_number = int in _parts(kind) and re.fullmatch(r"\d+(\.\d*)?[eE]\+?\d+|\d+\.0", str(value))
    return int(float(value)) if is_number and float(value).is_integer() else value


def _parts(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union (Python keeps unions in two forms), or another type by itself."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _choices(kind: Any) -> list[str]:
    literals = [part for part in _parts(kind) if typing.get_origin(part) is Literal]
    return [str(value) for literal in literals for value in typing.get_args(literal)]


def _in_words(kind: Any) -> str:
    if typing.get_origin(kind) is dict:
        return "names and numbers, such as {web: 1}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    *others, last = _parts(kind)
    if others:
        return f"{', '.join(_in_words(part) for part in others)} or {_in_words(last)}"
    if choices := _choices(kind):
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    return names.get(kind, str(kind))
