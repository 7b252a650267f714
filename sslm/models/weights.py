"""A model's weights, each under one name."""

import hashlib
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from sslm.models.network import Network

Model = TypeVar("Model", bound=nn.Module)
OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True, strict=False)
"""Name weights as in the model before it was wrapped, sharded and compiled."""


def weights_of(network: Network) -> dict[str, Any]:
    """Map names to weights and saved buffers, plain or DTensor, which share memory with the network's."""
    tied = {f"model.{name}" for name in tied_names(network.model)}
    return {n: tensor for n, tensor in get_model_state_dict(network, options=OPTIONS).items() if n not in tied}


def tied_names(model: nn.Module) -> set[str]:
    """Second names of weights that stand under two."""
    return set(tied_to(model))


def tied_to(model: nn.Module) -> dict[str, str]:
    """Map second names of weights that stand under two to their first."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def in_fp32(model: Model) -> Model:
    """Cast a model to fp32, in place; one with torchao's tensors of 8 bits stays as it is.

    transformers' own `float()` refuses what was read from fewer bits, even if its weights are plain by now.
    """
    plain = (torch.Tensor, nn.Parameter)
    is_plain = all(type(weight) in plain and type(weight.data) in plain for weight in model.parameters())
    return nn.Module.float(model) if is_plain else model


def sha256_of_weights(model: nn.Module) -> str:
    """Hash a whole model's weights and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def local_part(tensor: Tensor) -> Tensor:
    """Part of a tensor that this device holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()
