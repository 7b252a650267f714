"""When a run has learned enough: a metric is as far as it should be, or no longer improves (Prechelt 1998)."""

import math
import re
from typing import Any, NamedTuple

from sslm.system.errors import UserError, short

METRIC = r"(?P<metric>val/[\w/.@-]+)"
LIMIT = re.compile(rf"\s*{METRIC}\s*(?P<sign>[<>])\s*(?P<limit>[-+.\deE]+)\s*")
PATIENCE = re.compile(rf"\s*{METRIC}\s+stops\s+improving\s+for\s+(?P<patience>\d+)(\s+validations?)?\s*")
LOWER_IS_BETTER = re.compile("loss|perplexity|bits|mae|rmse")


class StopWhen(NamedTuple):
    """What ends a run before its last step."""

    text: str
    """As it was typed."""
    metric: str
    is_lower_better: bool
    limit: float | None = None
    """Value beyond which the run ends; None if improvement counts."""
    patience: int = 0
    """Validations without a better value after which the run ends."""


def parse_stop_when(text: str) -> StopWhen:
    """Parse what `--stop_when` takes.

    >>> parse_stop_when("val/loss<3.2")[1:4], parse_stop_when("val/f1 stops improving for 3").patience
    (('val/loss', True, 3.2), 3)

    Raises:
        UserError: it is neither of the two forms.
    """
    if found := LIMIT.fullmatch(text):
        try:
            limit = float(found["limit"])
        except ValueError:
            limit = math.nan
        if math.isfinite(limit):
            return StopWhen(text, found["metric"], found["sign"] == "<", limit)
    if (found := PATIENCE.fullmatch(text)) and int(found["patience"]) > 0:
        is_lower_better = LOWER_IS_BETTER.search(found["metric"]) is not None
        return StopWhen(text, found["metric"], is_lower_better, patience=int(found["patience"]))
    forms = "'val/loss<3.2', 'val/accuracy>0.9' or 'val/f1 stops improving for 3'"
    raise UserError(f"--stop_when {short(text)}: expected {forms}")


class Stopping:
    """Watches a metric over the validations of a run; what it knows goes into checkpoints."""

    def __init__(self, rule: StopWhen) -> None:
        self.rule = rule
        self.load({})

    def load(self, state: dict[str, Any]) -> None:
        """Go on with what another process knew; with nothing if that was of another rule."""
        known = state if state.get("rule") == self.rule.text else {}
        self.best: float | None = known.get("best")
        self.num_worse: int = known.get("num_worse", 0)
        """Validations since the best one."""
        self.has_ended: bool = known.get("has_ended", False)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"rule": self.rule.text, "best": self.best, "num_worse": self.num_worse, "has_ended": self.has_ended}

    def see(self, value: float) -> bool:
        """Take a validation's value; whether the run is to end. What is not a number is no improvement.

        >>> stopping = Stopping(parse_stop_when("val/loss stops improving for 2"))
        >>> [stopping.see(loss) for loss in (3.0, 2.5, 2.6, 2.4, 2.4, 2.7)]
        [False, False, False, False, False, True]
        """
        sign = -1.0 if self.rule.is_lower_better else 1.0
        if self.best is None or sign * value > sign * self.best or math.isnan(self.best):
            self.best, self.num_worse = value, 0
        else:
            self.num_worse += 1
        if self.rule.limit is None:
            self.has_ended = self.num_worse >= self.rule.patience
        else:
            self.has_ended = sign * value > sign * self.rule.limit
        return self.has_ended
