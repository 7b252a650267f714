"""Processes of Lightning's launcher, torchrun and srun: ranks, time limits, exit codes that reach the shell."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from sslm.cli.parse import parse
from sslm.parallel.launch import Launch, data_parallel_size, devices
from sslm.parallel.launchers import Slurm
from sslm.parallel.strategies import trainer_settings
from sslm.system.errors import UserError
from sslm.system.ranks import is_first_of_node, is_first_process, tells_exit_code
from sslm.train import main
from tests.support.processes import free_port, kill_group, run_command, start_command, train_forked
from tests.support.runs import ranks_of, wait_for_step

LONE_FAILURE = """
import os, time
from pathlib import Path
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from sslm.parallel.launchers import watch_children

class Fails(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
    def on_train_start(self):
        if self.global_rank == 1:
            os._exit(CODE)
        time.sleep(60)  # as one that waits for the other would
    def training_step(self, batch, index):
        return self.layer(batch).sum()

trainer = Trainer(accelerator="cpu", devices=2, strategy=DDPStrategy(process_group_backend="gloo"), logger=False,
                  enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, max_steps=1)
watch_children(trainer, lambda code, reason: Path("FOLDER/reason").write_text(f"{code} {reason}"))
trainer.fit(Fails(), torch.utils.data.DataLoader(torch.zeros(4, 1)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("childs", "at_the_shell"), [(2, 2), (7, 1)])
def test_a_child_that_fails_alone_ends_the_run_with_its_code(childs: int, at_the_shell: int, tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(LONE_FAILURE.replace("CODE", str(childs)).replace("FOLDER", str(tmp_path)))
    done = run_command([str(script)], timeout=60, env={"PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.returncode == at_the_shell
    assert f"error: local rank 1 ended with exit code {childs}; any message of its own stands above" in done.stderr
    assert (tmp_path / "reason").read_text() == f"{at_the_shell} local rank 1 ended with exit code {childs}"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_ends_the_run_in_time(
    number: signal.Signals, tiny: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = ["--strategy", "ddp", "--devices", "2", "--max_steps", "100000", "--collective_timeout_seconds", "5"]
    process = start_command(["-m", "sslm.train", *tiny, "--run_dir", str(run), *flags])
    try:
        wait_for_step(run)
        child = ranks_of(run)["1"]
        os.kill(child, number)
        before = time.monotonic()
        assert process.wait(timeout=40) == 1
        assert time.monotonic() - before < 30
    finally:
        kill_group(process)
        process.communicate()
    assert json.loads((run / "status.json").read_text())["exit_code"] == 1
    end = time.monotonic() + 10
    while ranks_of(run):
        assert time.monotonic() < end, "a rank was left behind"
        time.sleep(0.1)


def test_a_process_that_the_others_dont_meet_ends_in_time(tiny: list[str], tmp_path: Path) -> None:
    flags = ["--strategy", "ddp", "--num_nodes", "2", "--start_timeout_seconds", "3"]
    alone = {"NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = train_forked([*tiny, "--run_dir", str(tmp_path / "run"), *flags], tmp_path / "log", env=alone)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("not all processes connected within 3 s (--start_timeout_seconds)")


def test_nodes_that_were_not_told_where_they_meet_are_refused(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    for name in ("NODE_RANK", "MASTER_PORT"):  # Lightning leaves them behind in the process
        monkeypatch.delenv(name, raising=False)
    run = tmp_path / "run"
    assert main([*tiny, "--run_dir", str(run), "--strategy", "ddp", "--num_nodes", "2"]) == 2
    assert "error: --num_nodes 2: NODE_RANK, MASTER_PORT not set; start this command on" in capsys.readouterr().err
    assert not run.exists()


def test_each_node_that_nothing_else_started_tells_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod of an indexed Job that ended with 0 would never be started again."""
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert tells_exit_code()
    assert not is_first_process()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not tells_exit_code()


def test_torchruns_ranks_but_the_first_tell_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    for rank in ("0", "8"):
        monkeypatch.setenv("RANK", rank)
        assert tells_exit_code() == (rank == "0")


# ------------------------------------------------------------------------------------------------ SLURM


@pytest.fixture
def srun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The variables that srun gives the last of 2 x 4 tasks."""
    task = {
        "SLURM_JOB_ID": "1234",
        "SLURM_JOB_NAME": "sslm",
        "SLURM_NTASKS": "8",
        "SLURM_NNODES": "2",
        "SLURM_PROCID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_LOCALID": "3",
        "SLURM_NODEID": "1",
        "SLURM_NODELIST": "node[1-2]",
    }
    for name, value in task.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # or what is set meanwhile would not be taken back
        monkeypatch.delenv(name)
    return monkeypatch


def test_sruns_tasks_are_the_ranks(srun: pytest.MonkeyPatch) -> None:
    cluster = Slurm()
    assert not is_first_process()
    assert (cluster.world_size(), cluster.global_rank(), cluster.local_rank(), cluster.node_rank()) == (8, 7, 3, 1)
    assert cluster.main_address == "node1"
    assert data_parallel_size(parse(["--accelerator", "cpu"])) == 8
    with pytest.raises(UserError, match=r"--devices 2: srun started 4 tasks on each of 2 nodes; give --devices 4"):
        data_parallel_size(parse(["--accelerator", "cpu", "--devices", "2"]))
    with pytest.raises(UserError, match=r"--num_nodes 3: srun started 4 tasks on each of 2 nodes"):
        data_parallel_size(parse(["--accelerator", "cpu", "--num_nodes", "3"]))


def test_tasks_that_see_one_gpu_each_are_ranks_on_device_0(srun: pytest.MonkeyPatch) -> None:
    srun.setattr(torch.cuda, "device_count", lambda: 1)
    srun.setenv("SLURM_GPUS_ON_NODE", "4")  # as under srun --gpus-per-task=1
    config = parse(["--accelerator", "gpu"])
    assert devices(config) == ("gpu", 4, 2)
    launch = Launch("gpu", 4, 2, "ddp", "32")
    settings = trainer_settings(config, launch)
    cluster = settings["plugins"][-1]
    assert (settings["devices"], settings["num_nodes"]) == (1, 2)
    assert (cluster.world_size(), cluster.global_rank(), cluster.local_rank(), cluster.node_rank()) == (8, 7, 0, 1)
    assert not is_first_of_node(cluster.local_rank())
    srun.setattr(torch.cuda, "device_count", lambda: 4)
    assert trainer_settings(config, launch)["devices"] == 4
    assert trainer_settings(config, launch)["plugins"][-1].local_rank() == 3


def test_tasks_that_would_share_a_gpu_are_refused(srun: pytest.MonkeyPatch) -> None:
    srun.setattr(torch.cuda, "device_count", lambda: 1)
    srun.setenv("SLURM_GPUS_ON_NODE", "1")
    give = r"give srun --gpus-per-task=1, or --ntasks-per-node=1"
    with pytest.raises(UserError, match=rf"srun started 4 tasks on each node, and this one sees 1 GPU; {give}"):
        devices(parse(["--accelerator", "gpu"]))


def test_the_shell_of_a_batch_script_is_no_task(srun: pytest.MonkeyPatch) -> None:
    srun.delenv("SLURM_STEP_ID")
    srun.setenv("SLURM_PROCID", "0")
    assert is_first_process()
    assert data_parallel_size(parse(["--accelerator", "cpu", "--devices", "2"])) == 2


def test_a_requeued_job_meets_at_another_port(srun: pytest.MonkeyPatch) -> None:
    ports = []
    for restarts in (None, "1", "2"):
        if restarts:
            srun.setenv("SLURM_RESTART_COUNT", restarts)
        ports.append(Slurm().main_port)
        srun.delenv("MASTER_PORT")
    assert len(set(ports)) == 3
    srun.setenv("MASTER_PORT", "4321")
    assert Slurm().main_port == 4321
