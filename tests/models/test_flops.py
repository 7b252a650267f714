"""Closed forms of FLOPs are what torch counts of a step's matmuls, for each kind of model."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, LlamaConfig, PreTrainedModel, T5Config

from sslm.models import flops
from sslm.models.build import build, on_meta
from sslm.models.lstm import LstmConfig

SEQ_LEN, TARGET_LEN = 32, 12
WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
GROUPED = {**WIDTHS, "num_key_value_heads": 2}
D_MODEL = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BART = {f"{half}_{key}": n for half in ("encoder", "decoder") for key, n in (("ffn_dim", 48), ("attention_heads", 4))}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6}
DEEPSEEK = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GROUPS = {"num_key_value_heads": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
SPARSE = {"num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}


def grouped_mm(a: Any, b: Any, *rest: Any, out_shape: Any = None, **more: Any) -> int:
    """FLOPs of a grouped matmul; b is [groups, k, n], or [m, n] if a's rows are what is summed over."""
    return int(2 * a[0] * a[1] * b[-1])


def counted(model: PreTrainedModel, target_len: int = SEQ_LEN) -> Counter[str]:
    """What torch counts of a forward and backward pass over one row, by operation; attention written out."""
    ids, labels = (torch.arange(n)[None] % 64 + 3 for n in (SEQ_LEN, target_len))
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: grouped_mm}) as counter:
        model(input_ids=ids, labels=labels).loss.backward()
    found: Counter[str] = Counter()
    for operation, number in counter.get_flop_counts()["Global"].items():
        found[str(operation).removeprefix("aten.")] += number
    return found


def small(name: str, auto_class: str = "AutoModelForCausalLM", **settings: Any) -> PreTrainedModel:
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = AutoConfig.for_model(name, **{"vocab_size": 96, "decoder_start_token_id": 0, **special, **settings})
    config._attn_implementation = "eager"
    return build(config, auto_class, 0)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
        ("llama", GROUPED),
        ("qwen3", {**GROUPED, "head_dim": 16}),
        ("bert", WIDTHS),
        ("albert", {**WIDTHS, "embedding_size": 16}),
        ("mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
        ("qwen2_moe", {**GROUPED, "num_experts": 4, "moe_intermediate_size": 24, "decoder_sparse_step": 2}),
        ("deepseek_v3", {**WIDTHS, **MLA, **DEEPSEEK, **GROUPS}),
        ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2}),
    ],
)
def test_flops_are_those_of_all_matmuls(name: str, settings: dict[str, Any]) -> None:
    model = small(name, "AutoModelForMaskedLM" if "bert" in name else "AutoModelForCausalLM", **settings)
    assert flops.flops_per_sequence(model, SEQ_LEN, SEQ_LEN) == counted(model).total()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("t5", {**D_MODEL, "num_decoder_layers": 3}),
        ("bart", {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, **BART}),
        ("switch_transformers", {**D_MODEL, **SPARSE}),
    ],
)
def test_flops_of_an_encoder_decoder_are_those_of_all_matmuls(name: str, settings: dict[str, Any]) -> None:
    model = small(name, "AutoModelForSeq2SeqLM", **settings)
    assert flops.flops_per_sequence(model, SEQ_LEN, TARGET_LEN) == counted(model, TARGET_LEN).total()


@pytest.mark.parametrize(
    ("name", "settings", "layers", "reach"),
    [
        ("mistral", {**GROUPED, "sliding_window": 8}, 4, 8),
        ("gpt_oss", {**GROUPED, "head_dim": 8, "sliding_window": 8, "num_local_experts": 4}, 2, 8),
        ("modernbert", {**WIDTHS, "local_attention": 8}, 2, 8),
    ],
)
def test_a_window_counts_with_the_places_it_reaches(
    name: str, settings: dict[str, Any], layers: int, reach: int
) -> None:
    model = small(name, "AutoModelForMaskedLM" if "bert" in name else "AutoModelForCausalLM", **settings)
    out_of_reach = 12 * layers * 32 * (SEQ_LEN - reach) * SEQ_LEN  # transformers multiplies, and masks
    assert flops.flops_per_sequence(model, SEQ_LEN, SEQ_LEN) == counted(model).total() - out_of_reach


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_a_state_space_counts_with_its_state_and_convolution(name: str) -> None:
    heads = {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8} if name == "mamba2" else {}
    model = small(name, hidden_size=32, num_hidden_layers=2, state_size=4, **heads)
    found = counted(model)
    convolution = 3 * found["convolution"] * SEQ_LEN // (SEQ_LEN + 3)  # torch counts the padding, too
    state = 12 * 2 * 64 * 4 * SEQ_LEN
    assert flops.flops_per_sequence(model, SEQ_LEN, SEQ_LEN) == found["mm"] + convolution + state
    if name == "mamba":  # it is read by a matmul, and written elementwise
        assert found["bmm"] == state / 2


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of torch, when oneDNN is switched off
def test_an_lstm_counts_with_its_gates() -> None:
    model = build(LstmConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2), "AutoModelForCausalLM", 0)
    with torch.backends.mkldnn.flags(enabled=False):  # else all is one operation, which torch does not count
        found = counted(model)
    first_state = 2 * (2 * 32 * 4 * 32)  # of zeros, which takes no gradient, in two layers
    assert flops.flops_per_sequence(model, SEQ_LEN, SEQ_LEN) == found.total() + first_state


def test_flops_agree_with_published_counts() -> None:
    llama = LlamaConfig(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4
    )
    assert flops.flops_per_token(on_meta(llama, "AutoModelForCausalLM"), 2048) == pytest.approx(7.31e9, rel=0.005)
    gpt2 = on_meta(AutoConfig.for_model("gpt2"), "AutoModelForCausalLM")
    assert flops.flops_per_token(gpt2, 1024) == pytest.approx(855e6, rel=0.002)
    bert = on_meta(AutoConfig.for_model("bert"), "AutoModelForMaskedLM")
    assert flops.flops_per_token(bert, 512, 0.15) == pytest.approx(588e6, rel=0.001)
    v1_1 = T5Config(d_model=768, d_ff=2048, num_layers=12, num_heads=12, feed_forward_proj="gated-gelu")
    t5 = on_meta(v1_1, "AutoModelForSeq2SeqLM")
    assert flops.flops_per_sequence(t5, 512, 114) == pytest.approx(426e9, rel=0.001)
