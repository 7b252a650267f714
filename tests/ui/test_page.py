"""sslm ui's page in a real browser: curves, live rows, rewinds, the link, hostile texts, a phone in the dark.

They need playwright and a Chromium: the one that `CHROMIUM` names, one on the PATH, or Debian's, which is installed.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sslm.runs.folder import RunFolder
from sslm.ui.server import Server
from tests.support import browsers
from tests.support.written_runs import append_rows, row_of, write_run

playwright = pytest.importorskip("playwright.sync_api")
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script> \u202egnp\x07"
NAME = "<b onclick=alert(3)>c"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsers.opened() as browser:
        yield browser


@pytest.fixture
def many(runs: Path) -> Path:
    """Three runs, one of a mixture, with samples, a rewind and settings, whose texts are hostile."""
    write_run(runs / NAME, 40, flops_per_token=1e6, **{"train/loss/web": 2.0, "train/loss/books": 3.0})
    append_rows(runs / NAME, {"step": 20, "tokens": 2000, "samples": ["young", "x"]})
    append_rows(runs / NAME, {"step": 40, "tokens": 4000, "samples": [HOSTILE, "x"]})
    append_rows(runs / NAME, {"step": 30, "kind": HOSTILE, "action": "rewind"}, name="anomalies.jsonl")
    (runs / NAME / "config.yaml").write_text("seed: 1\noptim: {lr: 0.5}\n")
    (runs / "a/config.yaml").write_text("seed: 1\noptim: {lr: 0.25}\n")
    return runs


@pytest.fixture
def page(browser: Any, server: Server, many: Path) -> Iterator[Any]:
    """The page, which may ask nobody but its server, raise no error and open no dialog."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(15_000)
    page = context.new_page()
    wrong: list[str] = []
    page.on("request", lambda request: request.url.startswith(server.url) or wrong.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text))
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.goto(server.url)
    page.get_by_text("loss", exact=True).first.wait_for()
    yield page
    assert not wrong
    context.close()


def spot(page: Any, at: float = 0.5) -> tuple[float, float]:
    box = page.locator("figure.first canvas").bounding_box()
    return box["x"] + box["width"] * at, box["y"] + box["height"] / 2


def test_a_view_is_kept_by_its_link(page: Any) -> None:
    page.get_by_label("over").select_option("hours")
    page.get_by_label("logarithmic").check()
    page.locator("#smooth").fill("0.5")
    page.get_by_role("listitem").filter(has_text="b<i>").get_by_role("checkbox").uncheck()
    assert (
        page.evaluate("decodeURIComponent(location.hash)")
        == f"#runs=a&runs={NAME.replace(' ', '+')}&over=hours&smooth=0.5&log=1"
    )
    page.reload()
    page.get_by_text("loss", exact=True).first.wait_for()
    assert page.get_by_label("over").input_value() == "hours"
    boxes = page.get_by_role("listitem").get_by_role("checkbox")
    assert [boxes.nth(i).is_checked() for i in range(3)] == [True, False, True]


def test_values_are_shown_at_the_pointer_and_a_drag_zooms(page: Any) -> None:
    page.mouse.move(*spot(page, 0.1))
    shown = page.locator("#tip").inner_text()
    assert {"a train/loss", f"{NAME} val/loss"} <= set(shown.splitlines())
    page.mouse.move(*spot(page, 0.3))
    page.mouse.down()
    page.mouse.move(*spot(page, 0.6), steps=3)
    page.mouse.up()
    low, high = map(float, re.search(r"zoom=(\S+)", page.evaluate("decodeURIComponent(location.hash)"))[1].split(","))
    assert 800 < low < high < 2600
    page.mouse.dblclick(*spot(page))
    assert "zoom" not in page.url


def test_rows_come_while_a_run_goes_on_and_go_where_it_goes_back(page: Any, many: Path) -> None:
    state = page.get_by_role("listitem").filter(has_text="b<i>").locator(".state")
    append_rows(many / "b<i>", row_of(5), row_of(6))
    with open(many / "b<i>/metrics.jsonl", "a") as stream:
        stream.write('{"step": 7, "tokens": 7')
    playwright.expect(state).to_contain_text("step 6 · loss 0.8333")
    RunFolder(many / "b<i>").drop_metrics_after(2)
    append_rows(many / "b<i>", row_of(3) | {"train/loss": 7.5})
    playwright.expect(state).to_contain_text("step 3 · loss 7.5")
    assert page.evaluate("runs[1].rows.map((row) => row.step)") == [0, 1, 2, 3]
    size = (many / "b<i>/metrics.jsonl").stat().st_size
    assert page.evaluate("runs[1].mark").startswith(f"{size}-")  # from where it asks for more
    write_run(many / "z")
    page.get_by_role("listitem").filter(has_text="z").wait_for()


def test_texts_of_others_are_texts(page: Any) -> None:
    page.get_by_role("button", name="Samples").click()
    rows = page.get_by_role("row").all_inner_texts()
    escaped = HOSTILE.replace("\u202e", "\\u202e").replace("\x07", "\\u0007")
    assert [row.split("\t")[0].strip() for row in rows] == ["step", "40", "20"]
    assert escaped in rows[1]
    assert "young" in rows[2]
    page.get_by_role("button", name="Events").click()
    assert f"◀ {escaped}; the run went back" in page.get_by_role("row").nth(1).inner_text()
    assert page.locator("img, #content script, b").count() == 0


def test_only_settings_that_differ_are_listed(page: Any) -> None:
    page.get_by_role("button", name="Settings").click()
    rows = [row.split("\t") for row in page.get_by_role("row").all_inner_texts()]
    assert rows[1:] == [["optim.lr", "0.25", "", "0.5"], ["seed", "1", "", "1"]]


def test_a_phone_in_the_dark_shows_all_charts_in_its_width(browser: Any, server: Server, many: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True)
    page = context.new_page()
    page.goto(f"{server.url}#over=flops")
    page.get_by_text("loss by source").wait_for()
    assert page.get_by_text("Without FLOPs of the model in their rows: a, b<i>").is_visible()
    titles = page.locator("figure h2").all_inner_texts()
    assert titles[:4] == ["loss", "loss by source", "learning rate", "tokens per second"]
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"
    colors = """canvas => new Set(new Uint32Array(canvas.getContext("2d")
        .getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size"""
    assert page.locator("canvas").first.evaluate(colors) > 10
    page.locator("canvas").first.tap()
    assert "train/loss" in page.locator("#tip").inner_text()
    context.close()
