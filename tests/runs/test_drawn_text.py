"""Pictures of runs and labels whose names are made to mislead."""

import warnings
from pathlib import Path

import pytest

from sslm.runs.curves import draw_curves
from sslm.runs.drawn_text import drawn
from sslm.runs.predicted import draw

NAMES = [r"$\foo$", "好评", "دوم\u200cم", "a\x07b", "{", r"\frac", "x" * 500, "$"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_drawn(tmp_path: Path, name: str) -> None:
    row = {"tokens": 1, "train/loss": 2.0, "lr": 0.1, "tokens_per_second": 3.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_curves([row], tmp_path / "curves.png", name)
        draw([(name, name), ("other", name)], tmp_path / "classes.png", name)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "classes.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_no_formulas_and_steer_nothing() -> None:
    assert drawn("cost in $, $x$") == r"cost in \$, \$x\$"
    assert drawn("\x1b[31mred") == r"\x1b[31mred"
    assert drawn("abcdef", 4) == "abc…"
