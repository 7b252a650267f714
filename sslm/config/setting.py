"""How a setting is declared: its default, its range, whether it is a path, and whether a resumed run may change it."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from sslm.system.errors import UserError, short
from sslm.system.paths import NoHome, followed


class Range(NamedTuple):
    """Numbers that a setting takes."""

    words: str
    contains: Callable[[float], bool]


POSITIVE = Range("a number above 0", lambda number: 0 < number < math.inf)
NOT_NEGATIVE = Range("a number of 0 or more", lambda number: 0 <= number < math.inf)
SHARE = Range("a share from 0 to 1", lambda number: 0 <= number <= 1)
DECAY = Range("a number above 0 and at most 1", lambda number: 0 < number <= 1)
BELOW_ONE = Range("a number from 0 to below 1", lambda number: 0 <= number < 1)
SEED = Range("a whole number from 0 to 2^63 - 1", lambda number: 0 <= number < 1 << 63)
SECONDS = Range("a number above 0 and at most 1e9", lambda number: 0 < number <= 1e9)


def setting(
    default: Any = dataclasses.MISSING,
    numbers: Range | None = None,
    may_change: bool | Literal["if named"] = False,
    is_path: bool = False,
) -> Any:
    """Declare a field of a section.

    Args:
        numbers: range that a number has to lie in; None if any will do.
        may_change: whether a resumed run may have another value than the run began with; "if named": on purpose, by
            --resume_with.
        is_path: whether text may be a path, in which `~` is the home folder.
    """
    return field(default=default, metadata={"numbers": numbers, "may_change": may_change, "is_path": is_path})


@dataclass(frozen=True)
class Section:
    """What has settings. Paths are followed here, whether they come from flags, a file or Python."""

    prefix: ClassVar[str] = ""
    """What stands before its settings' names in flags: data, or nothing."""

    def __post_init__(self) -> None:
        for leaf in dataclasses.fields(self):
            if leaf.metadata.get("is_path") and isinstance(path := getattr(self, leaf.name), str):
                try:
                    object.__setattr__(self, leaf.name, followed(path))
                except NoHome as error:
                    flag = f"{self.prefix}.{leaf.name}".removeprefix(".")
                    raise UserError(f"--{flag} {error}") from None

    def check_numbers(self) -> None:
        """Refuse numbers out of their range, as parsing does.

        Raises:
            UserError: there is one.
        """
        for leaf in dataclasses.fields(self):
            value, numbers = getattr(self, leaf.name), leaf.metadata.get("numbers")
            if numbers and value is not None and not numbers.contains(value):
                raise UserError(f"--{self.prefix}.{leaf.name} {short(value)}: expected {numbers.words}")
