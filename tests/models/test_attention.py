"""Attention by documents' offsets gives what explicit masks give, in every family that takes it."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from sslm.data.stream.batches import StepBatch, starts_in_rows
from sslm.models.attention import (
    Surroundings,
    attention_in_words,
    check_attention,
    choose_attention,
    differs_by_offsets,
    kernel_differs,
    masks_because,
    tried,
    use,
    why_not,
)
from sslm.models.head import LanguageModel
from sslm.models.masks import FLEX
from sslm.models.sdpa_kernel import kernel, sdpa_calls, slow_because
from sslm.models.varlen import by_documents, by_varlen_attn, offsets_of
from sslm.parallel.parallelize import parallelize
from sslm.parallel.recompute import Recompute
from sslm.system.errors import UserError
from sslm.training.micro_batches import micro_batches
from tests.models.test_masks import DECODERS, ENCODERS, FAMILIES, SEGMENTS, Family, inputs, segments, small, tokens
from tests.support import flash_attention as flash

CPU = Surroundings("cpu", has_documents=True, seq_len=64, in_16_bits=False)
GPU = Surroundings("cuda", has_documents=True, seq_len=64, in_16_bits=True)
REFUSED = {"gemma2", "llama4_text", "gpt_oss", "bloom", "mpnet", "t5", "bart", "t5gemma", "sslm_lstm"}
BY_NAME = {str(family): family for family in FAMILIES}
LABELS = tokens(SEGMENTS, 3).masked_fill(SEGMENTS < 0, -100)


def without_dropout(family: Family) -> LanguageModel:
    model = copy.deepcopy(small(family)).double()
    for name in ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop"):
        if hasattr(model.config, name):
            setattr(model.config, name, 0.0)
    return LanguageModel(model)


def losses_and_gradients(network: LanguageModel, **more: Tensor) -> list[Tensor]:
    losses = network(LABELS, **more)
    return [losses.detach(), *torch.autograd.grad(losses.sum(), list(network.parameters()), materialize_grads=True)]


def assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_losses_and_gradients_by_offsets_are_those_of_explicit_masks(family: Family) -> None:
    network = without_dropout(family)
    if (why := why_not("varlen", network.model, CPU)) is not None:
        assert family.model_type in REFUSED, why
        return
    assert family.model_type not in REFUSED
    given = inputs(family) | segments(family)
    explicit = losses_and_gradients(network, **given)
    use("varlen", network.model)
    assert_equal(losses_and_gradients(network, **given), explicit)


@pytest.mark.parametrize("family", ENCODERS[:3], ids=str)
def test_padding_is_hidden_by_offsets(family: Family) -> None:
    network, given = without_dropout(family), {**inputs(family), "attention_mask": (SEGMENTS >= 0).long()}
    explicit = losses_and_gradients(network, **given)
    use("varlen", network.model)
    assert_equal(losses_and_gradients(network, **given), explicit)


def test_blocks_that_are_computed_again_know_the_documents() -> None:
    network, given = without_dropout(BY_NAME["llama"]), inputs(DECODERS[0]) | segments(DECODERS[0])
    explicit = losses_and_gradients(network, **given)
    use("varlen", network.model)
    parallelize(network, network.model, None, recomputation=Recompute("full"))
    network.train()
    assert_equal(losses_and_gradients(network, **given), explicit)


def test_offsets_that_the_host_knows_are_those_that_the_device_finds() -> None:
    network, given = without_dropout(BY_NAME["llama"]), inputs(DECODERS[0]) | segments(DECODERS[0])
    use("varlen", network.model)
    found = losses_and_gradients(network, **given)
    assert_equal(losses_and_gradients(network, **given, document_offsets=offsets_of(SEGMENTS)), found)


def test_documents_are_given_by_offsets_on_gpus_if_the_model_takes_them() -> None:
    def chosen(name: str, around: Surroundings) -> str:
        return choose_attention(small(BY_NAME[name]), around)

    alone = replace(GPU, has_documents=False)
    assert [chosen("llama", around) for around in (GPU, CPU, alone)] == ["varlen", "sdpa", "sdpa"]
    assert chosen("mistral-window", alone) == "varlen"  # a window is a mask, too
    assert chosen("mistral-window", replace(alone, seq_len=3)) == "sdpa"
    assert chosen("mistral-window", replace(alone, shares_rows=True)) == "sdpa"
    assert [chosen(name, GPU) for name in ("t5", "bert", "sslm_lstm")] == ["sdpa", "sdpa", "sdpa"]
    assert chosen("llama", replace(GPU, in_16_bits=False)) == "sdpa"


@pytest.mark.parametrize(
    ("name", "around", "why"),
    [
        ("llama", replace(GPU, in_16_bits=False), "its kernel multiplies in bf16 or fp16"),
        ("llama", replace(GPU, is_ampere=False), "its kernel needs a GPU from Ampere on (A100, RTX 30 and later)"),
        (
            "llama",
            replace(GPU, shares_rows=True),
            "with --context_parallel_size it is SDPA alone that devices do together",
        ),
        ("bert", GPU, "it has no dropout, and --model.attention_probs_dropout_prob is 0.1"),
        ("t5gemma", GPU, "t5gemma has a decoder that reads its encoder, for which there are masks only"),
        ("llama4_text", GPU, "llama4_text's attention has more than documents and windows"),
    ],
)
def test_it_is_told_why_documents_are_masked_explicitly(name: str, around: Surroundings, why: str) -> None:
    model = small(BY_NAME[name])
    assert masks_because("sdpa", model, around) == why
    with pytest.raises(UserError, match=r"--attention varlen: .*leave it out, or give --attention sdpa"):
        check_attention("varlen", model, around)


def test_what_asks_for_something_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    llama, gpt2, lstm = (small(BY_NAME[name]) for name in ("llama", "gpt2", "sslm_lstm"))
    assert why_not("flex", llama, CPU) == "FlexAttention trains on GPUs only"
    assert why_not("flash", llama, CPU) == "flash-attn needs a GPU"
    assert why_not("flash", llama, GPU) == "the package flash-attn is not installed"
    assert why_not("flex", lstm, GPU) == why_not("varlen", lstm, CPU) == "sslm_lstm has no attention"
    without = without_dropout(BY_NAME["gpt2"]).model
    assert why_not("flex", gpt2, GPU) == "it has no dropout, and --model.attn_pdrop is 0.1"
    assert why_not("flex", without, GPU) == "gpt2's attention has more than a mask, or no FlexAttention"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert why_not("flex", llama, GPU) == "FlexAttention needs Triton"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    assert why_not("flex", llama, GPU) is None
    model = copy.deepcopy(llama)
    use("flex", model)
    assert model.config._attn_implementation == FLEX
    assert "_attn_implementation" not in model.config.to_diff_dict()
    assert attention_in_words("flex", model, "cuda", True) == "FlexAttention, by a mask's blocks"


def test_an_architecture_that_loses_something_by_offsets_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert differs_by_offsets(small(BY_NAME["llama"])) is None
    chunks = small(BY_NAME["llama4_text"])  # which only its masks tell
    assert tried("varlen", chunks, torch.device("cpu")) == "sdpa"
    assert "Warning: --attention varlen: logits differ from those of explicit masks" in capsys.readouterr().out
    assert chunks.config._attn_implementation == "sdpa"
    assert differs_by_offsets(small(BY_NAME["bloom"])) == "its attention can't be exchanged"


def test_a_kernel_is_tried_before_it_is_used() -> None:
    assert kernel_differs("varlen", torch.device("cpu")) is None
    assert "ModuleNotFoundError" in str(kernel_differs("flash", torch.device("cpu")))


def test_kernel_of_sdpa_is_torchs_choice() -> None:
    cpu = torch.device("cpu")
    [plain] = sdpa_calls(small(BY_NAME["llama"]), has_documents=False)
    [masked] = sdpa_calls(small(BY_NAME["llama"]), has_documents=True)
    learned, *_ = sdpa_calls(small(BY_NAME["t5"]), has_documents=False)
    assert (plain.is_causal, plain.mask, masked.is_causal, masked.mask) == (True, None, False, torch.bool)
    assert kernel(plain, cpu, torch.bfloat16, 64) == kernel(masked, cpu, torch.bfloat16, 64)
    assert kernel(learned, cpu, torch.bfloat16, 64) == SDPBackend.MATH
    assert slow_because(learned, torch.bfloat16) == "the mask is a learned bias, which has a gradient"
    assert slow_because(plain, torch.float32) == "they multiply in bf16 or fp16, not in float32"
    assert "give --attention varlen" in slow_because(masked, torch.bfloat16)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_other_documents_compile_nothing_anew(one_compiler: None) -> None:
    from torch._dynamo.testing import CompileCounter

    network, counter = without_dropout(BY_NAME["llama"]), CompileCounter()
    use("varlen", network.model)
    for layer in network.model.model.layers:
        layer.compile(backend=counter, dynamic=False)
    compiled = []
    for cut in (2, 5, 9, 99):
        some = (torch.arange(SEGMENTS.shape[1]) // cut).expand_as(SEGMENTS)
        starts = starts_in_rows(some.numpy())
        batch: StepBatch = {"tensors": {"input_ids": tokens(SEGMENTS)}, "documents": starts, "first_position": 0}
        batch["sources"] = torch.zeros(len(SEGMENTS), dtype=torch.long)
        [micro] = micro_batches(batch, None, keeps_shape=True)
        found = network(LABELS, segment_ids=some, **micro.tensors)
        explicit = without_dropout(BY_NAME["llama"])(LABELS, segment_ids=some, **micro.tensors)
        torch.testing.assert_close(found, explicit)
        compiled.append(counter.frame_count)
    assert compiled[0] > 0
    assert len(set(compiled)) == 1


@pytest.fixture
def flash_attention() -> Iterator[None]:
    """Gives the CPU the kernels that torch has for GPUs."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", flash.forward, "CPU")
        library.impl("_flash_attention_backward", flash.backward, "CPU")
        yield


@pytest.mark.parametrize("window", [(-1, 0), (-1, -1), (4, 0), (4, 4)], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_torchs_kernel_for_gpus_gets_what_the_cpu_computes(
    window: tuple[int, int], groups: int, flash_attention: None
) -> None:
    offsets, heads = offsets_of(SEGMENTS), (4, 4 // groups, 4 // groups)
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(SEGMENTS.numel(), n, 16, generator=generator, requires_grad=True) for n in heads]

    def outputs_and_gradients(seen: Tensor) -> list[Tensor]:
        return [seen, *torch.autograd.grad(seen.square().sum(), states)]

    found = outputs_and_gradients(by_varlen_attn(*states, offsets, SEGMENTS.shape[1], 0.2, window))
    wanted = outputs_and_gradients(by_documents(*states, offsets, 0.2, window))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
