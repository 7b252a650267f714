"""Values of a row, as files hold them: texts, names of labels, numbers, lists; refused if they are something else."""

import ast
import json
import math
import re
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from sslm.system.errors import UserError, short

WHOLE = re.compile(r"([+-]?(?:0|[1-9]\d*))\.0+")
"""A whole number that a table wrote with decimals."""
NO_NUMBER = ("", "nan", "null", "none", "n/a", "na")
LARGEST = 3.4e38
"""Of fp32."""


class Row(NamedTuple):
    """A row of a table."""

    where: str
    """File and line, for the user."""
    values: dict[str, Any]
    columns: dict[str, str]
    """Role -> name of its field, for the user; the values go by role."""

    def place(self, role: str) -> str:
        """Name the place of a value, for the user."""
        return f"{self.where}: field {self.columns[role]!r}"

    def text(self, role: str) -> str:
        """Read a text; a field without a value is an empty one."""
        value = self.values.get(role)
        if value is None:
            return ""
        if isinstance(value, bool | int | float):
            return label_of(value) or ""
        if not isinstance(value, str):
            raise UserError(f"{self.place(role)} holds {kind_of(value)}, not text")
        return sound(value)

    def label(self, role: str, advice: str = "") -> str | None:
        """Read a label's name, or None if there is none."""
        value = self.values.get(role)
        if isinstance(value, list | dict):
            raise UserError(f"{self.place(role)} holds {kind_of(value)}, not a label{advice}")
        return label_of(value)

    def labels(self, role: str, separator: str | None) -> tuple[str, ...]:
        """Read several labels: a list, a list in JSON, a text that `separator` divides, or a single one."""
        values = self.items(role, lambda text: [text] if separator is None else text.split(separator))
        if wrong := next((value for value in values if isinstance(value, list | dict)), None):
            raise UserError(f"{self.place(role)} holds a list of {kind_of(wrong)}, not of labels")
        return tuple(dict.fromkeys(name for value in values if (name := label_of(value)) is not None))

    def items(self, role: str, split: Callable[[str], list[str]]) -> list[Any]:
        """Read a list; a text is one too, if it is written as one, or else as `split` divides it."""
        value = self.values.get(role)
        if value is None:
            return []
        if not isinstance(value, str):
            return value if isinstance(value, list) else [value]
        found = list_in(value) if value.lstrip().startswith("[") else None
        return split(value) if found is None else found

    def words(self, role: str) -> list[str]:
        """Read a list of words, or a text that white space divides."""
        words = self.items(role, str.split)
        if wrong := next((word for word in words if isinstance(word, list | dict)), None):
            raise UserError(f"{self.place(role)} holds a list of {kind_of(wrong)}, not of words")
        return [sound(word) if isinstance(word, str) else "" if word is None else str(word) for word in words]

    def number(self, role: str) -> float | None:
        """Read a number, or None if there is none."""
        value = self.values.get(role)
        if value is None or (isinstance(value, str) and value.strip().lower() in NO_NUMBER):
            return None
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{self.place(role)} holds {short(repr(value))}, not a number") from None
        if math.isnan(number):
            return None
        if abs(number) > LARGEST:
            raise UserError(f"{self.place(role)} holds {short(value)}: numbers may be as large as {LARGEST:g}")
        return number


def label_of(value: Any) -> str | None:
    """Name a label alike however a file writes it; None if it is empty.

    >>> [label_of(value) for value in (1, 1.0, "1", "1.0", " good ", True, "True", "", None)]
    ['1', '1', '1', '1', 'good', 'true', 'true', None, None]
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    text = unicodedata.normalize("NFC", sound(value)).strip() if isinstance(value, str) else str(value)
    if text.lower() in ("true", "false"):
        return text.lower()
    whole = WHOLE.fullmatch(text)
    return (whole[1] if whole else text) or None


def list_in(text: str) -> list[Any] | None:
    """Read a list that is written in JSON, or as Python prints it; None if the text is something else.

    >>> list_in('["a", "b"]'), list_in("['a', 'b']"), list_in("[sic]")
    (['a', 'b'], ['a', 'b'], None)
    """
    for read in (json.loads, ast.literal_eval):  # neither runs anything
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            found = read(text.strip())
            return found if isinstance(found, list) else None
    return None


def sound(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON can spell, by U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def kind_of(value: Any) -> str:
    """Name a kind of value."""
    kinds: dict[type, str] = {list: "a list", dict: "an object"}
    return kinds.get(type(value), str(type(value).__name__))
