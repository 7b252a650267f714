"""Low-rank adapters: merged, or put by peft onto the pretrained model, they are the network that was trained."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from sslm.config import Config, LoraConfig, ModelConfig
from sslm.models import adapters as adapting
from sslm.models.adapters import Adapters, adapt, adapter_weights, check_adapters, merged, trained_in_full
from sslm.models.architecture import model_config
from sslm.models.build import build, construct, load_pretrained, on_meta
from sslm.models.probe import probe_tokens
from sslm.models.weights import tied_names, tied_to
from sslm.system.errors import UserError

peft: Any = pytest.importorskip("peft")
SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
VOCABULARY = 64
FAMILIES = [
    ("bert", "AutoModelForMaskedLM", "AutoModelForSequenceClassification", {"bert.pooler.dense", "classifier"}),
    ("bert", "AutoModelForMaskedLM", "AutoModelForTokenClassification", {"classifier"}),
    ("t5", "AutoModelForSeq2SeqLM", "AutoModelForSeq2SeqLM", set()),
    ("t5", "AutoModelForSeq2SeqLM", "AutoModelForQuestionAnswering", {"qa_outputs"}),
    ("gpt2", "AutoModelForCausalLM", "AutoModelForCausalLM", set()),
    ("llama", "AutoModelForCausalLM", "AutoModelForSequenceClassification", {"score"}),
]


GROWN = [
    ("bert", "AutoModelForMaskedLM", "AutoModelForMaskedLM", {"bert.embeddings.word_embeddings", "cls.predictions"}),
    ("t5", "AutoModelForSeq2SeqLM", "AutoModelForSeq2SeqLM", {"shared", "lm_head"}),
    ("gpt2", "AutoModelForCausalLM", "AutoModelForCausalLM", {"transformer.wte", "lm_head"}),
    ("llama", "AutoModelForCausalLM", "AutoModelForCausalLM", {"model.embed_tokens", "lm_head"}),
    ("bert", "AutoModelForMaskedLM", "AutoModelForTokenClassification", {"bert.embeddings.word_embeddings"}),
]
"""Of these the vocabulary has new rows."""


def small(model_type: str, auto_class: str, vocab_size: int = VOCABULARY) -> PreTrainedModel:
    sizes = SMALL | ({"d_ff": 8, "d_kv": 4} if model_type == "t5" else {})
    config = model_config(
        sizes,
        model_type=model_type,
        default={"model_type": model_type},
        auto_class=auto_class,
        vocab_size=vocab_size,
        seq_len=16,
        special_ids={"pad_token_id": 0},
    )
    return build(config, auto_class, 0).eval()


def logits(model: Any) -> torch.Tensor:
    ids = probe_tokens(model)
    both = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        outputs = model(input_ids=ids, use_cache=False, **both) if both else model(input_ids=ids)
    return torch.as_tensor(outputs["logits" if "logits" in outputs else "start_logits"])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning")
@pytest.mark.parametrize(
    ("model_type", "pretrained_class", "auto_class", "whole", "num_new"),
    [*((*family, 0) for family in FAMILIES), *((*family, 6) for family in GROWN)],
)
def test_merged_and_in_peft_they_give_the_same_logits(
    model_type: str, pretrained_class: str, auto_class: str, whole: set[str], num_new: int, tmp_path: Path
) -> None:
    import transformers

    small(model_type, pretrained_class).save_pretrained(tmp_path / "base")
    config = small(model_type, auto_class, VOCABULARY + num_new).config
    chosen = Adapters(2, 4.0, 0.0, (), trained_in_full(str(tmp_path / "base"), config, auto_class))
    model = load_pretrained(str(tmp_path / "base"), config, auto_class, 0)[0].eval()
    before = logits(model)
    adapt(model, chosen, 0)
    assert torch.equal(logits(model.eval()), before)  # B is 0
    generator = torch.Generator().manual_seed(1)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for weight in trained.values():
            weight += torch.empty_like(weight).normal_(0, 0.5, generator=generator)
    after = logits(model)
    assert not torch.allclose(after, before)

    tied = tied_names(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in tied}
    on_paper = on_meta(config, auto_class)
    adapt(on_paper, chosen, 0)
    assert {n for n, w in on_paper.named_parameters() if w.requires_grad} == trained.keys()
    kept = {name: weights[tied_to(model).get(name, name)] for name in adapter_weights(on_paper, chosen)}
    adapting.write_adapter(tmp_path / "adapter", on_meta(config, auto_class), chosen, kept, str(tmp_path / "base"))
    plain = construct(config, auto_class).eval()
    plain.load_state_dict(merged(on_paper, weights), strict=False)
    plain.tie_weights()
    torch.testing.assert_close(logits(plain), after, rtol=1e-4, atol=1e-4)

    had = small(model_type, auto_class).config
    base = getattr(transformers, auto_class).from_pretrained(tmp_path / "base", config=had)
    if num_new:
        base.resize_token_embeddings(config.vocab_size)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(theirs), after, rtol=1e-5, atol=1e-6)
    assert set(theirs.peft_config["default"].modules_to_save or ()) >= whole


def test_a_new_row_of_padding_alone_is_not_trained(tmp_path: Path) -> None:
    small("llama", "AutoModelForCausalLM").save_pretrained(tmp_path)
    config = small("llama", "AutoModelForCausalLM", VOCABULARY + 1).config
    config.pad_token_id = VOCABULARY
    assert trained_in_full(str(tmp_path), config, "AutoModelForCausalLM") == ()
    config.pad_token_id = 0
    whole = ("model.embed_tokens.weight", "lm_head.weight")
    assert trained_in_full(str(tmp_path), config, "AutoModelForCausalLM") == whole


def test_layers_are_chosen_by_name() -> None:
    model = small("llama", "AutoModelForCausalLM")
    adapt(model, Adapters(2, 4.0, 0.0, ("q_proj", "mlp.up_proj"), ()), 0)
    trained = {name.partition(".lora_")[0] for name, weight in model.named_parameters() if weight.requires_grad}
    ends = itertools.product(range(2), ("self_attn.q_proj", "mlp.up_proj"))
    assert trained == {f"model.layers.{number}.{end}" for number, end in ends}
    with pytest.raises(UserError, match=r"has the name 'qproj' \(did you mean q_proj\?\); there are q_proj, k_proj"):
        adapt(small("llama", "AutoModelForCausalLM"), Adapters(2, 4.0, 0.0, ("qproj",), ()), 0)
    with pytest.raises(UserError, match="'lm_head'"):
        adapt(small("llama", "AutoModelForCausalLM"), Adapters(2, 4.0, 0.0, ("lm_head",), ()), 0)


def test_adapters_need_trained_weights_peft_and_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Config(lora=LoraConfig(rank=8))
    with pytest.raises(UserError, match="adapts a trained model, and none is given"):
        check_adapters(asked)
    with pytest.raises(UserError, match=r"--lora\.alpha 4: needs adapters"):
        check_adapters(Config(lora=LoraConfig(alpha=4)))
    monkeypatch.setattr(adapting, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"peft, which is not installed; pip install 'sslm\[lora\]'"):
        check_adapters(dataclasses.replace(asked, model=ModelConfig(pretrained="there")))
