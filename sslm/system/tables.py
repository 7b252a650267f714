"""How sizes, names and progress look."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from sslm.system.terminal import console, is_watched, say

MARK_WIDTH = 12


def size(num_bytes: int) -> str:
    """Bytes as people read them: 950 B, 12.3 kB, 84.2 GB."""
    for unit, bytes_each in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= bytes_each:
            return f"{num_bytes / bytes_each:.3g} {unit}"
    return f"{num_bytes} B"


def printable(name: str) -> str:
    """A name out of a file that somebody else made: nothing in it steers the terminal."""
    return name if name.isprintable() else ascii(name)[1:-1]


def rows(titles: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[int], wide: Sequence[int]) -> None:
    """Print a table: rich where somebody watches, else columns that line up.

    Args:
        right: indices of columns that are flush right.
        wide: of those that may take several lines where the terminal is narrow.
    """
    cells = [[printable(cell) for cell in row] for row in cells]
    if is_watched():
        table = Table(box=None, pad_edge=False)
        for column, title in enumerate(titles):
            table.add_column(
                title,
                justify="right" if column in right else "left",
                header_style="dim",
                overflow="fold",
                no_wrap=column not in wide,
                min_width=MARK_WIDTH if column in wide else None,
            )
        for row in cells:
            table.add_row(*map(escape, row))
        console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    for row in (titles, *cells):
        padded = [
            cell.rjust(n) if i in right else cell.ljust(n) for i, (cell, n) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join(padded).rstrip())
