"""The linear layer that a language model ends with, and its loss without the logits of all tokens.

What stands between the layer's outputs and the logits is told by the model's config: a scale (Cohere, Granite), a soft
cap (Gemma), a bias (BART). `suits` tries on a few tokens whether that is all, for no list of architectures could tell.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from transformers import PreTrainedConfig, PreTrainedModel

from sslm.models.blocks import evaluating
from sslm.models.linear_cross_entropy import LinearLosses, Loss, are_few, linear_cross_entropy
from sslm.models.outputs import LastLayer, Outputs
from sslm.models.probe import probe_tokens


class LinearHead:
    """The last layer of a model, to compute a loss with instead of logits.

    Args:
        model: has a linear layer as its output embeddings.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = [model]  # in a list: whoever has this may be a module, and the model's owner
        self._hidden: Tensor | None = None
        self._keeps_hidden = False
        self.handle = self._layer.register_forward_pre_hook(self._keep_hidden)

    @property
    def _layer(self) -> nn.Linear:
        layer: Any = self._model[0].get_output_embeddings()
        return layer  # type: ignore[no-any-return]

    def serves(self, targets: Tensor) -> bool:
        """Whether there are too many logits to make them at once, and this device has the weight, or its classes."""
        weight = self._layer.weight
        if isinstance(weight, DTensor):
            return weight.placements == (Shard(0),)
        return not are_few(targets.numel(), len(weight), weight.device.type)

    @contextmanager
    def kept_from(self) -> Iterator[None]:
        """Show the layer one place of each row meanwhile, whose logits nobody reads; `losses` takes what came to it."""
        self._keeps_hidden = True
        try:
            yield
        finally:
            self._keeps_hidden = False

    def _keep_hidden(self, layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if not self._keeps_hidden:
            return arguments
        self._hidden = arguments[0]
        return (arguments[0][:, :1].detach(), *arguments[1:])

    def losses(self, targets: Tensor, num_classes: int, label_smoothing: float, z_loss: float) -> LinearLosses:
        """Sum each row's loss at the places that came to the layer.

        Args:
            targets: [batch, places]
        """
        weight: Any = self._layer.weight
        group = weight.device_mesh.get_group() if isinstance(weight, DTensor) else None
        made = self.outputs(targets, num_classes)
        hidden, layer = made.states, made.layer
        assert layer is not None
        loss = Loss(num_classes, label_smoothing, z_loss, layer.scale, layer.soft_cap, group)
        return linear_cross_entropy(hidden, layer.weight, layer.bias, targets, loss)

    def outputs(self, targets: Tensor, num_classes: int) -> Outputs:
        """Return what came to the layer, and the layer, of which a device that shares its classes has some.

        Args:
            targets: [batch, places]
        """
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        model, layer = self._model[0], self._layer
        bias: Any = layer.bias if layer.bias is not None else getattr(model, "final_logits_bias", None)
        weight, bias = (x.to_local() if isinstance(x, DTensor) else x for x in (layer.weight, bias))
        last = LastLayer(weight, None if bias is None else bias.flatten(), *outputs_to_logits(model.config))
        return Outputs(hidden, targets, num_classes, last)


def outputs_to_logits(config: PreTrainedConfig) -> tuple[float, float | None]:
    """Return what a model's outputs are multiplied by, and their soft cap, or None if there is none."""
    decoder = getattr(config, "decoder", config)  # T5Gemma has one config for each half
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None) or getattr(decoder, "final_logit_softcapping", None)
    return scale, cap


def ends_in_linear(model: PreTrainedModel) -> bool:
    """Whether a model's output embeddings are a linear layer and nothing else."""
    return type(model.get_output_embeddings()) is nn.Linear


@torch.no_grad()
def suits(model: PreTrainedModel) -> bool:
    """Try on a few tokens whether a model's losses can be had from its last layer's inputs."""
    if not ends_in_linear(model):
        return False
    ids = probe_tokens(model)
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    head = LinearHead(model)
    try:
        with evaluating(model):
            logits: Tensor = model(**inputs, use_cache=False).logits.double()
            with head.kept_from():
                model(**inputs, use_cache=False)
        ours = head.losses(ids, logits.shape[-1], 0.0, 0.0).rows
    except Exception:  # each architecture has its own way to look at its logits
        return False
    finally:
        head.handle.remove()
    exact = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids).sum(1)
    return torch.allclose(ours.double(), exact, rtol=1e-4)
