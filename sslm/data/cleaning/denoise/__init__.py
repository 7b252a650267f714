"""Take out what is no text: markup, navigation, lines of symbols.

Each editor is a pure function of one text, and takes time in proportion to it. All are careful: what may be text or
code stays.
"""

from collections.abc import Callable

from sslm.data.cleaning.denoise.lines import navigation, symbol_lines
from sslm.data.cleaning.denoise.tags import markup

EDITORS: dict[str, Callable[[str], str]] = {"markup": markup, "navigation": navigation, "symbol_lines": symbol_lines}
"""Name -> editor, in the order in which they work: before `white_space`, which takes away what they leave."""
