"""How many tokens a text is for a tokenizer."""

import functools
import os
from collections.abc import Callable

from sslm.data.corpus.tokenizer import TokenRules, load, text_encoder

Count = Callable[[str], int]


@functools.cache
def token_counter(tokenizer: str) -> Count:
    """Make a function from a text to its number of tokens, none of them around it; special tokens' names are text.

    Args:
        tokenizer: folder or name.

    Raises:
        UserError: it can't be loaded.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the cores are taken by processes
    encode = text_encoder(load(tokenizer, "--tokenizer "), TokenRules())
    return lambda text: sum(len(ids) for ids in encode([text]))
