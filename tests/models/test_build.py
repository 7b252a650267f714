"""Models: initial weights, configs, what stands around them."""

import io
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, GPT2Config, LlamaConfig, PreTrainedConfig, XLNetConfig

from sslm.data.corpus.tokenizer import load as load_tokenizer
from sslm.data.corpus.tokenizer import special_ids
from sslm.models.architecture import class_named, model_config, read_config
from sslm.models.blocks import blocks
from sslm.models.build import build, check_causal, check_runs, construct, on_meta
from sslm.models.head import LanguageModel, sample
from sslm.objectives.causal_lm import CausalLM
from sslm.parallel.parallelize import parallelize
from sslm.parallel.recompute import Recompute
from sslm.system.errors import UserError

AUTO = "AutoModelForCausalLM"
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = ["llama", "gpt2", "qwen3", "mistral", "gpt_neox", "opt", "gemma2", "olmo2", "bert"]


def small(model_type: str, **settings: object) -> PreTrainedConfig:
    extra = {"intermediate_size": 64} if model_type not in ("gpt2", "opt", "openai-gpt") else {}
    extra |= {"num_key_value_heads": 2} if model_type in ("llama", "qwen3", "mistral", "gemma2", "olmo2") else {}
    return model_config(
        {**SMALL, **extra, **settings},
        model_type=model_type,
        default=CausalLM.default_model,
        auto_class=AUTO,
        vocab_size=64,
        seq_len=16,
        special_ids={"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": None},
    )


@pytest.mark.parametrize("model_type", FAMILIES)
def test_fresh_weights_depend_on_seed_and_name_only(model_type: str) -> None:
    config = small(model_type)
    torch.manual_seed(1)
    a = build(config, AUTO, seed=0).state_dict()
    torch.manual_seed(2)
    b = build(config, AUTO, seed=0).state_dict()
    other = build(config, AUTO, seed=1).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(torch.isfinite(tensor).all() for tensor in a.values())
    assert any(not torch.equal(a[name], other[name]) for name in a)


def test_layers_first_weights_are_the_same_in_a_deeper_model() -> None:
    a = build(small("llama"), AUTO, 0).state_dict()
    b = build(small("llama", num_hidden_layers=3), AUTO, 0).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_no_position_sees_what_comes_after_it(model_type: str) -> None:
    model = build(small(model_type), AUTO, 0)
    check_causal(model)
    network = LanguageModel(model).eval()
    ids = torch.randint(1, 64, (1, 16))
    changed = ids.clone()
    changed[0, 10:] = (changed[0, 10:] + 7) % 64
    with torch.no_grad():
        before, after = network(input_ids=ids), network(input_ids=changed)
    assert torch.allclose(before[:, :10], after[:, :10], atol=1e-6)
    assert not torch.allclose(before[:, 10:], after[:, 10:], atol=1e-3)


def test_model_that_sees_the_future_is_refused() -> None:
    xlnet = XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=2, d_inner=64)
    with pytest.raises(UserError, match="xlnet: is not causal"):
        check_causal(build(xlnet, AUTO, 0))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_summed_loss_is_transformers_mean_loss(model_type: str) -> None:
    model = build(small(model_type), AUTO, 0).eval()
    ids = torch.randint(1, 64, (2, 16))
    with torch.no_grad():
        theirs = model(input_ids=ids, labels=ids).loss
        ours = LanguageModel(model)(labels=ids[:, 1:], input_ids=ids[:, :-1]).sum() / (2 * 15)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_has_its_blocks(model_type: str) -> None:
    assert len(blocks(on_meta(small(model_type), AUTO))) == 2


def test_another_architecture_discards_the_defaults_of_the_former() -> None:
    def config(model_type: str | None, **settings: object) -> PreTrainedConfig:
        return model_config(
            dict(settings),
            model_type=model_type,
            default=CausalLM.default_model,
            auto_class=AUTO,
            vocab_size=300,
            seq_len=48,
            special_ids={},
        )

    assert config(None).hidden_size == CausalLM.default_model["hidden_size"]
    assert config("llama", num_hidden_layers=1).hidden_size == CausalLM.default_model["hidden_size"]
    assert config("gpt2").n_embd == GPT2Config().n_embd
    assert config("gpt2", hidden_size=64).n_embd == 64
    assert (config("gpt2").vocab_size, config("gpt2").n_positions) == (320, 48)  # rounded up to a multiple of 64
    assert config(None, max_position_embeddings=99).max_position_embeddings == 99
    with pytest.raises(UserError, match="did you mean n_embd"):
        config("gpt2", n_emb=3)


def gradients(**how: object) -> list[torch.Tensor]:
    torch.manual_seed(0)
    ids = torch.randint(1, 64, (2, 17))
    network = LanguageModel(build(small("llama"), AUTO, 0)).train()
    parallelize(network, network.model, None, **how)  # type: ignore[arg-type]
    network(labels=ids[:, 1:], input_ids=ids[:, :-1]).sum().backward()
    return [p.grad for p in network.parameters() if p.grad is not None]


def test_activation_checkpointing_changes_no_gradient() -> None:
    pairs = zip(gradients(), gradients(recomputation=Recompute("full")), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compilation_changes_no_gradient_and_samples_compile_nothing_anew(no_kernels: None) -> None:
    from torch._dynamo.utils import counters

    pairs = zip(gradients(), gradients(compiled="block"), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)
    assert counters["stats"]["unique_graphs"] >= 1
    network = LanguageModel(build(small("llama"), AUTO, 0)).eval()
    parallelize(network, network.model, None, compiled="block")
    sample(network, torch.ones(1, 3, dtype=torch.long), 16, 2, seed=0)
    compiled = counters["stats"]["unique_graphs"]
    sample(network, torch.ones(1, 5, dtype=torch.long), 16, 8, seed=0)
    assert counters["stats"]["unique_graphs"] == compiled


def test_bf16_weights_keep_fp32_buffers_and_loss() -> None:
    network = LanguageModel(build(small("llama"), AUTO, 0))
    parallelize(network, network.model, None, in_bf16=True)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in network.buffers()} == {torch.float32}
    ids = torch.randint(1, 64, (2, 17))
    assert network(labels=ids[:, 1:], input_ids=ids[:, :-1]).dtype == torch.float32


@pytest.mark.parametrize("model_type", [*FAMILIES, "openai-gpt"])
def test_weights_are_never_what_memory_held_before(model_type: str) -> None:
    config = small(model_type)
    torch.use_deterministic_algorithms(True)  # fresh memory is NaN then
    try:
        weights = build(config, AUTO, 0).state_dict()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


EVIL = "import pathlib; pathlib.Path('made').touch()\nclass Evil: pass\n"


def test_code_beside_a_checkpoint_is_neither_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "evil.py").write_text(EVIL)
    own = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Evil")
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": own}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}})
    )
    with pytest.raises(UserError, match="no model could be loaded"):
        read_config(str(folder))
    with pytest.raises(UserError, match="no tokenizer could be loaded"):
        load_tokenizer(folder)
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.auto_map = own
    assert type(construct(config, "AutoModelForCausalLM")).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["pipeline", "Trainer", "os", "LlamaModel", "__loader__", ""])
def test_an_architecture_is_a_language_model(name: str) -> None:
    with pytest.raises(UserError, match="no such language model"):
        class_named(name)


def test_padding_id_that_ends_documents_too_is_left_out() -> None:
    class Ids:
        bos_token_id, eos_token_id, pad_token_id = 1, 2, 2

    ids = special_ids(Ids())  # type: ignore[arg-type]
    assert (ids["bos_token_id"], ids["eos_token_id"], ids["pad_token_id"]) == (1, 2, None)


def test_where_nothing_ends_a_text_by_name_the_separator_does() -> None:
    class Ids:
        eos_token_id, sep_token_id, pad_token_id = None, 3, 0

    ids = special_ids(Ids())  # type: ignore[arg-type]
    assert ids["eos_token_id"] == 3
    bart = model_config(
        {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1},
        model_type="bart",
        default={"model_type": "bart"},
        auto_class="AutoModelForSeq2SeqLM",
        vocab_size=64,
        seq_len=16,
        special_ids=ids,
    )
    assert (bart.decoder_start_token_id, bart.eos_token_id, bart.forced_eos_token_id) == (3, 3, 3)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_a_model_that_classifies_by_its_end_of_text_is_tried_with_one(name: str) -> None:
    sizes = {"d_model": 16, "num_layers": 1, "encoder_layers": 1, "decoder_layers": 1}
    config = AutoConfig.for_model(
        name, vocab_size=16, eos_token_id=3, pad_token_id=0, decoder_start_token_id=0, **sizes
    )
    check_runs(on_meta(config, "AutoModelForSequenceClassification"), "AutoModelForSequenceClassification")


def test_a_model_with_several_ends_of_text_is_tried() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=16, eos_token_id=[3, 700], **sizes)
    check_runs(on_meta(config, "AutoModelForCausalLM"), "AutoModelForCausalLM")
