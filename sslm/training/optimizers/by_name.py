"""Rates and weight decay of parameters by their names: `--optim.groups '[{names: embed, lr: 0.1}]'`."""

import math
import re
from collections.abc import Sequence

from torch import nn

from sslm.config import GroupConfig
from sslm.models.adapters import plain_name
from sslm.system.errors import UserError, nearest, short

LONGEST, MOST_REPEATS = 200, 3
"""Characters of a pattern, and repeats (* + ? {) in it. Without parentheses, time grows with a name's length to the
power of these at most."""


def group_of(groups: Sequence[GroupConfig], model: nn.Module) -> dict[nn.Parameter, GroupConfig]:
    """Map each parameter in whose name a pattern is found to the first such group.

    Raises:
        UserError: see `check_groups`.
    """
    check_groups(groups, model)
    patterns = [(re.compile(group.names), group) for group in groups]
    named = ((plain_name(name), parameter) for name, parameter in model.named_parameters())
    first = ((p, next((group for pattern, group in patterns if pattern.search(n)), None)) for n, p in named)
    return {parameter: group for parameter, group in first if group is not None}


def check_groups(groups: Sequence[GroupConfig], model: nn.Module) -> None:
    """Refuse groups that can't be.

    Raises:
        UserError: a pattern is none, may take too long, or is in no name; or a number is out of its range.
    """
    names = [plain_name(name) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for group in groups:
        what = f"--optim.groups: names {short(group.names)!r}"
        _check_pattern(group.names, what)
        for key, number in (("lr", group.lr), ("weight_decay", group.weight_decay or 0.0)):
            if not 0 <= number < math.inf:
                raise UserError(f"{what}: {key} {number}: expected a number of 0 or more")
        if not any(re.search(group.names, name) for name in names):
            some = ", ".join(_examples(names))
            raise UserError(f"{what}: in no parameter's name{nearest(group.names, names)}; there are {some}")


def _check_pattern(pattern: str, what: str) -> None:
    if len(pattern) > LONGEST or re.search(r"[()]", pattern) or len(re.findall(r"[*+?{]", pattern)) > MOST_REPEATS:
        allowed = f"without parentheses, with at most {MOST_REPEATS} of * + ? {{ and {LONGEST} characters"
        raise UserError(f"{what}: expected a regular expression {allowed}, such as 'layers.[0-3].*proj'")
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise UserError(f"{what}: is no regular expression ({error})") from None


def _examples(names: Sequence[str]) -> list[str]:
    """Names, of those that differ in numbers alone the first."""
    different = {re.sub(r"\d+", "0", name): name for name in reversed(names)}
    return list(reversed(different.values()))[:20]
