"""Micro-batches that fit, memory that doesn't, and what is refused before a process is started."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from sslm.config import Strategy
from sslm.models.head import LanguageModel
from sslm.parallel.launch import STRATEGIES, Launch
from sslm.parallel.tf32 import fp32_products
from sslm.system.errors import sentence_of
from sslm.train import main
from sslm.training.callbacks.micro_batch import MicroBatch
from sslm.training.optimizers.adamw import AdamW
from tests.support.processes import train_forked
from tests.support.runs import TrainTiny, losses_of, without_model

OF_THREE = shlex.split(
    "--strategy fsdp --devices 2 --model.model_type mixtral --model.num_key_value_heads 2 --model.num_local_experts 3"
)
REFUSED = [
    (["--strategy", "single", "--devices", "2"], "--strategy single: runs on one device, got 2"),
    (
        ["--strategy", "hsdp", "--devices", "2"],
        "--strategy hsdp: 1 replica of 2 devices; give --fsdp.replicas a divisor of 2 above 1",
    ),
    (["--strategy", "hsdp", "--devices", "4", "--fsdp.replicas", "3"], "--strategy hsdp: 3 replicas of 4 devices"),
    (
        ["--strategy", "tp", "--devices", "4", "--batch_size", "8"],
        "--tensor_parallel_size 4: does not divide the model's 2 (num_attention_heads); what would: 1, 2",
    ),
    (
        ["--strategy", "tp", "--devices", "2", "--tensor_parallel_size", "1"],
        "--tensor_parallel_size 1: does not fit 2 devices; give 2, or --strategy fsdp_tp",
    ),
    (
        ["--strategy", "fsdp_tp", "--devices", "4", "--tensor_parallel_size", "3"],
        "--tensor_parallel_size 3: does not fit 4 devices; give a divisor of that",
    ),
    (["--tensor_parallel_size", "2"], "--tensor_parallel_size 2: belongs to --strategy tp and fsdp_tp"),
    (
        ["--strategy", "fsdp", "--devices", "2", "--precision", "16-mixed"],
        "--precision 16-mixed: has no loss scaling under --strategy fsdp; give --precision bf16-mixed",
    ),
    (
        ["--strategy", "tp", "--devices", "2", "--precision", "16-mixed"],
        "--precision 16-mixed: has no loss scaling under --strategy tp",
    ),
    (
        ["--strategy", "deepspeed_2", "--devices", "2", "--precision", "16-mixed"],
        "--precision 16-mixed: DeepSpeed has it on GPUs alone",
    ),
    (
        ["--strategy", "deepspeed_2", "--deepspeed.offload_parameters"],
        "--deepspeed.offload_parameters: deepspeed_2 keeps all weights on each device; give --strategy deepspeed_3",
    ),
    (
        ["--strategy", "deepspeed_3", "--deepspeed.config", "nowhere.json"],
        "--deepspeed.config nowhere.json: there is no such file",
    ),
    (
        ["--strategy", "deepspeed_2", "--optim.name", "muon"],
        "--optim.name muon: --strategy deepspeed_2 knows AdamW's states alone; give --strategy fsdp",
    ),
    (
        ["--strategy", "tp", "--devices", "2", "--compile", "async_tp"],
        "--compile async_tp: the devices that share matrices are to be GPUs of one node; give block",
    ),
    (
        ["--strategy", "fsdp", "--devices", "2", "--compile", "async_tp"],
        "--compile async_tp: belongs to --strategy tp and fsdp_tp, this is fsdp; give block",
    ),
    (
        ["--strategy", "fsdp", "--devices", "2", "--compile", "model"],
        "--compile model: --strategy fsdp gathers the weights of each block when it is called; give block",
    ),
    (
        ["--compile", "model", "--activation_checkpointing", "full"],
        "--compile model: --activation_checkpointing full computes blocks again; give block",
    ),
    (["--compile", "full"], "--compile full: expected one of auto, off, block, model"),
    (
        ["--start_timeout_seconds", "1e15"],
        "--start_timeout_seconds 1000000000000000.0: expected a number above 0 and at most 1e9",
    ),
    (["--precision", "fp8"], "--precision fp8: needs a GPU that multiplies in 8 bits"),
    (["--precision", "mxfp8"], "--precision mxfp8: needs a GPU that multiplies blocks of 8-bit floats with a scale"),
    (["--precision", "32-tf32"], "--precision 32-tf32: needs a GPU from Ampere on (A100, RTX 30 and later), not CPU"),
    (
        ["--activation_checkpointing", "budget:2"],
        "--activation_checkpointing budget:2: expected none, selective, full, or budget:SHARE",
    ),
    (
        ["--activation_checkpointing", "budget:0.5"],
        "--activation_checkpointing budget:0.5: it is the compiler that keeps to a budget; add --compile block",
    ),
    (["--accelerator", "gpu"], "--accelerator gpu: this machine has no GPU that torch can use; give --accelerator cpu"),
    (["--micro_batch_size", "some"], "--micro_batch_size some: expected a whole number, auto or null"),
    (
        ["--batch_size", "4, 6 from 128 tokens", "--devices", "2", "--micro_batch_size", "2"],
        "--micro_batch_size 2: does not divide a device's 3 sequences (--batch_size 6 on 2 devices); give one of 1",
    ),
    (
        ["--batch_size", "4, 6 from 1e6 tokens"],
        "--batch_size 4, 6 from 1000000 tokens: the run ends after 1024 tokens, before 6 comes; leave that out",
    ),
    (
        ["--seq_len", "16, 32 from 500 tokens", "--strategy", "pp", "--devices", "2"],
        "--strategy pp: not with --seq_len 16, 32 from 500 tokens; give 32 alone",
    ),
    (["--start_timeout_seconds", "0"], "--start_timeout_seconds 0.0: expected a number above 0"),
    (
        ["--strategy", "ddp", "--devices", "2", "--context_parallel_size", "2"],
        "--context_parallel_size 2: belongs to --strategy fsdp and hsdp, this is ddp",
    ),
    (
        ["--strategy", "fsdp", "--devices", "2", "--context_parallel_size", "2", "--seq_len", "30"],
        "--context_parallel_size 2: --seq_len 30 is to be a multiple of 4, so that all have as much",
    ),
    (
        ["--strategy", "fsdp", "--devices", "2", "--context_parallel_size", "2", "--data.document_mask", "true"],
        "--context_parallel_size 2: not with --data.document_mask; leave one of the two out",
    ),
    (
        ["--strategy", "ddp", "--devices", "2", "--expert_parallel_size", "2"],
        "--expert_parallel_size 2: belongs to --strategy fsdp and hsdp, this is ddp",
    ),
    (
        ["--strategy", "fsdp", "--devices", "2", "--expert_parallel_size", "2"],
        "--expert_parallel_size 2: not of llama: it has no experts, or none that can be told apart; mixtral,",
    ),
    (
        [*OF_THREE, "--expert_parallel_size", "3"],
        "--expert_parallel_size 3: does not fit 2 devices that share the weights; give a divisor of that",
    ),
    (
        [*OF_THREE, "--expert_parallel_size", "2"],
        "--expert_parallel_size 2: does not divide the model's 3 experts; leave it out",
    ),
    (
        [*OF_THREE, "--expert_parallel_size", "2", "--context_parallel_size", "2"],
        "--expert_parallel_size 2: has not been tried with --context_parallel_size 2; leave one out",
    ),
    (
        ["--strategy", "pp", "--devices", "3"],
        "--strategy pp: 2 blocks can't be shared by 3 devices; give 2 to 2 devices",
    ),
    (
        ["--strategy", "pp", "--devices", "2", "--micro_batch_size", "4"],
        "--micro_batch_size 4: 2 devices with blocks of their own need as many micro-batches of --batch_size 4",
    ),
    (
        ["--strategy", "pp", "--devices", "2", "--optim.name", "muon"],
        "--optim.name muon: not under --strategy pp, where no rank has all matrices; give another optimizer",
    ),
    (
        ["--strategy", "pp", "--devices", "2", "--data.document_mask", "true"],
        "--strategy pp: not with --data.document_mask; leave one of the two out",
    ),
    (
        ["--strategy", "pp", "--devices", "2", "--precision", "16-mixed"],
        "--precision 16-mixed: has no loss scaling under --strategy pp; give --precision bf16-mixed",
    ),
    (
        ["--strategy", "fsdp", "--devices", "4", "--fsdp.reshard_after_forward", "3"],
        "--fsdp.reshard_after_forward 3: not a part of the 4 devices that share the weights; give one of true, false",
    ),
]


@pytest.mark.parametrize(("flags", "sentence"), REFUSED, ids=[" ".join(flags) for flags, _ in REFUSED])
def test_what_cant_run_is_refused_in_one_sentence(
    flags: list[str], sentence: str, train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_tiny(tmp_path / "run", *flags) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sentence}")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[1]", "expected an object, as in"),
        ('{"zero_optimization": 3}', "expected an object, as in"),
        (
            '{"optimizer": {"type": "Adam"}}',
            "optimizer is ours to set; leave it out, and give --optim.name and its kin",
        ),
        ('{"bf16": {"enabled": true}}', "bf16 is ours to set; leave it out, and give --precision"),
        ('{"zero_optimization": {"stage": 1}}', "has stage 1, --strategy deepspeed_2 another; leave one of them out"),
        ('{"zero_optimization": {"bucket": 1}}', "DeepSpeed refuses its zero_optimization ("),
    ],
)
def test_deepspeeds_settings_are_looked_at_beforehand(
    content: str, sentence: str, train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "zero.json"
    file.write_text(content)
    assert train_tiny(tmp_path / "run", "--strategy", "deepspeed_2", "--deepspeed.config", str(file)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --deepspeed.config {file}: {sentence}")
    assert len(said.splitlines()) == 1


def test_flags_without_effect_are_told(
    train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    idle = ["--fsdp.replicas", "2", "--deepspeed.offload_optimizer", "true"]
    assert train_tiny(tmp_path / "run", *idle, "--stop_after", "1steps") == 75
    said = " ".join(capsys.readouterr().out.split())
    assert "Warning: --strategy single makes no use of --fsdp.replicas, --deepspeed.offload_optimizer" in said


@pytest.mark.parametrize(
    "flags",
    [
        "--objective masked_lm --model.model_type bert --model.hidden_size 48",
        "--model.model_type sslm_lstm --model.hidden_size 32",
    ],
)
def test_a_family_without_a_plan_is_refused_for_tensor_parallelism_and_those_with_one_are_named(
    flags: str, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--strategy", "tp", "--devices", "2", "--run_dir", str(tmp_path / "run")]
    assert main([*without_model(tiny), *flags.split(), *where]) == 2
    said = capsys.readouterr().err
    assert "has no plan for its tensor parallelism that sslm knows; llama, qwen3, mistral, gemma2" in said
    assert len(said.splitlines()) == 1


def test_a_model_that_cant_fit_is_refused_with_by_how_much_and_what_would(
    train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_tiny(tmp_path / "run", "--model.hidden_size", "16384", "--model.num_hidden_layers", "60") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --strategy single: with micro-batches of 4 each device needs ")
    assert " more than the " in said
    assert "would do" in said or "what would fit" in said or "take a smaller model" in said


def test_micro_batch_auto_is_remembered_and_changes_no_loss(train_tiny: TrainTiny, tmp_path: Path) -> None:
    run, other, file = tmp_path / "run", tmp_path / "other", tmp_path / "run/micro_batch_size.json"
    assert train_tiny(run, "--micro_batch_size", "auto", "--stop_after", "3steps") == 75
    ((micro_batch_key, size),) = json.loads(file.read_text()).items()
    assert size == 4
    assert "strategy='single'" in micro_batch_key
    file.write_text(json.dumps({micro_batch_key: 2}))
    assert train_tiny(run, "--micro_batch_size", "auto", "--stop_after", "3steps") == 75
    assert json.loads(file.read_text()) == {micro_batch_key: 2}
    assert train_tiny(run, "--micro_batch_size", "auto", "--activation_checkpointing", "full") == 0
    assert list(json.loads(file.read_text()).values()) == [2, 4]  # other things, another size
    assert train_tiny(other) == 0
    assert losses_of(run) == pytest.approx(losses_of(other), abs=1e-6)


def test_a_size_that_did_not_fit_after_all_is_halved_for_the_next_time(
    train_tiny: TrainTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(AdamW, "step", too_much)
        assert train_tiny(tmp_path / "run", "--micro_batch_size", "auto") == 2
    assert list(json.loads((tmp_path / "run/micro_batch_size.json").read_text()).values()) == [2]
    assert train_tiny(tmp_path / "run", "--micro_batch_size", "auto") == 0


def test_a_size_that_did_not_fit_on_any_rank_is_halved_whichever_rank_writes_first(tmp_path: Path) -> None:
    file, module = tmp_path / "sizes.json", SimpleNamespace(micro_batch_size=8)
    trainers: list[Any] = [SimpleNamespace(is_global_zero=rank == 0) for rank in (0, 1)]
    ranks = [MicroBatch(file, "key") for _ in trainers]
    ranks[1].on_exception(trainers[1], module, MemoryError())  # type: ignore[arg-type]
    assert not file.exists()  # weights did not fit: smaller batches would not help
    for rank, trainer in zip(ranks, trainers, strict=True):
        rank.on_train_start(trainer, module)  # type: ignore[arg-type]
    ranks[1].on_exception(trainers[1], module, MemoryError())  # type: ignore[arg-type]
    ranks[0].on_train_batch_end(trainers[0], module)  # type: ignore[arg-type]
    assert json.loads(file.read_text()) == {"key": 4}


def test_memory_that_runs_out_while_weights_are_made_is_told_as_such(
    train_tiny: TrainTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_much(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(LanguageModel, "to_empty", too_much)
    assert train_tiny(tmp_path / "run", "--micro_batch_size", "auto") == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("error: out of memory: lower --micro_batch_size")
    assert not (tmp_path / "run/micro_batch_size.json").exists()
    assert json.loads((tmp_path / "run/status.json").read_text())["reason"].startswith("OutOfMemoryError: CUDA out of")


@pytest.mark.slow
def test_ranks_that_find_different_micro_batches_take_the_smallest(tiny: list[str], tmp_path: Path) -> None:
    flags = ["--strategy", "ddp", "--devices", "2", "--batch_size", "8", "--micro_batch_size", "auto"]
    done = train_forked([*tiny, "--run_dir", str(tmp_path / "run"), *flags], tmp_path / "log")
    assert done.returncode == 0, done.stdout
    assert list(json.loads((tmp_path / "run/micro_batch_size.json").read_text()).values()) == [4]


def test_out_of_memory_says_what_to_change() -> None:
    allocation = (
        "[enforce fail at alloc_cpu.cpp:124] err == 0. "
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    blas = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    nccl = (
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:93, unhandled cuda error (run with "
        "NCCL_DEBUG=INFO for details), NCCL version 2.28.9\nLast error:\nCuda failure 2 'out of memory'"
    )
    said = (allocation, blas, nccl, "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), *map(RuntimeError, said)):
        assert "lower --micro_batch_size" in str(sentence_of(error))
    assert sentence_of(RuntimeError("something else")) is None


def test_every_strategy_that_can_be_asked_for_has_its_row() -> None:
    assert {"auto", *STRATEGIES} == set(get_args(Strategy))


@pytest.mark.parametrize(("precision", "expected"), [("32", "highest"), ("32-tf32", "high"), ("bf16-mixed", "medium")])
def test_fp32_matrices_are_multiplied_as_the_precision_says_while_it_trains(precision: str, expected: str) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")  # as a user may have it
    try:
        with fp32_products(Launch("gpu", 1, 1, "single", precision)):
            assert torch.get_float32_matmul_precision() == expected
            assert torch.backends.cudnn.allow_tf32 == (precision != "32")
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cudnn.allow_tf32 == before[1]
    finally:
        torch.set_float32_matmul_precision(before[0])
