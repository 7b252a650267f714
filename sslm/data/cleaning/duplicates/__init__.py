"""Documents, lines and passages that a corpus has more than once, and what is left when they are removed.

`signatures` makes small numbers of a block of texts, in any process; `resolve` reads the numbers of all blocks and
decides what goes; `apply` removes it from a block. What is kept is always what comes first in the corpus, so neither
the size of blocks nor the number of processes changes the result.

Whole documents are judged before their parts, so that what stays of a line or a passage stays in a document that
stays: exact, then minhash, then lines and substrings.
"""

from sslm.data.cleaning.duplicates.apply import apply
from sslm.data.cleaning.duplicates.decision import EXACT, KEPT, NEAR, Decision, decision_file, read_decision
from sslm.data.cleaning.duplicates.resolve import resolve
from sslm.data.cleaning.duplicates.settings import METHODS, Deduplication
from sslm.data.cleaning.duplicates.signatures import signatures

__all__ = [
    "EXACT",
    "KEPT",
    "METHODS",
    "NEAR",
    "Decision",
    "Deduplication",
    "apply",
    "decision_file",
    "read_decision",
    "resolve",
    "signatures",
]
