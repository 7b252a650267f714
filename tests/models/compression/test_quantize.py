"""Quantized folders: what transformers loads is what was made, and what can't be made is refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sslm.models.architecture import read_config
from sslm.models.compression.layers import linear_layers
from sslm.models.compression.packed import dequantized, rounded
from sslm.models.compression.plain import load
from sslm.models.compression.quantize import Quantization, check, quantize
from sslm.models.quantized import library_of
from sslm.system.errors import UserError
from tests.support.trained import byte_level, save_model

IDS = torch.arange(5, 15)[None]
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "initializer_range": 0.5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    there, tokenizer = tmp_path_factory.mktemp("models"), byte_level("the cat sat on the mat")
    models = {name: save_model(there / name, name, tokenizer) for name in ("llama", "t5")}
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(save_model.__globals__["SIZES"], "gpt2", GPT2)
        return models | {"gpt2": save_model(there / "gpt2", "gpt2", tokenizer)}


def inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    return {"input_ids": IDS} | ({"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {})


def logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(**inputs(model)).logits
    return found


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("llama", Quantization("int8")),
        ("llama", Quantization("int8-dynamic")),
        ("llama", Quantization("int8", embeddings=True)),
        ("llama", Quantization("int4", 8, embeddings=True)),
        ("gpt2", Quantization("int8")),
        ("gpt2", Quantization("int4", 16)),
        ("t5", Quantization("int4", 8)),
        ("llama", Quantization("int4-gptq", 8, embeddings=True)),
        ("gpt2", Quantization("int4-gptq", 16)),
        ("t5", Quantization("int4-gptq", 8)),
    ],
)
def test_transformers_loads_what_was_made(
    folders: dict[str, Path], tmp_path: Path, name: str, how: Quantization
) -> None:
    original = load(folders[name])
    check(original, how)
    made = quantize(folders[name], tmp_path, how, [inputs(original)])
    packed = how.is_int4 or name == "gpt2"
    assert library_of(read_config(str(tmp_path), "")) == ("compressed-tensors" if packed else "torchao")
    assert torch.equal(logits(load(tmp_path)), logits(made))
    difference = (logits(made) - logits(original)).norm() / logits(original).norm()
    assert 0 < difference < (0.5 if how.is_int4 else 0.1)
    size, before = ((folder / "model.safetensors").stat().st_size for folder in (tmp_path, folders[name]))
    assert size < before


def test_no_weight_is_further_than_half_a_step_from_what_it_is_rounded_to() -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    weight[0, :16] = 0
    numbers, scales = rounded(weight, 4, 16)
    assert (numbers.min(), numbers.max()) == (-8, 7)
    steps = scales.repeat_interleave(16, dim=1)
    assert ((dequantized(numbers, scales) - weight).abs() <= 0.5001 * steps).all()
    assert not dequantized(numbers, scales)[0, :16].any()


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("llama", Quantization("int4", 32), r"rows of .*q_proj have 16 weights, .* give --group_size 16"),
        ("gpt2", Quantization("int8-dynamic"), r"doesn't know GPT2LMHeadModel's layers \(Conv1D\)"),
        ("gpt2", Quantization("int8", embeddings=True), "transformer.wte is the head's matrix, too"),
    ],
)
def test_what_cant_be_quantized_is_told(folders: dict[str, Path], name: str, how: Quantization, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(load(folders[name]), how)


def test_experts_are_refused() -> None:
    config = AutoConfig.for_model("mixtral", vocab_size=32, hidden_size=16, num_attention_heads=8, num_hidden_layers=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match="MixtralForCausalLM's experts are one tensor a block, which is not quantized"):
        check(model, Quantization("int4-gptq", 8))


def test_a_model_without_linear_layers_in_blocks_is_refused(tmp_path: Path) -> None:
    model = load(save_model(tmp_path, "sslm_lstm", byte_level("a cat")))
    assert not linear_layers(model)
    with pytest.raises(UserError, match="LstmForCausalLM has no blocks with linear layers"):
        check(model, Quantization("int8"))
