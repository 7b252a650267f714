"""What counts as a duplicate."""

import unicodedata
from dataclasses import astuple, dataclass, replace

from sslm.config.setting import POSITIVE, SEED, Section, setting
from sslm.system.errors import UserError, nearest, short
from sslm.system.random_words import key64

METHODS = ("exact", "minhash", "lines", "substrings")
"""In the order in which they decide."""
ALGORITHM = 1
"""Goes up whenever the same text gets other signatures."""


@dataclass(frozen=True)
class Deduplication(Section):
    """Which duplicates to look for, and how alike they must be.

    Raises:
        UserError: there is no such method, or a number is out of its range.
    """

    prefix = "dedup"

    methods: tuple[str, ...] = ("exact", "minhash")
    """Of METHODS; their order here means nothing."""
    shingle_words: int = setting(5, POSITIVE)
    """Words in a row that make one element of the set by which documents are compared (Penedo et al. 2024)."""
    bands: int = setting(14, POSITIVE)
    """Documents are near-duplicates if all values of any band agree."""
    rows: int = setting(8, POSITIVE)
    """Values of a band: documents of Jaccard similarity s agree in one with probability s^rows."""
    seed: int = setting(1, SEED)
    """Of the permutations."""
    line_documents: int = setting(6, POSITIVE)
    """Lines that stand in more documents than this go, but for the first that has them (Llama 3: 6)."""
    line_characters: int = setting(15, POSITIVE)
    """Lines shorter than this, white space at their ends left out, stay."""
    substring_words: int = setting(50, POSITIVE)
    """Words in a row that make a passage (Lee et al. 2022: 50 tokens)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers()
        for method in self.methods:
            if method not in METHODS:
                raise UserError(
                    f"--dedup {short(method)}: no such way to find duplicates{nearest(method, METHODS)}; "
                    f"there are {', '.join(METHODS)}"
                )

    @property
    def fingerprint(self) -> int:
        """64 bits that differ if the same texts might get other signatures."""
        ordered = replace(self, methods=tuple(sorted(set(self.methods))))
        return key64(ALGORITHM, unicodedata.unidata_version, *astuple(ordered))
