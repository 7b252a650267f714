"""What counts as a duplicate."""

import unicodedata
from dataclasses import astuple, dataclass, replace

from sslm.system.errors import UserError, nearest
from sslm.system.random_words import key64

METHODS = ("exact", "minhash", "lines", "substrings")
"""In the order in which they decide."""
ALGORITHM = 1
"""Goes up whenever the same text gets other signatures."""


@dataclass(frozen=True)
class Deduplication:
    """Which duplicates to look for, and how alike they must be."""

    methods: tuple[str, ...] = ("exact", "minhash")
    """Of METHODS; their order here means nothing."""
    shingle_words: int = 5
    """Words in a row that make one element of the set by which documents are compared (Penedo et al. 2024)."""
    bands: int = 14
    """Documents are near-duplicates if all values of any band agree."""
    rows: int = 8
    """Values of a band: documents of Jaccard similarity s agree in one with probability s^rows."""
    seed: int = 1
    """Of the permutations."""
    line_documents: int = 6
    """Lines that stand in more documents than this go, but for the first that has them (Llama 3: 6)."""
    line_characters: int = 15
    """Lines shorter than this, white space at their ends left out, stay."""
    substring_words: int = 50
    """Words in a row that make a passage (Lee et al. 2022: 50 tokens)."""

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise UserError(
                    f"--dedup {method}: no such way to find duplicates{nearest(method, METHODS)}; "
                    f"there are {', '.join(METHODS)}"
                )
        for name in ("shingle_words", "bands", "rows", "line_documents", "line_characters", "substring_words"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 1 or more")

    @property
    def fingerprint(self) -> int:
        """64 bits that differ if the same texts might get other signatures."""
        ordered = replace(self, methods=tuple(sorted(set(self.methods))))
        return key64(ALGORITHM, unicodedata.unidata_version, *astuple(ordered))
