"""The report in Markdown: the same figures, for those who read files."""

from collections.abc import Iterator, Sequence

from sslm.data.cleaning.report.contents import Contents, Section
from sslm.system.errors import printable

MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]<>#|~"})


def markdown(contents: Contents) -> str:
    """Write a report as Markdown."""
    return "\n".join(_lines(contents)) + "\n"


def _lines(contents: Contents) -> Iterator[str]:
    yield f"# {_safe(contents.title)}"
    yield ""
    for figure, words in contents.figures:
        yield f"- {_safe(figure)} {_safe(words)}"
    for section in contents.sections:
        yield from _section(section)


def _section(section: Section) -> Iterator[str]:
    yield f"\n## {_safe(section.title)}\n"
    if section.text:
        yield f"{_safe(section.text)}\n"
    if section.rows:
        yield from _table(section.rows)
    elif section.bars:
        yield from _table([("", ""), *((bar.label, bar.words) for bar in section.bars)])
    for reason, examples in section.examples.items():
        for one in examples:
            yield f"\n- {_safe(reason)}: {_safe(one.origin)} {_safe(one.value)}: {_safe(' '.join(one.text.split()))}"


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    titles, *cells = rows
    yield "| " + " | ".join(map(_safe, titles)) + " |"
    yield "|---" * len(titles) + "|"
    for row in cells:
        yield "| " + " | ".join(map(_safe, row)) + " |"


def _safe(text: str) -> str:
    return printable(text).translate(MARKS)
