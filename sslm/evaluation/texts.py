"""Texts as they are named on a command line, and as a model was trained to read them."""

import re
from pathlib import Path

from sslm.data.corpus.tokenizer import TokenRules
from sslm.runs.trained import Trained
from sslm.system.errors import UserError, without_secrets
from sslm.system.paths import followed


def named(text: str) -> tuple[str, str]:
    """Split NAME=PATH, or name a path by its last part, up to a dot.

    >>> named("wiki=data/wiki.txt"), named("data/wiki.txt"), named("s3://bucket/a=b/")
    (('wiki', 'data/wiki.txt'), ('wiki', 'data/wiki.txt'), ('a=b', 's3://bucket/a=b/'))

    Raises:
        UserError: it is empty, which would be this folder.
    """
    if not text:
        raise UserError("--data: the path is empty; give text or a corpus")
    name, equals, path = text.partition("=")
    if equals and path and re.fullmatch(r"[\w.-]+", name) and not Path(text).exists():
        return name, followed(path)
    last = without_secrets(text).rstrip("/").rpartition("/")[2]
    return last.split(".")[0] or last, followed(text)


def rules_of(trained: Trained) -> TokenRules:
    """How a document became ids when the model was trained."""
    data = trained.settings.get("data", {})
    return TokenRules(**{name: data[name] for name in TokenRules._fields if isinstance(data.get(name), str)})
