"""The report as one page: no script, no network, light or dark as the reader's system is, from 400 pixels on."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from sslm.data.cleaning.report.contents import Bar, Contents, Section
from sslm.system.errors import printable
from sslm.system.terminal import count

STYLE = Path(__file__).with_name("page.css")
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 240, 56, 34
"""A curve's size and the room for its axes."""


def page(contents: Contents) -> str:
    """Write a report as HTML."""
    return "\n".join(_lines(contents)) + "\n"


def _lines(contents: Contents) -> Iterator[str]:
    title = _safe(contents.title)
    yield "<!doctype html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
    yield f"<title>{title}: what was cleaned</title>"
    yield f"<style>\n{STYLE.read_text()}</style></head><body><main>"
    yield f"<h1>{title}</h1>"
    yield '<dl class="figures">'
    for figure, words in contents.figures:
        yield f"<div><dt>{_safe(figure)}</dt><dd>{_safe(words)}</dd></div>"
    yield "</dl>"
    for section in contents.sections:
        yield from _section(section)
    yield "</main></body></html>"


def _section(section: Section) -> Iterator[str]:
    yield f"<section><h2>{_safe(section.title)}</h2>"
    if section.text:
        yield f"<p>{_safe(section.text)}</p>"
    if section.bars:
        yield from _bars(section.bars)
    if len(section.curve) > 1:
        yield from _curve(section.curve, *section.axes)
    if section.rows:
        yield from _table(section.rows)
    for reason, examples in section.examples.items():
        if examples:
            yield f"<details><summary>Examples: {_safe(reason)}</summary>"
            for one in examples:
                where = f"{one.origin} · {one.value}" if one.value else one.origin
                yield f"<figure><figcaption>{_safe(where)}</figcaption>"
                yield f'<blockquote dir="auto">{_text(one.text)}</blockquote></figure>'
            yield "</details>"
    yield "</section>"


def _bars(bars: Sequence[Bar]) -> Iterator[str]:
    most = max((bar.value for bar in bars), default=0) or 1
    yield '<table class="bars">'
    for bar in bars:
        share = f'<i style="width:{bar.value / most:.2%}"></i>'
        yield f"<tr><th>{_breakable(bar.label)}</th><td>{share}</td><td>{_safe(bar.words)}</td></tr>"
    yield "</table>"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    titles, *cells = rows
    yield (
        '<div class="wide"><table class="cells"><tr>'
        + "".join(f"<th>{_safe(title)}</th>" for title in titles)
        + "</tr>"
    )
    for row in cells:
        yield "<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>"
    yield "</table></div>"


def _curve(points: Sequence[tuple[float, float]], across: str, up: str) -> Iterator[str]:
    most_x, most_y = (max(max(values), 1) for values in zip(*points, strict=True))
    width, height = WIDTH - LEFT, HEIGHT - BOTTOM
    line = " ".join(f"{LEFT + x / most_x * width:.1f},{height - y / most_y * (height - 12):.1f}" for x, y in points)
    yield f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_safe(up)} over {_safe(across)}">'
    yield f'<path class="axis" d="M{LEFT},4V{height}H{WIDTH}"/><polyline points="{line}"/>'
    for x, y, side, words in (
        (LEFT - 6, 16, "end", count(most_y)),
        (LEFT - 6, height, "end", "0"),
        (LEFT + 8, 16, "", up),
        (LEFT, HEIGHT - 16, "", across),
        (WIDTH, HEIGHT - 16, "end", count(most_x)),
    ):
        yield f'<text x="{x}" y="{y}" class="{side}">{_safe(words)}</text>'
    yield "</svg>"


def _text(text: str) -> str:
    """Escape a document's text: lines stay, what would steer or hide is written out."""
    return "<br>".join(_safe(line) for line in text.split("\n"))


def _breakable(label: str) -> str:
    """Escape a label that may be broken at underscores."""
    return _safe(label).replace("_", "_<wbr>")


def _safe(text: str) -> str:
    return escape(printable(text))
