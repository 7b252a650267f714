"""Rules that drop documents of bad quality, each with the definitions of the work it is from.

A rule depends on a document's text alone, never on what else a block holds.
"""

from sslm.data.cleaning.rules.c4 import C4
from sslm.data.cleaning.rules.fineweb import FineWeb
from sslm.data.cleaning.rules.gopher import Gopher
from sslm.data.cleaning.rules.judged import Failure, Judged, Rule

__all__ = ["RULES", "Failure", "Judged", "Rule"]

RULES: dict[str, type[Rule]] = {"gopher": Gopher, "c4": C4, "fineweb": FineWeb}
"""Name in --rules -> rule."""
