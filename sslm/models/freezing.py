"""Parts of a model whose weights stay as they are: its embeddings, its first blocks."""

import re
from typing import NamedTuple

from transformers import PreTrainedModel

from sslm.models.blocks import blocks
from sslm.system.errors import UserError, short

BLOCKS = re.compile(r"blocks:(\d+)")


class Frozen(NamedTuple):
    """What is not trained."""

    embeddings: bool = False
    """Input embeddings, with a head that shares their weights."""
    num_blocks: int = 0
    """How many of the first blocks; an encoder's come before its decoder's."""


def parse_freeze(text: str) -> Frozen:
    """Parse what `--model.freeze` takes.

    >>> parse_freeze("embeddings,blocks:6")
    Frozen(embeddings=True, num_blocks=6)

    Raises:
        UserError: a part is neither.
    """
    frozen = Frozen()
    for part in text.split(","):
        if part.strip() == "embeddings":
            frozen = frozen._replace(embeddings=True)
        elif found := BLOCKS.fullmatch(part.strip()):
            frozen = frozen._replace(num_blocks=int(found[1]))
        else:
            raise UserError(f"--model.freeze {short(text)}: expected embeddings, blocks:6, or embeddings,blocks:6")
    return frozen


def freeze(model: PreTrainedModel, frozen: Frozen) -> None:
    """Keep gradients from parts of a model, in place.

    Raises:
        UserError: it has fewer blocks, or nothing would be left to train.
    """
    there = blocks(model)
    if frozen.num_blocks > len(there):
        what = f"a {model.config.model_type} of this size has {len(there)}"
        raise UserError(f"--model.freeze blocks:{frozen.num_blocks}: {what}; give fewer")
    embedding = [model.get_input_embeddings()] if frozen.embeddings else []
    for part in [*embedding, *there[: frozen.num_blocks]]:
        part.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("--model.freeze: nothing is left to train; freeze less")
