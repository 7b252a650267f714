"""Documents of a packed row keep to themselves, in every family of models; an LSTM's state begins anew."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask
from transformers import AutoConfig, PreTrainedModel, masking_utils
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from sslm.models.attention import can_take_blocks
from sslm.models.build import build
from sslm.models.document_check import check_documents
from sslm.models.head import LanguageModel
from sslm.models.masks import FLEX, attention_within, positions_within
from sslm.parallel.parallelize import parallelize
from sslm.parallel.recompute import Recompute
from sslm.system.errors import UserError

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 16}
T5 = {
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
BART = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Family:
    model_type: str
    auto: str
    settings: dict[str, Any] = field(hash=False)
    name: str = ""
    restarts: bool = True
    """Positions begin anew with each document."""

    def __str__(self) -> str:
        return self.name or self.model_type

    @property
    def has_both(self) -> bool:
        return "Seq2Seq" in self.auto


def decoder(model_type: str, settings: dict[str, Any] = SMALL, **more: Any) -> Family:
    return Family(model_type, "AutoModelForCausalLM", settings, **more)


def encoder(model_type: str, **settings: Any) -> Family:
    return Family(model_type, "AutoModelForMaskedLM", {**SMALL, "intermediate_size": 64, **settings})


DECODERS = [
    decoder("llama", GROUPED),
    decoder("gpt2"),
    decoder("qwen3", GROUPED),
    decoder("mistral", {**GROUPED, "sliding_window": None}),
    decoder("mistral", {**GROUPED, "sliding_window": 3}, name="mistral-window"),
    decoder("gpt_neox", {**SMALL, "intermediate_size": 64}),
    decoder("opt", {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    decoder("gemma2", {**GROUPED, "sliding_window": 3}),
    decoder("gemma3_text", {**GROUPED, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}),
    decoder("olmo2", GROUPED),
    decoder(
        "llama4_text",
        {**GROUPED, "attention_chunk_size": 4, "intermediate_size_mlp": 64, "num_local_experts": 2},
        restarts=hasattr(masking_utils, "remap_positions_for_packed_sequence"),
    ),  # before, chunks count from the row's start
    decoder("gpt_oss", {**GROUPED, "sliding_window": 3, "num_local_experts": 2, "num_experts_per_tok": 1}),
    decoder("bloom", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 2}),
    decoder("bert", {**SMALL, "intermediate_size": 64, "is_decoder": True}, name="bert-decoder"),
    decoder("sslm_lstm", {**SMALL}),
]
ENCODERS = [
    encoder("bert"),
    encoder("roberta"),
    encoder("modernbert", local_attention=4),
    encoder("electra", embedding_size=32),
    Family(
        "distilbert",
        "AutoModelForMaskedLM",
        {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    ),
    Family("mpnet", "AutoModelForMaskedLM", {**SMALL, "intermediate_size": 64}),
]
ENCODER_DECODERS = [
    Family("t5", "AutoModelForSeq2SeqLM", T5),
    Family(
        "t5",
        "AutoModelForSeq2SeqLM",
        {**T5, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
        "t5-v1.1",
    ),
    Family("bart", "AutoModelForSeq2SeqLM", BART, restarts=False),
    Family(
        "t5gemma",
        "AutoModelForSeq2SeqLM",
        {"vocab_size": 64, "encoder": {**GROUPED, "sliding_window": 3}, "decoder": {**GROUPED, "sliding_window": 3}},
    ),
]
FAMILIES = DECODERS + ENCODERS + ENCODER_DECODERS

LENGTHS = [[5, 8, 4], [9, 3, 5]]
SEGMENTS = torch.tensor([[0] * 5 + [1] * 8 + [2] * 4, [0] * 9 + [1] * 3 + [-1] * 5])
TARGETS = torch.tensor([[0] * 3 + [1] * 2 + [2] * 6, [0] * 4 + [1] * 3 + [-1] * 4])
"""Two rows; sources and targets differ in length. The second row ends with padding."""


@cache
def small(family: Family) -> PreTrainedModel:
    settings = {
        k: v for k, v in family.settings.items() if family.model_type != "sslm_lstm" or k != "num_attention_heads"
    }
    model = build(AutoConfig.for_model(family.model_type, **settings), family.auto, 0).eval()
    with torch.no_grad():  # at first some weights are so small that what they let through is lost in rounding
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(params=FAMILIES, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    found: Family = request.param
    return found


def tokens(like: Tensor, seed: int = 0) -> Tensor:
    return torch.randint(3, 64, like.shape, generator=torch.Generator().manual_seed(seed))


def inputs(family: Family, seed: int = 0) -> dict[str, Tensor]:
    both = {"decoder_input_ids": tokens(TARGETS, seed + 1)} if family.has_both else {}
    return {"input_ids": tokens(SEGMENTS, seed)} | both


def segments(family: Family) -> dict[str, Tensor]:
    return {"segment_ids": SEGMENTS} | ({"decoder_segment_ids": TARGETS} if family.has_both else {})


def documents(of: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """(row, its document, which of the row's tokens are the document's)"""
    for row in range(2):
        for document in range(int(of[row].max()) + 1):
            yield row, document, of[row] == document


def test_changing_a_document_changes_no_output_of_another(family: Family) -> None:
    network, given, other = LanguageModel(small(family)), inputs(family), inputs(family, seed=7)
    out = TARGETS if family.has_both else SEGMENTS
    with torch.no_grad():
        before = network(**given, **segments(family))
        for row, document, mine in documents(out):
            changed = {name: tensor.clone() for name, tensor in given.items()}
            for name, which in (("input_ids", SEGMENTS), ("decoder_input_ids", TARGETS)):
                if name in changed:
                    changed[name][row] = torch.where(which[row] == document, given[name][row], other[name][row])
            after = network(**changed, **segments(family))
            assert (before - after)[row][mine].abs().max() <= 1e-6, "another document is seen"
            assert (before - after)[row][~mine].abs().max() > 1e-3


def test_no_gradient_flows_from_a_documents_outputs_into_another(family: Family) -> None:
    model, given = small(family), inputs(family)
    out = TARGETS if family.has_both else SEGMENTS
    embedded: list[Tensor] = []
    parts = [model.get_encoder(), model.get_decoder()] if family.has_both else [model]
    hooks = [part.get_input_embeddings().register_forward_hook(lambda *how: embedded.append(how[-1])) for part in parts]
    logits = LanguageModel(model)(**given, **segments(family))
    for hook in hooks:
        hook.remove()
    assert len(embedded) == len(parts)
    for row, document, mine in documents(out):
        gradients = torch.autograd.grad(logits[row][mine].square().sum(), embedded, retain_graph=True)
        for gradient in gradients:
            which = SEGMENTS if gradient.shape[1] == SEGMENTS.shape[1] else TARGETS
            own = (which == document) & (torch.arange(2) == row)[:, None]
            assert gradient[own].abs().max() > 0
            assert gradient[~own].abs().max() == 0, "a gradient leaks"


def test_document_in_a_row_is_what_it_is_alone(family: Family) -> None:
    network, given = LanguageModel(small(family)), inputs(family)
    with torch.no_grad():
        together = network(**given, **segments(family))
        for row, document, mine in documents(TARGETS if family.has_both else SEGMENTS):
            own = {"input_ids": given["input_ids"][row][SEGMENTS[row] == document][None]}
            if family.has_both:
                own["decoder_input_ids"] = given["decoder_input_ids"][row][TARGETS[row] == document][None]
            alone = network(**own)[0]
            same = torch.allclose(together[row][mine], alone, atol=2e-5 * float(alone.abs().max()))
            assert same == (family.restarts or document == 0)


WINDOWED = [
    f
    for f in FAMILIES
    if "window" in str(f) or f.model_type in ("gemma2", "gemma3_text", "gpt_oss", "modernbert", "t5gemma")
]


@pytest.mark.parametrize("family", WINDOWED, ids=str)
def test_windows_are_kept(family: Family) -> None:
    network, given = LanguageModel(small(family)), inputs(family)
    whole = {name: torch.zeros_like(which) for name, which in segments(family).items()}
    wide = {k: v for k, v in family.settings.items() if k not in ("sliding_window", "local_attention")}
    if family.has_both:
        wide |= {part: {**GROUPED, "sliding_window": 99} for part in ("encoder", "decoder")}
    without = LanguageModel(small(Family(family.model_type, family.auto, wide, "wide")))
    with torch.no_grad():
        masked = network(**given, **whole)
        assert torch.allclose(masked, network(**given), atol=1e-4)
        assert not torch.allclose(masked, without(**given, **whole), atol=1e-2)


def test_padding_is_harmless(family: Family) -> None:
    model, given = small(family), inputs(family)
    network, which = LanguageModel(model), segments(family)
    labels = tokens(TARGETS if family.has_both else SEGMENTS, 3)
    labels[which["decoder_segment_ids" if family.has_both else "segment_ids"] < 0] = -100
    all_padding = {name: torch.cat([s, torch.full_like(s[:1], -1)]) for name, s in which.items()}
    longer = {name: torch.cat([ids, torch.zeros_like(ids[:1])]) for name, ids in given.items()}
    losses = network(torch.cat([labels, torch.full_like(labels[:1], -100)]), **longer, **all_padding)
    assert losses[2] == 0
    assert torch.allclose(losses[:2], network(labels, **given, **which), atol=1e-3)
    model.zero_grad()
    losses.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()
    other = {
        n: torch.where(s < 0, 0, given[n])
        for n, s in (("input_ids", SEGMENTS), ("decoder_input_ids", TARGETS))
        if n in given
    }
    assert torch.allclose(network(labels, **other, **which), losses[:2], atol=1e-3)


@pytest.mark.parametrize("family", ENCODER_DECODERS, ids=str)
def test_padded_target_of_a_source_without_padding_is_harmless(family: Family) -> None:
    model, given = small(family), inputs(family)
    logits = LanguageModel(model)(**given, segment_ids=SEGMENTS.clamp(0), decoder_segment_ids=TARGETS)
    logits.square().sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()


def test_segment_ids_say_what_padding_is_and_not_the_token() -> None:
    family = ENCODER_DECODERS[-1]  # T5Gemma hides padding by itself
    model, given = small(family), inputs(family)
    for ids in given.values():
        ids[:, ::3] = 0
    whole = {name: torch.zeros_like(which) for name, which in segments(family).items()}
    seen = {"attention_mask": torch.ones_like(SEGMENTS), "decoder_attention_mask": torch.ones_like(TARGETS)}
    with torch.no_grad():
        assert torch.allclose(LanguageModel(model)(**given, **whole), model(**given, **seen).logits, atol=1e-4)


def test_probe_allows_what_the_tests_allow(family: Family) -> None:
    check_documents(small(family))


def test_rounding_in_mixtures_of_experts_is_no_leak() -> None:
    settings = {**GROUPED, "moe_num_experts": 8, "moe_topk": 2}
    check_documents(build(AutoConfig.for_model("aria_text", **settings), "AutoModelForCausalLM", 0))


REFUSED = [
    (decoder("openai-gpt", {**SMALL}), "passes from one to the next"),
    (decoder("mamba", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}), "."),
    (
        decoder("xlnet", {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}),
        "passes from one to the next",
    ),
    (decoder("recurrent_gemma", {**GROUPED, "attention_window_size": 8, "lru_width": 32}), "."),
    (
        decoder(
            "qwen3_next",
            {
                **GROUPED,
                "layer_types": ["linear_attention", "full_attention"],
                "num_experts": 2,
                "num_experts_per_tok": 1,
                "moe_intermediate_size": 32,
                "shared_expert_intermediate_size": 32,
                "linear_num_value_heads": 2,
                "linear_num_key_heads": 2,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
            },
        ),
        "layers of type linear_attention",
    ),
    (Family("big_bird", "AutoModelForMaskedLM", {**SMALL, "intermediate_size": 64}), "attention_type original_full"),
    (Family("fnet", "AutoModelForMaskedLM", {**SMALL, "intermediate_size": 64}), "passes from one to the next"),
]


@pytest.mark.parametrize(("family", "why"), REFUSED, ids=lambda value: str(value).partition(" ")[0])
def test_architecture_that_cannot_is_refused_with_a_sentence(family: Family, why: str) -> None:
    with pytest.raises(UserError, match=f"document_mask true: {family.model_type} can't keep documents apart.*{why}"):
        check_documents(small(family))


def test_attention_without_explicit_masks_is_refused() -> None:
    model = build(AutoConfig.for_model("llama", **GROUPED), "AutoModelForCausalLM", 0)
    model.set_attn_implementation("flex_attention")
    with pytest.raises(UserError, match="flex_attention attention takes no explicit mask"):
        check_documents(model)


def test_masks_are_as_before_when_a_model_fails() -> None:
    before = {name: ALL_MASK_ATTENTION_FUNCTIONS[name] for name in ("sdpa", "eager")}
    with pytest.raises(IndexError):
        LanguageModel(small(DECODERS[0]))(input_ids=torch.full_like(SEGMENTS, 64), segment_ids=SEGMENTS)
    assert {name: ALL_MASK_ATTENTION_FUNCTIONS[name] for name in before} == before


def test_positions_restart_with_each_document() -> None:
    expected = [[*range(5), *range(8), *range(4)], [*range(9), *range(3), *range(5)]]
    assert positions_within(SEGMENTS).tolist() == expected
    assert positions_within(torch.zeros(1, 4, dtype=torch.int32)).tolist() == [[0, 1, 2, 3]]


KINDS = {
    "causal": masking_utils.causal_mask_function,
    "both ways": masking_utils.bidirectional_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(70),
}


OLD_NAMES = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # transformers' and torch's own, on torch 2.13


@OLD_NAMES
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_those_of_the_explicit_mask(kind: str) -> None:
    length, block = 300, 128
    documents = (torch.arange(length) // torch.tensor([[90], [130]])).int()
    how = {"batch_size": 2, "q_length": length, "kv_length": length, "mask_function": KINDS[kind], "device": "cpu"}
    with attention_within(documents), torch.compiler.set_stance("force_eager"):
        explicit = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](**how)
        blocks = ALL_MASK_ATTENTION_FUNCTIONS[FLEX](**how)
    assert torch.equal(create_mask(blocks.mask_mod, 2, 1, length, length, "cpu"), explicit)
    whole = torch.zeros(2, 1, 3 * block, 3 * block)
    whole[..., :length, :length] = explicit
    occupied = whole.view(2, 1, 3, block, 3, block).sum((3, 5)) > 0
    assert torch.equal(blocks.to_dense() > 0, occupied)
    assert not occupied.all()


@OLD_NAMES
@pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.model_type != "sslm_lstm"], ids=str)
def test_blocks_give_the_logits_of_the_explicit_mask(family: Family) -> None:
    model = build(AutoConfig.for_model(family.model_type, **family.settings), family.auto, 0).eval()
    if not can_take_blocks(model):
        assert family.model_type in ("gpt2", "bloom", "gpt_oss", "mpnet", "t5")
        return
    network = LanguageModel(model)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        explicit = network(**inputs(family), **segments(family))
        model.set_attn_implementation(FLEX)
        assert torch.allclose(network(**inputs(family), **segments(family)), explicit, atol=1e-5)


@pytest.mark.parametrize("family", [DECODERS[0], *ENCODER_DECODERS], ids=str)
def test_loss_is_summed_by_row(family: Family) -> None:
    network, given = LanguageModel(small(family)), inputs(family)
    labels = tokens(TARGETS if family.has_both else SEGMENTS, 3)
    labels[0, ::2] = -100
    with torch.no_grad():
        losses = network(labels, **given, **segments(family))
        log_p = network(**given, **segments(family)).log_softmax(-1).gather(2, labels.clamp(0)[..., None])[..., 0]
    assert losses.dtype == torch.float32
    assert torch.allclose(losses, -torch.where(labels >= 0, log_p, 0).sum(1), atol=1e-3)


def llamas_gradients(**how: Any) -> list[Tensor]:
    torch.manual_seed(0)
    family = DECODERS[0]
    network = LanguageModel(build(AutoConfig.for_model("llama", **GROUPED), family.auto, 0)).train()
    parallelize(network, network.model, None, **how)
    network(tokens(SEGMENTS, 3), **inputs(family), **segments(family)).sum().backward()
    return [p.grad for p in network.parameters() if p.grad is not None]


def test_activation_checkpointing_recomputes_with_the_mask() -> None:
    pairs = zip(llamas_gradients(), llamas_gradients(recomputation=Recompute("full")), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_compiled_blocks_take_the_mask_and_other_documents_compile_nothing_anew(no_kernels: None) -> None:
    from torch._dynamo.utils import counters

    pairs = zip(llamas_gradients(), llamas_gradients(compiled="block"), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)
    network = LanguageModel(small(DECODERS[0]))
    parallelize(network, network.model, None, compiled="block")
    network(**inputs(DECODERS[0]), segment_ids=SEGMENTS)
    compiled = counters["stats"]["unique_graphs"]
    network(**inputs(DECODERS[0]), segment_ids=SEGMENTS.flip(0))
    assert counters["stats"]["unique_graphs"] == compiled


@pytest.mark.parametrize("name", ["llama", "gemma2", "t5", "t5gemma", "bart", "sslm_lstm"])
@pytest.mark.parametrize("autocast", [False, True], ids=["bf16-true", "bf16-mixed"])
def test_masks_hold_in_bfloat16(name: str, autocast: bool) -> None:
    family = next(f for f in FAMILIES if str(f) == name)
    model = build(small(family).config, family.auto, 0).train()
    network, given = LanguageModel(model), inputs(family)
    if not autocast:
        parallelize(network, model, None, in_bf16=True)
    changed = {
        n: torch.where(s == 1, 5, given[n])
        for n, s in (("input_ids", SEGMENTS), ("decoder_input_ids", TARGETS))
        if n in given
    }
    mine = (TARGETS if family.has_both else SEGMENTS) == 0
    model.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before, after = network(**given, **segments(family)), network(**changed, **segments(family))
    assert torch.equal(before[mine], after[mine])
    before.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
