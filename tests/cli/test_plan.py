"""`sslm plan`: what it tells, and what it refuses."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaConfig

from sslm import __main__ as front
from sslm.cli import VERBS
from sslm.cli.plan import main
from sslm.models.build import on_meta
from sslm.parallel.planning.machines import PLANNED_FOR, named

ROOT = Path(__file__).parents[2]

Planned = Callable[..., str]


@pytest.fixture
def plan(text: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Planned:
    """plan(*flags) -> what is printed, each row on one line; refused, if it ends with 2."""

    def run(*flags: str, refused: bool = False) -> str:
        data = [
            "--data.train",
            str(text),
            "--data.val",
            str(text),
            "--data.document_separator",
            "\n-----\n",
            "--data.tokenizer",
            "bpe:512",
            "--data.cache_dir",
            str(cache),
            "--data.val_sequences",
            "4",
            "--run_dir",
            str(tmp_path / "run"),
        ]
        code = main([*data, *flags])
        out, err = capsys.readouterr()
        assert code == (2 if refused else 0), err
        assert not (tmp_path / "run").exists()
        return " ".join((err if refused else out).split())

    return run


LLAMA_1B = ["--config", str(ROOT / "configs/llama-1b.yaml"), "--model.vocab_size", "32000", "--batch_size", "32"]
GPT2 = ["--config", str(ROOT / "configs/gpt2-124m.yaml"), "--batch_size", "32"]
SMALL = ["--seq_len", "32", "--batch_size", "8", "--max_steps", "10"]


def gib_of(part: str, told: str) -> float:
    number, unit = re.search(rf"\b{part} ([\d.,]+) ([GM])iB", told).groups()  # type: ignore[union-attr]
    return float(number.replace(",", "")) / (1 if unit == "G" else 1024)


def test_a_teacher_has_a_row_unless_a_cache_has_what_it_said(plan: Planned, tmp_path: Path) -> None:
    known = LlamaConfig(vocab_size=512, hidden_size=1024, num_hidden_layers=10, intermediate_size=4096)
    known.save_pretrained(tmp_path / "teacher")
    model = on_meta(known, "AutoModelForCausalLM")
    whole, block = (sum(p.numel() for p in part.parameters()) for part in (model, model.model.layers[0]))
    root = whole - 10 * block
    asked = [*SMALL, "--distill.teacher", str(tmp_path / "teacher"), "--plan_for", "h100:8", "--strategy"]
    for flags, numbers in (("ddp", 4 * whole), ("fsdp --distill.precision bf16", 2 * (whole / 8 + root + 2 * block))):
        told = plan(*asked, *flags.split())
        assert gib_of("teacher", told) == pytest.approx(numbers / 2**30, rel=0.01)
    assert not re.search(r"\bteacher [\d.]", plan(*asked, "ddp", "--distill.cache", "beside"))


def test_a_plan_for_eight_h100s_without_one(plan: Planned) -> None:
    told = plan(*LLAMA_1B, "--plan_for", "h100:8", "--micro_batch_size", "4")
    assert "Plan for 8 x H100 (79.2 GiB each)" in told
    assert "causal_lm, llama: 1.1B parameters (131M of embeddings; 1.03B used for each token)" in told
    assert "vocabulary 512, in the model 32,000" in told
    numbers = 1.1000488e9  # in fp32, over 8 devices; one micro-batch: gradients are reduced at once
    assert gib_of("weights", told) == pytest.approx(4 * numbers / 8 / 2**30, abs=0.06)
    assert gib_of("gradients", told) == pytest.approx(4 * numbers / 8 / 2**30, abs=0.06)
    assert gib_of("optimizer", told) == pytest.approx(8 * numbers / 8 / 2**30, abs=0.06)
    parts = [gib_of(part, told) for part in ("weights", "gradients", "optimizer", "activations", "logits", "transient")]
    assert gib_of("in all", told) == pytest.approx(sum(parts), abs=0.3)
    assert "fits" in told
    assert "at 430k tokens/s" in told  # 8 x 989.4e12 x 0.4 / 7.31e9, less 1 % for messages
    assert "waiting for messages x 0.99" in told
    assert "40% of each device's 989T FLOP/s (llm.c" in told
    assert "7.31B FLOPs a token" in told
    assert "$1,422, at $2.75 per device and hour (typical on demand in 2025" in told
    assert "12.3 GiB for a checkpoint; the last 3 are kept, 49.2 GiB while one is written" in told
    assert "Warning the text will be read" in told


def test_a_small_model_is_proposed_ddp_and_the_command_is_what_was_typed_and_what_differs(plan: Planned) -> None:
    told = plan(*GPT2, "--plan_for=h100:8", "--strategy", "fsdp", "--micro_batch_size", "2", "--price_per_hour", "2")
    assert "gpt2: 124M parameters (38.6M of embeddings; 124M used for each token)" in told
    assert "at $2.00 per device and hour (as given)" in told
    assert "fsdp (as asked), micro-batches of 2, precision bf16-mixed" in told
    command = told.split("To type ")[1]
    assert command.startswith("python -m sslm.train --data.train ")
    assert (
        command.endswith("--strategy fsdp --micro_batch_size 4 --devices 8")
        or "--micro_batch_size 4 --devices 8" in command
    )
    assert "plan_for" not in command


def test_auto_is_settled_with_its_reason(plan: Planned) -> None:
    told = plan(*GPT2, "--plan_for", "h100:8", "--strategy", "auto", "--micro_batch_size", "auto")
    assert re.search(
        r"ddp \(it takes [\d.]+ GiB of the 79.2 GiB of each H100, in micro-batches of one sequence\), micro-batches",
        told,
    )
    told = plan(*LLAMA_1B, "--plan_for", "l4:8", "--strategy", "auto", "--micro_batch_size", "auto")
    assert re.search(
        r"fsdp \(ddp takes [\d.]+ GiB of the 22.0 GiB of each L4, fsdp [\d.]+ GiB\), micro-batches of \d", told
    )


def test_batches_that_grow_are_listed_and_their_micro_batches_divide_all(plan: Planned) -> None:
    told = plan(*SMALL[:2], "--batch_size", "8, 12 from 1000 tokens, 20 from 1400 tokens", "--max_tokens", "2500")
    assert "Run 6 steps of 8 x 32 = 256 tokens: 2.05k tokens" in told
    assert "from step 5 on of 12 x 32 = 384 tokens from step 6 on of 20 x 32 = 640 tokens" in told
    assert "micro-batches of 4" in told
    assert "for 2.05k tokens" in told


def test_several_nodes_are_started_by_srun(plan: Planned) -> None:
    told = plan(*LLAMA_1B, "--plan_for", "h100:8x4", "--micro_batch_size", "1")
    assert "Plan for 4 nodes of 8 x H100" in told
    assert "To type srun python -m sslm.train" in told
    assert "--devices 8 --num_nodes 4" in told


def test_what_does_not_fit_is_refused_in_one_sentence_with_what_would(plan: Planned) -> None:
    said = plan(*LLAMA_1B, "--plan_for", "rtx3090:2", "--micro_batch_size", "16", "--strategy", "ddp", refused=True)
    assert re.fullmatch(
        r"error: --strategy ddp: with micro-batches of 16 each device needs [\d.]+ GiB of memory, [\d.]+ GiB more than "
        r"the 23.6 GiB of each RTX 3090; what would fit: --.*",
        said,
    )
    assert "--strategy fsdp" in said


def test_an_encoder_decoder_and_an_encoder_have_a_speed_and_an_lstm_has_none(plan: Planned) -> None:
    assert "nanoT5 reached 31 %" in plan(*SMALL, "--objective", "span_corruption", "--plan_for", "a100-80:2")
    assert "matmuls alone, causal attention in full, padding not at all" in plan(*SMALL, "--plan_for", "h100")
    assert "ModernBERT-base reached 25 %" in plan(*SMALL, "--objective", "masked_lm", "--plan_for", "a100-80:2")
    lstm = plan(*SMALL, "--model.model_type", "sslm_lstm", "--plan_for", "h100")
    assert "Time unknown: no published run tells what share of a GPU's peak sslm_lstm reaches" in lstm
    assert "activations" in lstm


def test_what_computes_attention_is_told(plan: Planned) -> None:
    documents = ["--plan_for", "h100", "--data.document_mask", "true"]
    told = " ".join(plan(*documents).split())
    assert "Attention torch's FlashAttention-2, by where documents begin" in told
    told = " ".join(plan(*documents, "--precision", "32").split())
    assert "Attention torch's SDPA, explicit masks of documents" in told
    assert "explicit masks are slow on a GPU; --attention varlen: its kernel multiplies in bf16 or fp16" in told


def test_512_ranks_are_simulated_on_this_machine(plan: Planned) -> None:
    flags = ["--strategy", "hsdp", "--batch_size", "1024", "--micro_batch_size", "1", "--seq_len", "32"]
    told = plan("--plan_for", "h100", "--simulate", "nodes=64", *flags)
    assert "Plan for 64 nodes of 8 x H100" in told
    assert "a step of the first of 512 ranks" in told
    for part in ("weights", "gradients", "optimizer"):
        held, planned = re.search(rf"{part} ([\d.]+ .iB) ([\d.]+ .iB) (?!\d+%)", told).groups()  # type: ignore[union-attr]
        assert held == planned
    assert re.search(r"reduce-scatter 8 ranks of a node \d+ .*all-reduce 64 ranks of 64 nodes \d+", told)
    assert re.search(r"The wires need [\d.]+ ms a step at least, at 450 GB/s within nodes and 50 GB/s", told)


def test_without_a_name_the_plan_is_for_this_machine(plan: Planned) -> None:
    told = plan(*SMALL, "--accelerator", "cpu", "--devices", "2")
    assert "Plan for 2 CPU processes" in told
    assert "of a matmul measured just now" in told
    assert "are free at" in told
    assert "Cost" not in told


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--plan_for", "h1000:8"], "there is no device h1000 (did you mean h100?); known are b200, h200, h100"),
        (["--plan_for", "h100:0"], "0 is no number of devices; expected h100:8"),
        (["--plan_for"], "--plan_for needs a value"),
        (["--price_per_hour", "cheap"], "--price_per_hour cheap: expected dollars"),
        (
            ["--plan_for", "h100:8", "--batch_size", "12"],
            "--batch_size 12: can't be shared evenly by 8 devices; give a multiple of 8, such as 16",
        ),
        (
            ["--plan_for", "h100:2", "--micro_batch_size", "3"],
            "--micro_batch_size 3: does not divide a device's 4 sequences",
        ),
        (["--plan_for", "h100:2", "--strategy", "single"], "--strategy single"),
        (
            ["--plan_for", "a100-40:2", "--precision", "fp8"],
            "--precision fp8: needs a GPU that multiplies in 8 bits (L4, RTX 4090, H100 and later), not A100 40GB; "
            "give --precision bf16-mixed",
        ),
        (["--plan_for", "h100", "--simulate", "64"], "--simulate 64: expected nodes=64, or nodes=64,devices=8 for 64"),
        (
            ["--plan_for", "h100", "--simulate", "nodes=3", "--batch_size", "32"],
            "--batch_size 32: can't be shared evenly by 24 devices; give a multiple of 24, such as 48",
        ),
        (
            ["--plan_for", "h100", "--simulate", "nodes=1", "--strategy", "tp"],
            "--tensor_parallel_size 8: does not divide the model's",
        ),
        (
            ["--plan_for", "h100", "--simulate", "nodes=1", "--strategy", "deepspeed_2"],
            "--simulate: not of DeepSpeed (--strategy deepspeed_2), whose messages are its own; give --strategy fsdp",
        ),
        (["--plam_for", "h100:8"], "there is no flag --plam_for"),
    ],
)
def test_wrong_flags_are_told_in_one_sentence(plan: Planned, flags: list[str], sentence: str) -> None:
    assert sentence in plan(*SMALL, *flags, refused=True)


def test_it_is_a_verb(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "plan" in VERBS
    monkeypatch.setattr(sys, "argv", ["sslm", "plan", "--help"])
    with pytest.raises(SystemExit) as ended:
        front.main()
    assert not ended.value.code
    assert "--plan_for h100:8" in capsys.readouterr().out


def test_every_named_machine_can_be_planned_for() -> None:
    for name in PLANNED_FOR:
        machine = named(f"{name}:4x2")
        assert machine.world == 8
        assert machine.memory > 10 * 2**30
