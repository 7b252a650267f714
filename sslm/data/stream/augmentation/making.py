"""The noise that a run asks for, for each of its corpora."""

from collections.abc import Sequence

import numpy as np

from sslm.config import DataConfig
from sslm.config.augment import Augment
from sslm.data.corpus import tokenizer as tokenizers
from sslm.data.corpus.shards import Corpus
from sslm.data.stream.augmentation.augmenter import Augmenter
from sslm.data.stream.augmentation.words import Spelling
from sslm.data.stream.vocabulary import vocabulary_of
from sslm.system.errors import UserError


def refuse_rows(data: DataConfig) -> None:
    """Refuse noise in labelled rows: UserError."""
    if asked := [augment.setting for augment in data.augments if augment]:
        raise UserError(
            f"--data.augment {asked[0]}: is for running text, and labelled rows are read as they are; leave it out"
        )


def augmenters_of(
    data: DataConfig, corpora: Sequence[Corpus], tokenizer: str | None, seed: int
) -> list[Augmenter | None]:
    """Make each training corpus' noise, None where there is to be none.

    Raises:
        UserError: it is made in words, and there is no tokenizer, or none that tells words apart.
    """
    if not any(data.augments):
        return [None] * len(corpora)
    vocab_size = max(corpus.vocab_size for corpus in corpora)
    spelling, special = None, np.zeros(vocab_size, bool)
    if tokenizer is not None:
        loaded = tokenizers.load(tokenizer)
        spelling = Spelling(loaded, vocabulary_of(loaded), vocab_size)
        special = np.pad(
            spelling.vocabulary.special, (0, max(vocab_size - spelling.vocabulary.size, 0)), constant_values=True
        )
    elif data.end_id is not None and data.end_id < vocab_size:
        special[data.end_id] = True
    for augment in data.augments:
        _check(augment, spelling)
    return [Augmenter(augment, seed, special, spelling) if augment else None for augment in data.augments]


def _check(augment: Augment, spelling: Spelling | None) -> None:
    if not augment.words:
        return
    if spelling is None:
        why = f"{next(iter(augment.words))} edits text, and the corpus is ids without a tokenizer"
        raise UserError(f"--data.augment {augment.setting}: {why}; give --data.tokenizer, or noise on tokens alone")
    vocabulary = spelling.vocabulary
    if (augment.typos or augment.ocr) and vocabulary.begins_word[vocabulary.ordinary].all():
        why = "this tokenizer's tokens don't say where words begin, which typos and ocr need"
        raise UserError(f"--data.augment {augment.setting}: {why}; leave these two out")
