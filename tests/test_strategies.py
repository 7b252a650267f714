"""One process == DDP x 2 == FSDP x 2, and each goes on from the others' checkpoints. Real gloo processes."""

import json
from pathlib import Path

import pytest

from tests.processes import run_command
from tests.test_train import losses_of, rows_of, val_of

STRATEGIES = {
    "single": ["--strategy", "single"],
    "ddp": ["--strategy", "ddp", "--devices", "2"],
    "fsdp": ["--strategy", "fsdp", "--devices", "2"],
}


def train(run: Path, tiny: list[str], *flags: str) -> int:
    done = run_command(["-m", "sslm.train", *tiny, "--run_dir", str(run), *flags], timeout=150)
    assert done.returncode in (0, 75), done.stderr
    return done.returncode


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    run = tmp_path_factory.mktemp("single") / "run"
    train(run, tiny, *STRATEGIES["single"])
    return run


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_processes_give_the_losses_of_one(name: str, single: Path, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, tiny, *STRATEGIES[name], "--micro_batch_size", "1")
    assert losses_of(run) == pytest.approx(losses_of(single), abs=1e-6)
    assert list(val_of(run).values()) == pytest.approx(list(val_of(single).values()), abs=1e-6)
    digests = [[row["batch_digest"] for row in rows_of(r) if "batch_digest" in row] for r in (run, single)]
    assert digests[0] == digests[1]
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert (run / "export/model.safetensors").is_file()


@pytest.mark.parametrize("order", [["fsdp", "ddp", "single"], ["ddp", "fsdp"]], ids="-".join)
def test_each_strategy_goes_on_from_anothers_checkpoint(
    order: list[str], single: Path, tiny: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for name in order[:-1]:
        assert train(run, tiny, *STRATEGIES[name], "--stop_after", "3steps") == 75
    assert train(run, tiny, *STRATEGIES[order[-1]]) == 0
    assert losses_of(run) == pytest.approx(losses_of(single), abs=1e-6)
    assert list(val_of(run).values()) == pytest.approx(list(val_of(single).values()), abs=1e-6)


def test_wrong_flags_end_before_a_process_is_started(tiny: list[str], tmp_path: Path) -> None:
    done = run_command(["-m", "sslm.train", *tiny, "--run_dir", str(tmp_path / "run"), "--devices", "3"])
    assert done.returncode == 2
    assert done.stderr.startswith("error: --batch_size 4: can't be shared by 3 devices")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_torchrun_starts_the_ranks_and_says_how_many(single: Path, tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29591", "-m", "sslm.train"]
    done = run_command([*torchrun, *tiny, "--run_dir", str(run)], timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Run folder:") == 1
    assert losses_of(run) == pytest.approx(losses_of(single), abs=1e-6)
    assert run_command([*torchrun, *tiny, "--run_dir", str(run), "--devices", "3"], timeout=200).returncode != 0
