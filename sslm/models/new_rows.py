"""Rows for new tokens in a trained model: embeddings and head begin with the mean of the pieces' rows.

The logits of all other tokens are as before, given a text without new tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sslm.models.architecture import set_vocab_size
from sslm.models.head import UNPADDED
from sslm.system.errors import UserError


def add_rows(model: PreTrainedModel, pieces: Mapping[int, Sequence[int]]) -> None:
    """Give new tokens their rows, in the embeddings, and in the head with its bias, tied or not.

    Args:
        pieces: new id -> ids whose rows it begins with the mean of.

    Raises:
        UserError: the model has no row for a piece: the tokenizer is another model's.
    """
    embeddings: Any = model.get_input_embeddings()
    size: int = embeddings.weight.shape[0]
    if (largest := max(id for ids in pieces.values() for id in ids)) >= size:
        raise UserError(f"the tokenizer has an entry {largest}, but the model only {size} rows: it is another model's")
    if (wanted := max(pieces) + 1) > size:
        model.resize_token_embeddings(wanted, mean_resizing=False)
        set_vocab_size(model.config, wanted)
    if hasattr(model.config, UNPADDED):
        delattr(model.config, UNPADDED)
    with torch.no_grad():
        for table in _tables(model):
            for new, ids in pieces.items():
                table[new] = table[list(ids)].float().mean(0).to(table.dtype)


def _tables(model: PreTrainedModel) -> Iterator[Tensor]:
    """Yield what has a row for each token, once each: [rows, …]."""
    halves = [getattr(model, name)() for name in ("get_encoder", "get_decoder") if hasattr(model, name)]
    owners = [model, *(half for half in halves if isinstance(half, PreTrainedModel))]
    modules = [owner.get_input_embeddings() for owner in owners]
    modules.append(model.get_output_embeddings())
    seen: set[int] = set()
    for module in filter(None, modules):
        for name in ("weight", "bias"):
            table = getattr(module, name, None)
            if isinstance(table, nn.Parameter) and table.data_ptr() not in seen:
                seen.add(table.data_ptr())
                yield table
