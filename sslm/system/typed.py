"""Values as a command line, a YAML file or an open section has them, held against a dataclass's types; errors of one sentence."""

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from sslm.system.errors import UserError, nearest


def typed(kind: type[Any], section: str, settings: dict[str, Any]) -> dict[str, Any]:
    """An open section's settings, seen to be of the types that a dataclass gives its fields.

    Raises:
        UserError: one isn't, or there is no such field.
    """
    from jsonargparse import ArgumentParser

    fields = {field.name: field.type for field in dataclasses.fields(kind)}
    for key in settings:
        if key not in fields:
            known = f"it has {', '.join(fields)}" if fields else "it has none"
            raise UserError(f"--{section}.{key}: there is no such setting{nearest(key, fields)}; {known}")
    parser = ArgumentParser(exit_on_error=False)
    for key in settings:
        parser.add_argument(f"--{section}.{key}", type=fields[key])
    try:
        return dict(parser.parse_object({section: settings}).get(section, {})) if settings else {}
    except argparse.ArgumentError as error:
        raise UserError(one_sentence(error, {f"{section}.{key}": kind for key, kind in fields.items()})) from None


def fits(value: Any, kind: Any) -> bool:
    """Whether an item's value, as YAML has it, is of a field's type."""
    allowed = {typing.get_origin(part) or part for part in _parts(kind)} - {Literal}
    allowed |= {int} if float in allowed else set()
    return value in _choices(kind) or (not isinstance(value, bool) and isinstance(value, tuple(allowed)))


def whole(value: Any, kind: Any) -> Any:
    """1e9 -> 1000000000 where a whole number is asked for; anything else as it came."""
    if (kind is not int and int not in typing.get_args(kind)) or not re.fullmatch(
        r"\d+(\.\d*)?[eE]\+?\d+|\d+\.0", str(value)
    ):
        return value
    return int(float(value)) if float(value).is_integer() else value


def one_sentence(error: argparse.ArgumentError, flags: Mapping[str, Any]) -> str:
    """Turn jsonargparse's paragraph about a value into one sentence.

    Args:
        flags: name -> type of the flags that there are.
    """
    text = str(error)
    name = text.split('Parser key "')[-1].split('"')[0]
    given = text.split("Got value: ")[-1].split("Given value: ")[-1].strip().partition("\n")[0]
    if name not in flags:
        return " ".join(text.split())
    return f"--{name} {given}: expected {kind_in_words(flags[name])}{nearest(given, _choices(flags[name]))}"


def _parts(kind: Any) -> tuple[Any, ...]:
    """The members of a union, which Python keeps in two forms (with a Literal, in typing's own); another type by itself."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _choices(kind: Any) -> list[str]:
    literals = [part for part in _parts(kind) if typing.get_origin(part) is Literal]
    return [str(value) for literal in literals for value in typing.get_args(literal)]


def kind_in_words(kind: Any) -> str:
    if typing.get_origin(kind) is dict:
        return "names and numbers, such as {web: 1}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    *others, last = _parts(kind)
    if others:
        return f"{', '.join(kind_in_words(part) for part in others)} or {kind_in_words(last)}"
    if choices := _choices(kind):
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    return names.get(kind, str(kind))
