"""slurm/pretrain.sbatch on a SLURM cluster of two nodes: whatever happens, the run is the uninterrupted one."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sslm.data.corpus.cleaned import read_record
from tests.support.processes import run_command
from tests.support.runs import rows_of
from tests.support.slurm import Cluster, slurm_cluster

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
FLAGS = [
    "--strategy",
    "fsdp",
    "--max_steps",
    "120",
    "--val_every",
    "60",
    "--checkpoint.every_steps",
    "20",
    "--model.attention_dropout",
    "0.1",
]

Submit = Callable[..., str]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """An uninterrupted run of two processes."""
    run = tmp_path_factory.mktemp("straight") / "run"
    command = ["-m", "sslm.train", *tiny, *FLAGS, "--devices", "2", "--run_dir", str(run)]
    done = run_command(command, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("cluster"), nodes=2) as running:
        yield running


@pytest.fixture
def submit(cluster: Cluster, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submit:
    """submit(*options of sbatch, flags=…): the script for a process on each of two nodes, in tmp_path; the job's id."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    size = ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0", f"--chdir={tmp_path}"]

    def send(*options: str, flags: tuple[str, ...] = ("--run_dir", "run")) -> str:
        script = str(ROOT / "slurm/pretrain.sbatch")
        return cluster.run("sbatch", "--parsable", *size, *options, script, *tiny, *FLAGS, *flags)

    return send


def wait_for_rows(cluster: Cluster, run: Path, number: int = 5) -> None:
    metrics = run / "metrics.jsonl"
    cluster.wait_for(f"{number} rows", lambda: metrics.is_file() and metrics.read_bytes().count(b"\n") >= number)


def wait_for_restart(cluster: Cluster, job: str) -> None:
    def is_one() -> bool:
        now = cluster.job(job)
        return now["Restarts"] == "1" or now["JobState"] == "FAILED"  # which is seen in the end

    cluster.wait_for("the job is queued again", is_one)


def wait_for_end(cluster: Cluster, job: str) -> dict[str, str]:
    """The job as it is after it has ended: completed, or failed for good."""
    cluster.wait_for("the job has ended", lambda: cluster.job(job)["JobState"] in ("COMPLETED", "FAILED"))
    return cluster.job(job)


def steps_of(run: Path) -> list[tuple[Any, ...]]:
    keys = ("step", "train/loss", "grad_norm", "batch_digest")
    return [tuple(row[key] for key in keys) for row in rows_of(run) if "train/loss" in row]


def check(cluster: Cluster, job: str, folder: Path, straight: Path) -> None:
    """The job was restarted once; its run is the uninterrupted one bit for bit, in measurements and weights."""
    ended = wait_for_end(cluster, job)
    log = (folder / f"slurm-sslm-{job}.log").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), log
    assert "resuming at step" in log
    assert steps_of(folder / "run") == steps_of(straight)
    assert len(steps_of(straight)) == 120
    weights = [(run / "export/model.safetensors").read_bytes() for run in (folder / "run", straight)]
    assert weights[0] == weights[1]


def test_time_limit_stops_saves_and_requeues(cluster: Cluster, submit: Submit, straight: Path, tmp_path: Path) -> None:
    job = submit("--time=60")
    wait_for_rows(cluster, tmp_path / "run")
    cluster.run("scancel", "--signal=STOP", job)  # SLURM looks at time limits twice a minute; the run would be over
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=3")
    cluster.wait_for(
        "SLURM has sent the signal", lambda: "warning signal" in (cluster.folder / "control.log").read_text()
    )
    cluster.run("scancel", "--signal=CONT", job)
    wait_for_restart(cluster, job)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    assert "(SIGUSR1), all saved" in (tmp_path / f"slurm-sslm-{job}.log").read_text()
    check(cluster, job, tmp_path, straight)


def test_job_that_needs_the_nodes_more_gets_them(
    cluster: Cluster, submit: Submit, straight: Path, tmp_path: Path
) -> None:
    job = submit()
    wait_for_rows(cluster, tmp_path / "run")
    urgent = cluster.run(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"
    )
    wait_for_restart(cluster, job)
    assert wait_for_end(cluster, urgent)["JobState"] == "COMPLETED"
    assert "(SIGTERM), all saved" in (tmp_path / f"slurm-sslm-{job}.log").read_text()
    check(cluster, job, tmp_path, straight)


def test_node_that_is_lost_takes_nothing_along(
    cluster: Cluster, submit: Submit, straight: Path, tmp_path: Path
) -> None:
    job = submit()
    wait_for_rows(cluster, tmp_path / "run", 30)  # a checkpoint among them
    cluster.cut_off("node2")
    try:
        wait_for_restart(cluster, job)
    finally:
        cluster.bring_back("node2")
    check(cluster, job, tmp_path, straight)
    assert "Node failure on node2" in (tmp_path / f"slurm-sslm-{job}.log").read_text()


def test_array_is_a_run_for_each_seed(cluster: Cluster, submit: Submit, straight: Path, tmp_path: Path) -> None:
    job = submit("--array=0-1")
    for task in (0, 1):
        ended = wait_for_end(cluster, f"{job}_{task}")
        assert ended["JobState"] == "COMPLETED"
        assert yaml.safe_load((tmp_path / f"run-seed{task}/config.yaml").read_text())["seed"] == task
    assert steps_of(tmp_path / "run-seed0") == steps_of(straight)
    assert not {row[1] for row in steps_of(tmp_path / "run-seed1")} & {row[1] for row in steps_of(straight)}
    assert not (tmp_path / "run").exists()


def test_failure_is_tried_again_so_often_and_a_mistake_never(
    cluster: Cluster, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the other task ends with, which srun ends then."""
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\n[ $SLURM_PROCID = 0 ] && exit $CODE\ntrap "exit 75" TERM\nsleep 60 &\nwait\n')
    python.chmod(0o755)
    monkeypatch.setenv("MAX_RESTARTS", "1")
    jobs = {}
    for code in ("1", "2"):
        monkeypatch.setenv("CODE", code)
        jobs[code] = submit(f"--export=ALL,PATH={python.parent}:{os.environ['PATH']}")
    for code, restarts in (("1", "1"), ("2", "0")):
        ended = wait_for_end(cluster, jobs[code])
        assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("FAILED", restarts, f"{code}:0")
    assert len((tmp_path / f"slurm-sslm-{jobs['1']}.failures").read_text().splitlines()) == 2
    assert not (tmp_path / f"slurm-sslm-{jobs['2']}.failures").exists()


def test_array_shares_a_clean_and_one_job_ends_it(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"text {name}\n---\ntext of all")
    flags = [
        *(f"{name}.txt" for name in "abc"),
        "--document_separator",
        "\n---\n",
        "--dedup",
        "exact",
        "--out",
        "clean",
    ]
    submit = ["sbatch", "--parsable", f"--chdir={tmp_path}", "--cpus-per-task=1"]
    script = str(ROOT / "slurm/clean.sbatch")
    array = cluster.run(*submit, "--array=1-3", script, *flags)
    last = cluster.run(*submit, f"--dependency=afterok:{array}", script, *flags)
    assert wait_for_end(cluster, last)["JobState"] == "COMPLETED", [log.read_text() for log in tmp_path.glob("*.log")]
    counts = read_record(tmp_path / "clean")["counts"]["documents"]
    assert (counts["read"], counts["kept"]) == (6, 4)
