"""Pictures of runs and labels whose names are made to mislead."""

import warnings
from pathlib import Path

import pytest

from sslm.runs.curves import draw_curves
from sslm.runs.drawn_text import drawn
from sslm.runs.predicted import confusion, draw

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


def test_rare_classes_share_a_row_and_their_confusions_are_wrong(tmp_path: Path) -> None:
    pairs = [(str(n), str(n)) for n in range(20)] * 2 + [("30", "30"), ("30", "31"), ("31", "30"), ("0", "31")]
    counts, rows, columns = confusion(pairs)
    assert (rows[-1], columns[-2:]) == ("2 others", ["others, right", "others, wrong"])
    assert counts[-1, -2:].tolist() == [1, 2]
    assert counts.trace() == sum(true == said for true, said in pairs)
    draw(pairs, tmp_path / "classes.png", "many")
    assert confusion([*pairs[:20], ("30", "30")]).rows[-1] == "9"  # one more is drawn by its name, in its order
