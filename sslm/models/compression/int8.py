"""int8 by torchao: a scale for each row of a matrix; if dynamic, activations too, with a scale for each token."""

from pathlib import Path

from transformers import PreTrainedModel

from sslm.models.compression.layers import embedding, linear_layers
from sslm.models.compression.plain import load


def write(folder: Path, out: Path, dynamic: bool, embeddings: bool) -> PreTrainedModel:
    """Quantize a folder's model into another folder, and return it.

    `TorchAoConfig` at load is the one way that `save_pretrained` understands afterwards. It names weights, not layers:
    of a layer's name transformers quantizes the bias, too.
    """
    from torchao.quantization import FqnToConfig, Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    of_layers = Int8DynamicActivationInt8WeightConfig() if dynamic else Int8WeightOnlyConfig()
    plain = load(folder, device_map="meta")
    weights = {f"{name}.weight": of_layers for name in linear_layers(plain)}
    if embeddings:
        weights[f"{embedding(plain)[0]}.weight"] = Int8WeightOnlyConfig()
    model = load(folder, quantization_config=TorchAoConfig(FqnToConfig(weights)))
    model.save_pretrained(out)
    return model
