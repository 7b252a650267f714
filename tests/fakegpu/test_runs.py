"""Every objective, strategy and precision on 1, 2 and 4 GPUs that compute what the CPU computes."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sslm.cli.ckpt.diff import compare
from sslm.runs.checkpoints.folder import newest_first, read_state
from tests.fakegpu.conftest import Done, FakeGpus
from tests.support.objectives import BART, ENCODER, NO_DROPOUT, T5
from tests.support.runs import SMALL_LLAMA, losses_of, val_of, without_model

pytestmark = pytest.mark.slow

SHORT = [
    "--compile",
    "off",
    "--max_steps",
    "4",
    "--val_every",
    "2",
    "--data.val_sequences",
    "4",
    "--micro_batch_size",
    "2",
]
MODELS = {
    "llama": " ".join(SMALL_LLAMA),
    "gpt2": "--model.model_type gpt2 --model.n_embd 32 --model.n_layer 2 --model.n_head 2 --model.attn_pdrop 0 "
    "--model.resid_pdrop 0 --model.embd_pdrop 0",
    "lstm": "--model.model_type sslm_lstm --model.hidden_size 32",
    "documents": f"{' '.join(SMALL_LLAMA)} --data.packing best_fit --data.document_mask true",
    "masked_lm": f"--objective masked_lm {ENCODER}",
    "bert": f"--objective masked_lm --model.model_type bert {ENCODER} {NO_DROPOUT['bert']}",
    "span_corruption": f"--objective span_corruption {T5} {NO_DROPOUT['t5']}",
    "denoising": f"--objective denoising {BART} {NO_DROPOUT['bart']}",
    "token_order": f"--objective token_order {ENCODER}",
}
STRATEGIES = {
    "single": "--strategy single --devices 1",
    "ddp": "--strategy ddp --devices 2",
    "fsdp": "--strategy fsdp --devices 2",
    "hsdp-4": "--strategy hsdp --devices 4 --fsdp.replicas 2",
    "tp": "--strategy tp --devices 2",
    "fsdp_tp-4": "--strategy fsdp_tp --devices 4 --tensor_parallel_size 2",
    "deepspeed_1": "--strategy deepspeed_1 --devices 2",
    "deepspeed_2": "--strategy deepspeed_2 --devices 2",
    "deepspeed_3": "--strategy deepspeed_3 --devices 2",
}
OF_GPUS = [
    *(("single", model) for model in MODELS),
    *((strategy, "llama") for strategy in STRATEGIES if strategy != "single"),
]
"""Each model, and each strategy; on CPUs each model under each strategy (tests/parallel/test_strategies.py)."""
DTYPES = {
    "32": {"float32"},
    "bf16-mixed": {"bfloat16"},
    "bf16-true": {"bfloat16"},
    "16-mixed": {"float16"},
    "fp8": {"float8_e4m3fn"},
}
TOLERANCES = {"32": 2e-5, "bf16-mixed": 0.02, "bf16-true": 0.05, "16-mixed": 0.01, "fp8": 0.1}
"""Of a loss of 6 nats, in the first four steps."""
REFUSED = (("fsdp", "16-mixed"), ("tp", "16-mixed"), ("tp", "fp8"))
AS_STAGE_2 = [("deepspeed_1", precision) for precision in ("bf16-true", "16-mixed", "fp8")]
OF_PRECISIONS = [
    (strategy, precision)
    for strategy in ("single", "ddp", "fsdp", "tp", "deepspeed_1", "deepspeed_2", "deepspeed_3")
    for precision in DTYPES
    if precision != "32" and (strategy, precision) not in (*REFUSED, *AS_STAGE_2)
]
OF_WAITS = [*(("single", model) for model in MODELS), ("ddp", "llama"), ("fsdp", "llama"), ("deepspeed_2", "llama")]
RARELY = "--max_steps 16 --log_every 100 --val_every 100 --checkpoint.every_steps 100"
OF_STOPS = [
    ("single", "bf16-mixed"),
    ("single", "16-mixed"),
    ("ddp", "bf16-true"),
    ("fsdp", "bf16-mixed"),
    ("deepspeed_2", "bf16-mixed"),
    ("deepspeed_3", "16-mixed"),
]
WITH_DROPOUT = MODELS["gpt2"].replace("pdrop 0", "pdrop 0.1")
SCALE = {"scale": 2.0**12, "_growth_tracker": 4}
"""After four steps without overflow."""


@pytest.fixture(scope="module")
def flags(tiny: list[str]) -> list[str]:
    """All of a short run but its model."""
    return [*without_model(tiny), *SHORT]


@pytest.fixture(scope="module")
def on_cpu(gpus: FakeGpus, flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model's run on the CPU of the same environment, made once."""

    @functools.cache
    def train(model: str) -> Path:
        done = gpus.train(tmp_path_factory.mktemp(model) / "run", [*flags, *MODELS[model].split()])
        assert done.code == 0, done.said
        return done.run

    return train


def train_on(gpus: FakeGpus, run: Path, flags: list[str], dtypes: Path) -> dict[str, int]:
    """Train on GPUs, and return how many matmuls of blocks saw which dtype."""
    world = int(flags[flags.index("--devices") + 1]) if "--devices" in flags else 1
    verb = ("train_with_dtypes", str(dtypes))
    done = gpus.train(run, [*flags, "--accelerator", "gpu"], world=world, verb=verb)
    assert done.code == 0, done.said
    return dict(json.loads(Path(f"{dtypes}.0").read_text()))


@pytest.mark.parametrize(("strategy", "model"), OF_GPUS)
def test_losses_in_fp32_are_those_of_the_cpu(
    strategy: str, model: str, gpus: FakeGpus, flags: list[str], on_cpu: Callable[[str], Path], tmp_path: Path
) -> None:
    more = f"{MODELS[model]} {STRATEGIES[strategy]} --precision 32".split()
    if "-4" in strategy:
        more += ["--micro_batch_size", "1"]
    dtypes = train_on(gpus, tmp_path / "run", [*flags, *more], tmp_path / "dtypes")
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(on_cpu(model)), abs=TOLERANCES["32"])
    assert val_of(tmp_path / "run") == pytest.approx(val_of(on_cpu(model)), abs=TOLERANCES["32"])
    assert dtypes.keys() == DTYPES["32"]


@pytest.mark.parametrize(("strategy", "precision"), OF_PRECISIONS)
def test_matmuls_of_blocks_see_the_dtype_that_was_asked_for(
    strategy: str, precision: str, gpus: FakeGpus, flags: list[str], on_cpu: Callable[[str], Path], tmp_path: Path
) -> None:
    more = f"{MODELS['llama']} {STRATEGIES[strategy]} --precision {precision}".split()
    dtypes = train_on(gpus, tmp_path / "run", [*flags, *more], tmp_path / "dtypes")
    losses, exact = losses_of(tmp_path / "run"), losses_of(on_cpu("llama"))
    assert dtypes.keys() == DTYPES[precision]
    assert losses == pytest.approx(exact, abs=TOLERANCES[precision])
    assert losses != pytest.approx(exact, abs=1e-6)


def test_documents_by_offsets_lose_what_explicit_masks_lose(
    gpus: FakeGpus, flags: list[str], on_cpu: Callable[[str], Path], tmp_path: Path
) -> None:
    how = "--precision bf16-mixed --attention varlen --compile block --accelerator gpu"
    done = gpus.train(tmp_path / "run", [*flags, *f"{MODELS['documents']} {STRATEGIES['single']} {how}".split()])
    assert done.code == 0, done.said
    assert "Attention: torch's FlashAttention-2, by where documents begin" in done.said
    assert "Warning: --attention" not in done.said
    assert losses_of(done.run) == pytest.approx(losses_of(on_cpu("documents")), abs=TOLERANCES["bf16-mixed"])


@pytest.mark.parametrize(("strategy", "model"), OF_WAITS)
def test_between_logged_steps_the_host_never_waits(
    strategy: str, model: str, gpus: FakeGpus, flags: list[str], tmp_path: Path
) -> None:
    more = f"{MODELS[model]} {STRATEGIES[strategy]} {RARELY} --precision bf16-mixed --accelerator gpu".split()
    world = 2 if "--devices 2" in STRATEGIES[strategy] else 1
    out = tmp_path / "waits"
    done = gpus.train(tmp_path / "run", [*flags, *more], world=world, verb=("train_with_waits", str(out)))
    assert done.code == 0, done.said
    waits = json.loads(Path(f"{out}.0").read_text())
    assert [place for place in waits if "deepspeed/" not in place.rpartition(" < ")[0]] == []  # which waits by itself


@pytest.mark.parametrize(("strategy", "precision"), OF_STOPS)
def test_a_run_that_stops_and_goes_on_is_the_uninterrupted_one(
    strategy: str, precision: str, gpus: FakeGpus, flags: list[str], tmp_path: Path
) -> None:
    more = f"{WITH_DROPOUT} {STRATEGIES[strategy]} --precision {precision} --accelerator gpu --val_every 1000".split()
    world = 2 if "--devices 2" in STRATEGIES[strategy] else 1
    low_scale = ("train_with_loss_scale", 2.0**12)  # not the default, which a scaler that forgets would begin with

    def train(name: str, *stop: str, verb: tuple[Any, ...] = ("train",)) -> Done:
        return gpus.train(tmp_path / name, [*flags, *more, *stop], world=world, verb=verb)

    whole, parted = train("whole", verb=low_scale), train("parted", "--stop_after", "2steps", verb=low_scale)
    assert (whole.code, parted.code) == (0, 75), whole.said + parted.said
    assert train("parted").code == 0
    assert losses_of(whole.run) == losses_of(parted.run)
    one, other = (newest_first(run.run / "checkpoints")[0] for run in (whole, parted))
    assert not compare(one, other).any
    assert read_state(one).get("loss_scale") == (SCALE if precision == "16-mixed" else None)


@pytest.mark.parametrize("left_mib", [2, 64])
def test_out_of_memory_is_told(left_mib: int, gpus: FakeGpus, flags: list[str], tmp_path: Path) -> None:
    """Whether there is none for the weights, or none for the first step."""
    taken = {"FAKE_GPU_GIB": "8", "FAKE_GPU_CONTEXT_GIB": str(8 - left_mib / 1024)}
    wide = [
        "--model.hidden_size",
        "256",
        "--model.intermediate_size",
        "1024",
        "--model.num_hidden_layers",
        "6",
        "--batch_size",
        "64",
    ]
    more = f"{MODELS['llama']} {STRATEGIES['single']} --micro_batch_size 64 --accelerator gpu --val_every 1000".split()
    done = gpus.train(tmp_path / "run", [*flags, *more, *wide], env=taken)
    assert done.code == 2
    assert "out of memory" in done.said.splitlines()[-1]
    assert "Traceback" not in done.said


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_2"])
def test_sruns_tasks_may_see_one_gpu_each(
    strategy: str, gpus: FakeGpus, flags: list[str], on_cpu: Callable[[str], Path], tmp_path: Path
) -> None:
    more = f"{MODELS['llama']} --strategy {strategy} --precision 32 --accelerator gpu".split()
    done = gpus.train(tmp_path / "run", [*flags, *more], world=2, verb=("train_as_task",))
    assert done.code == 0, done.said
    assert "Launch: 2 GPUs, " in done.said
    assert losses_of(done.run) == pytest.approx(losses_of(on_cpu("llama")), abs=TOLERANCES["32"])


LSTM = [
    "--model.model_type",
    "sslm_lstm",
    "--model.hidden_size",
    "32",
    "--precision",
    "bf16-true",
    "--anomaly.action",
    "off",
]


@pytest.mark.parametrize(("strategy", "world"), [("ddp", 2), ("deepspeed_1", 1)])
def test_libraries_warn_of_nothing(strategy: str, world: int, gpus: FakeGpus, tiny: list[str], tmp_path: Path) -> None:
    flags = ["--accelerator", "gpu", "--devices", str(world), "--strategy", strategy, "--max_steps", "3"]
    done = gpus.train(tmp_path / "run", [*tiny, *flags], world=world)
    assert done.code == 0, done.said
    assert "UserWarning" not in done.said


def test_cudnns_lstm_warns_of_nothing(hollow_gpus: FakeGpus, tiny: list[str], tmp_path: Path) -> None:
    flags = ["--accelerator", "gpu", "--devices", "1", "--max_steps", "3", "--data.val_sequences", "4"]
    done = hollow_gpus.train(tmp_path / "run", [*without_model(tiny), *LSTM, *flags])
    assert "Launch: 1 GPU" in done.said
    assert "Warning" not in done.said
