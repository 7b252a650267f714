"""Small vocabularies to test with."""

import numpy as np

from sslm.data.stream.vocabulary import Vocabulary


def bare(size: int = 200, prefix: tuple[int, ...] = (2,), suffix: tuple[int, ...] = (3,)) -> Vocabulary:
    """Ids 0–4 are special: padding, end, [CLS], [SEP], mask; from 100 on a token goes on with a word."""
    no, kinds = np.zeros(size, bool), np.zeros(size, np.uint8)
    special = no.copy()
    special[:5] = True
    return Vocabulary(
        end=1,
        prefix=np.array(prefix, np.int64),
        suffix=np.array(suffix, np.int64),
        mask=4,
        pad=0,
        sentinels=np.empty(0, np.int64),
        special=special,
        begins_word=np.arange(size) < 100,
        first_kind=kinds,
        last_kind=kinds,
        ends_sentence=no,
    )
