"""A model's weights, each under one name."""

from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from sslm.models.head import LanguageModel

OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True, strict=False)
"""How torch is to name them: as in the model before it was wrapped, sharded and compiled."""


def weights_of(network: LanguageModel) -> dict[str, Any]:
    """Name -> weight or saved buffer, plain or DTensor; they share memory with the network's."""
    tied = {f"model.{name}" for name in tied_names(network.model)}
    return {n: tensor for n, tensor in get_model_state_dict(network, options=OPTIONS).items() if n not in tied}


def tied_names(model: nn.Module) -> set[str]:
    """Names of weights that are other weights' second name."""
    return set(getattr(model, "all_tied_weights_keys", None) or {})


def local_part(tensor: Tensor) -> Tensor:
    """This device's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
