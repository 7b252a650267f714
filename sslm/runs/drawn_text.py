"""Names in pictures: they are drawn as they are, whatever characters they have; none is taken for a formula."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import matplotlib
from matplotlib.font_manager import FontProperties, fontManager, get_font

from sslm.system.errors import printable


def drawn(name: str, most: int = 80) -> str:
    """Write a name so that matplotlib draws it: `$a$` is no formula, and what is too long loses its end."""
    name = printable(name)
    return (name if len(name) <= most else f"{name[: most - 1]}…").replace("$", r"\$")


@contextmanager
def fonts_for(names: Iterable[str]) -> Iterator[None]:
    """Within this, what matplotlib's own font lacks is drawn by other fonts of the machine, if one has it."""
    own = get_font(fontManager.findfont(FontProperties()))
    lacking = {ord(c) for name in names for c in printable(name)} - own.get_charmap().keys()
    families = list(matplotlib.rcParams["font.family"])
    for font in fontManager.ttflist if lacking else ():
        if "Last Resort" in font.name:  # it draws a box for each
            continue
        if found := lacking & get_font(font.fname).get_charmap().keys():
            families.append(font.name)
            lacking -= found
    with matplotlib.rc_context({"font.family": families}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # a box is drawn
        yield
