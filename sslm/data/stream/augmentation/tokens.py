"""Noise on ids, of any corpus, by one random number a token.

Left out, moved and put in: the random deletion, swap and insertion of EDA (Wei and Zou 2019, arXiv:1901.11196) and of
Lample et al. 2018 (arXiv:1711.00043), on tokens; a swap is of neighbours, and what is put in comes from the same
window, so by how often each token stands there (Xie et al. 2017, arXiv:1703.02573). Repeated: ESimCSE (Wu et al. 2022,
arXiv:2109.04380), by which a text gets longer and says no more.
"""

import numpy as np

from sslm.config.augment import Augment
from sslm.data.stream import noise
from sslm.data.stream.augmentation.rewriting import documents_of, first_copies, rewritten
from sslm.data.stream.recipe import Bools, Examples, Ints


def scrambled(examples: Examples, augment: Augment, is_special: Bools, seed: int) -> Examples:
    """Leave out, swap, repeat and put in tokens. `is_special` is [n, length]: those stay, and where they are."""
    documents = documents_of(examples)
    ordinary = (documents >= 0) & ~is_special
    swap = augment.token_swap / (2 - augment.token_swap)  # a pair begins; it moves two, and no place is in two pairs
    edges = np.cumsum([augment.token_dropout, augment.token_repeat, augment.token_insert, swap])
    drawn = noise.uniform(examples, documents.shape[1], seed, "augment tokens")
    dropped, repeated, inserted, swaps = (
        (low <= drawn) & (drawn < high) & ordinary for low, high in zip([0, *edges], edges, strict=False)
    )
    if swap:
        examples = _swapped(examples, swaps, ordinary)
    copies = 1 - dropped + repeated + inserted
    if not augment.token_insert:
        return rewritten(examples, copies)
    rows, columns = np.nonzero(inserted)
    where = first_copies(np.where(documents >= 0, copies, 0), rows * documents.shape[1] + columns) + 1
    return rewritten(examples, copies, where, _others(examples, rows, columns, ordinary, seed))


def _swapped(examples: Examples, swaps: Bools, ordinary: Bools) -> Examples:
    """Let these tokens and those after them, if they are ordinary and of the same document, change places."""
    documents, place = documents_of(examples), np.arange(swaps.shape[1])
    swaps = swaps.copy()
    swaps[:, :-1] &= ordinary[:, 1:] & (documents[:, 1:] == documents[:, :-1])
    swaps[:, -1:] = False
    # of a run of these every other one, so that none moves twice
    before = np.maximum.accumulate(np.where(swaps, -1, place), axis=1)
    swaps &= (place - before) % 2 == 1
    rows, columns = np.nonzero(swaps)
    tokens = examples.tokens.copy()
    tokens[rows, columns], tokens[rows, columns + 1] = tokens[rows, columns + 1], tokens[rows, columns]
    return examples._replace(tokens=tokens)


def _others(examples: Examples, rows: Ints, columns: Ints, ordinary: Bools, seed: int) -> Ints:
    """Draw an ordinary token of the row for each of some places."""
    from_row = np.argsort(~ordinary, axis=1, kind="stable")
    drawn = noise.words_at(examples, rows, columns, seed, "augment others") >> np.uint64(32)
    which = (drawn * ordinary.sum(axis=1)[rows].astype(np.uint64)) >> np.uint64(32)
    found: Ints = examples.tokens[rows, from_row[rows, which.astype(np.int64)]]
    return found


def tokens_needed(num: int, augment: Augment) -> int:
    """Count the tokens of which `num` are left but for once in millions of windows."""
    share = augment.token_dropout
    return num if not share else int(num / (1 - share) + 6 * np.sqrt(num * share / (1 - share) ** 2)) + 1
