"""One process == several under every strategy, and each goes on from the others' checkpoints. Real gloo processes."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sslm.cli.parse import parse
from sslm.objectives import PRETRAINING
from sslm.parallel.deepspeed import settings
from sslm.parallel.launch import Launch
from tests.support.objectives import CASES, Case
from tests.support.processes import free_port, run_command, train_forked
from tests.support.runs import losses_of, rows_of, val_of, without_model

MIXTURE = (
    "--model.model_type mixtral --model.num_local_experts 4 --model.num_experts_per_tok 2 --model.num_key_value_heads 2"
)
LSTM = "--model.model_type sslm_lstm --model.hidden_size 32"
STRATEGIES = {
    "single": ["--strategy", "single"],
    "ddp": ["--strategy", "ddp", "--devices", "2"],
    "fsdp": ["--strategy", "fsdp", "--devices", "2"],
    "zero2": [
        "--strategy",
        "fsdp",
        "--devices",
        "2",
        "--fsdp.reshard_after_forward",
        "false",
        "--fsdp.reduce_gradients",
        "micro_batch",
    ],
    "overlap": ["--strategy", "fsdp", "--devices", "4", "--fsdp.reshard_after_forward", "2", "--fsdp.prefetch", "2"],
    "context": ["--strategy", "fsdp", "--devices", "2", "--context_parallel_size", "2"],
    "context_of_two": ["--strategy", "fsdp", "--devices", "4", "--context_parallel_size", "2"],
    "hsdp": ["--strategy", "hsdp", "--devices", "4", "--fsdp.replicas", "2"],
    "tp": ["--strategy", "tp", "--devices", "2"],
    "fsdp_tp": ["--strategy", "fsdp_tp", "--devices", "4", "--tensor_parallel_size", "2"],
    "pp": ["--strategy", "pp", "--devices", "2"],
    "deepspeed_1": ["--strategy", "deepspeed_1", "--devices", "2"],
    "deepspeed_2": ["--strategy", "deepspeed_2", "--devices", "2", "--deepspeed.offload_optimizer"],
    "deepspeed_3": ["--strategy", "deepspeed_3", "--devices", "2"],
}

FAMILIES = {
    str(case): case for case in [*CASES, Case("causal_lm", LSTM, "", "perplexity", "AutoModelForCausalLM", "lstm")]
}
"""Objectives and architectures, but for Llama, which all the other tests here train."""

OF_FAMILIES = [
    *((family, "fsdp") for family in FAMILIES),
    *((family, "ddp") for family in FAMILIES if family in (*PRETRAINING, "lstm")),
    ("masked_lm", "deepspeed_1"),
    ("span_corruption", "deepspeed_2"),
    ("denoising", "deepspeed_3"),
    ("lstm", "deepspeed_3"),
]
GO_ON = ("ddp", "deepspeed_2")
"""These go on from one process' checkpoint; the others begin with weights of their own making."""


def train(run: Path, tiny: list[str], *flags: str) -> int:
    done = train_forked([*tiny, "--run_dir", str(run), *flags], run.with_name(f"{run.name}.log"))
    assert done.returncode in (0, 75), done.stdout
    return done.returncode


@pytest.fixture(scope="module")
def tiny(tiny: list[str]) -> list[str]:
    """With a learning rate for each depth: losses and weights show whether a strategy takes each group's."""
    return [*tiny, "--optim.layer_decay", "0.8"]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    run = tmp_path_factory.mktemp("single") / "run"
    train(run, tiny, *STRATEGIES["single"])
    return run


def assert_alike(run: Path, other: Path, tolerance: float = 1e-6) -> None:
    assert losses_of(run) == pytest.approx(losses_of(other), abs=tolerance)
    assert list(val_of(run).values()) == pytest.approx(list(val_of(other).values()), abs=tolerance)
    norms, digests = (
        [[row[name] for row in rows_of(r) if name in row] for r in (run, other)]
        for name in ("grad_norm", "batch_digest")
    )
    assert norms[0] == pytest.approx(norms[1], rel=10 * tolerance)
    assert digests[0] == digests[1]


EVERYDAY = ("fsdp", "deepspeed_2")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in EVERYDAY else pytest.mark.slow) for n in STRATEGIES if n != "single"]
)
def test_several_processes_give_the_losses_of_one(name: str, single: Path, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, tiny, *STRATEGIES[name], "--micro_batch_size", "1")
    assert_alike(run, single)
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert weights_of(run).keys() == weights_of(single).keys()
    for weight, other in zip(weights_of(run).values(), weights_of(single).values(), strict=True):
        assert (weight - other).abs().mean() < 1e-6  # of single ones AdamW blows rounding errors up


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return dict(sorted(load_file(run / "export/model.safetensors").items()))


SingleOf = Callable[[str], tuple[Path, list[str]]]


@pytest.fixture(scope="module")
def single_of(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> SingleOf:
    """A family's run on one process, made once, and its flags."""

    @functools.cache
    def run_of(family: str) -> tuple[Path, list[str]]:
        case = FAMILIES[family]
        flags = [*without_model(tiny), "--objective", case.objective, *case.flags.split(), *case.dropout.split()]
        run = tmp_path_factory.mktemp(family) / "run"
        train(run, flags, *STRATEGIES["single"])
        return run, flags

    return run_of


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), OF_FAMILIES)
def test_so_do_those_of_every_family(family: str, name: str, single_of: SingleOf, tmp_path: Path) -> None:
    single, flags = single_of(family)
    run = tmp_path / "run"
    if name in GO_ON:
        shutil.copytree(single, run)
        shutil.rmtree(run / "checkpoints/step-000008")
    train(run, flags, *STRATEGIES[name], "--micro_batch_size", "1")
    assert_alike(run, single, 2e-6)
    last = [[row for row in rows_of(r) if "val/loss" in row][-1] for r in (run, single)]
    metrics = [{k: v for k, v in row.items() if k.startswith("val/")} for row in last]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-5, rel=1e-5)
    assert f"val/{FAMILIES[family].metric}" in metrics[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "tolerance", "name"),
    [  # every strategy in every precision: tests/fakegpu/test_runs.py
        *(("bf16-mixed", 2e-3, name) for name in ("single", "fsdp", "tp", "deepspeed_2")),
        *(("bf16-true", 4e-3, name) for name in ("single", "ddp", "fsdp", "deepspeed_3")),
        *(("16-mixed", 5e-4, name) for name in ("single", "ddp")),  # refused of the others (test_launch)
    ],
)
def test_every_precision_gives_nearly_the_losses_of_fp32(
    precision: str, tolerance: float, name: str, single: Path, tiny: list[str], tmp_path: Path
) -> None:
    if precision == "16-mixed" or name in ("single", "deepspeed_2"):
        train(tmp_path / "run", tiny, *STRATEGIES[name], "--precision", precision, "--stop_after", "3steps")
    train(tmp_path / "run", tiny, *STRATEGIES[name], "--precision", precision)
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(single), abs=tolerance)
    assert losses_of(tmp_path / "run") != losses_of(single)
    scales = json.loads((tmp_path / "run/checkpoints/step-000008/state.json").read_text()).get("loss_scale")
    assert (scales == {"scale": 65536.0, "_growth_tracker": 8}) == (precision == "16-mixed")


def answer_for_the_cpu(dtypes: Path) -> None:
    """Let torch say of the CPU whether it autocasts, as it does of GPUs; and note what blocks' layers give."""
    really = torch.is_autocast_enabled
    torch.is_autocast_enabled = lambda device_type="cpu": really(device_type)

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(module, nn.Linear) and isinstance(output, torch.Tensor) and torch.is_grad_enabled():
            with open(dtypes, "a") as file:
                file.write(f"{output.dtype}\n")

    nn.modules.module.register_module_forward_hook(note)


def test_deepspeed_leaves_autocast_on(tiny: list[str], tmp_path: Path) -> None:
    """On GPUs its engine finds what stands around it, and switches it off."""
    flags = ["--strategy", "deepspeed_1", "--devices", "1", "--precision", "bf16-mixed", "--max_steps", "1"]
    before = functools.partial(answer_for_the_cpu, tmp_path / "dtypes")
    done = train_forked([*tiny, *flags, "--run_dir", str(tmp_path / "run")], tmp_path / "log", before=before)
    assert done.returncode == 0, done.stdout
    assert set((tmp_path / "dtypes").read_text().split()) == {"torch.bfloat16"}


CHAINS = [
    ["deepspeed_1", "tp", "single"],
    pytest.param(["fsdp", "ddp", "single"], marks=pytest.mark.slow),
    pytest.param(["single", "context", "pp", "tp", "context_of_two", "ddp"], marks=pytest.mark.slow),
    pytest.param(["single", "deepspeed_3", "fsdp", "deepspeed_2", "ddp"], marks=pytest.mark.slow),
    pytest.param(["tp", "deepspeed_3", "deepspeed_1", "hsdp", "fsdp_tp", "deepspeed_2"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize("order", CHAINS, ids="-".join)
def test_each_strategy_goes_on_from_anothers_checkpoint(
    order: list[str], single: Path, tiny: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for name in order[:-1]:
        assert train(run, tiny, *STRATEGIES[name], "--stop_after", "1steps" if len(order) > 3 else "3steps") == 75
    assert train(run, tiny, *STRATEGIES[order[-1]]) == 0
    assert_alike(run, single)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "schedule_free"])  # each: tests/training/optimizers/test_optimizers.py
def test_so_it_does_with_other_optimizers(optimizer: str, tiny: list[str], tmp_path: Path) -> None:
    flags = [*tiny, "--optim.name", optimizer]
    train(tmp_path / "single", flags, *STRATEGIES["single"])
    for name in ("fsdp", "hsdp", "ddp"):
        assert train(tmp_path / "run", flags, *STRATEGIES[name], "--stop_after", "2steps") == 75
    assert train(tmp_path / "run", flags, *STRATEGIES["fsdp_tp"]) == 0
    assert_alike(tmp_path / "run", tmp_path / "single", 1e-5)


@pytest.mark.slow
def test_an_encoder_decoders_run_goes_on_from_other_strategies(single_of: SingleOf, tmp_path: Path) -> None:
    single, flags = single_of("denoising")
    for name in ("fsdp", "deepspeed_3"):
        assert train(tmp_path / "run", flags, *STRATEGIES[name], "--stop_after", "1steps") == 75
    assert train(tmp_path / "run", flags, *STRATEGIES["single"]) == 0
    assert_alike(tmp_path / "run", single)


@pytest.mark.slow
def test_a_mixtures_run_goes_on_when_devices_share_its_experts_and_when_none_do(
    tiny: list[str], tmp_path: Path
) -> None:
    flags = [*tiny, *MIXTURE.split()]
    train(tmp_path / "single", flags, *STRATEGIES["single"])
    assert train(tmp_path / "run", flags, *STRATEGIES["single"], "--stop_after", "2steps") == 75
    experts = ["--strategy", "fsdp", "--devices", "4", "--expert_parallel_size", "2"]
    assert train(tmp_path / "run", flags, *experts, "--stop_after", "3steps") == 75
    assert train(tmp_path / "run", flags, *STRATEGIES["single"]) == 0
    assert_alike(tmp_path / "run", tmp_path / "single")


@pytest.mark.slow
def test_deepspeeds_own_settings_win_and_change_no_loss(single: Path, tiny: list[str], tmp_path: Path) -> None:
    file = tmp_path / "zero.json"
    file.write_text('{"zero_optimization": {"reduce_bucket_size": 1000, "stage": "auto"}, "train_batch_size": "auto"}')
    flags = ["--deepspeed.config", str(file), "--strategy", "deepspeed_2"]
    made = settings(parse(flags), Launch("cpu", 2, 1, "deepspeed_2", "32"))
    assert made["zero_optimization"] == {"stage": 2, "overlap_comm": False, "reduce_bucket_size": 1000}
    assert "train_batch_size" not in made
    train(tmp_path / "run", tiny, *STRATEGIES["deepspeed_2"], "--deepspeed.config", str(file))
    assert_alike(tmp_path / "run", single)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [["--robust.adversarial", "fgm"], ["--robust.embedding_noise", "5"], ["--model.tie_word_embeddings", "true"]],
    ids=["fgm", "noise", "tied"],
)
def test_tensor_parallel_reads_embeddings_as_one_process_does(how: list[str], tiny: list[str], tmp_path: Path) -> None:
    flags = [*how, "--micro_batch_size", "2"]
    train(tmp_path / "one", tiny, *STRATEGIES["single"], *flags)
    train(tmp_path / "two", tiny, *STRATEGIES["tp"], *flags)
    assert_alike(tmp_path / "two", tmp_path / "one", tolerance=1e-5)


def test_wrong_flags_end_before_a_process_is_started(tiny: list[str], tmp_path: Path) -> None:
    done = train_forked([*tiny, "--run_dir", str(tmp_path / "run"), "--devices", "3"], tmp_path / "log", 1)
    assert done.returncode == 2
    assert done.stdout.startswith("error: --batch_size 4: can't be shared evenly by 3 devices")
    assert len(done.stdout.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_torchrun_starts_the_ranks_and_says_how_many(single: Path, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
        "-m",
        "sslm.train",
    ]
    done = run_command([*torchrun, *tiny, "--run_dir", str(run)], timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Run folder:") == 1
    assert losses_of(run) == pytest.approx(losses_of(single), abs=1e-6)
    refused = train_forked([*tiny, "--run_dir", str(run), "--devices", "3"], tmp_path / "log", world=2)
    assert refused.returncode == 2
    assert "error: --devices 3: torchrun started 2" in refused.stdout
