"""`sslm doctor --nodes`: the ranks of a job beside each other, and the one that is missing, slow or cut off."""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from sslm.cli.doctor import main, nodes
from sslm.cli.doctor.finding import Finding
from tests.support.processes import Ranks
from tests.support.slurm import slurm_cluster

NAMES = ["rank 0 (a)", "rank 1 (a)", "rank 2 (b)", "rank 3 (b)"]


def rate_of_ring(slow: set[tuple[int, int]]) -> nodes.Told:
    """Tell of a ring of four, in which some pairs reach each other slowly."""
    pairs = [(0, 1), (1, 2), (2, 3), (0, 3)]
    return {
        rank: {str(sum(pair) - rank): 1e9 if pair in slow else 9e9 for pair in pairs if rank in pair}
        for rank in range(4)
    }


@pytest.mark.parametrize(
    ("slow", "found"),
    [
        ({(1, 2)}, {"within a node": "9 GB/s to 9 GB/s", "between nodes": "rank 1 (a) and rank 2 (b): 1 GB/s"}),
        ({(2, 3)}, {"within a node": "rank 2 (b) and rank 3 (b): 1 GB/s", "between nodes": "9 GB/s to 9 GB/s"}),
    ],
)
def test_the_two_between_which_it_is_slow_are_named(slow: set[tuple[int, int]], found: dict[str, str]) -> None:
    findings = {finding.name: finding for finding in nodes.judge_pairs(rate_of_ring(slow), NAMES)}
    for kind, text in found.items():
        finding = findings[f"rank to rank, {kind}"]
        assert finding.found.startswith(text)
        assert finding.level == ("bad" if "rank" in text else "good")


def test_ranks_that_differ_from_the_first_are_named() -> None:
    same = {"host": "a", "device": "H100", "versions": {"torch": "2.13"}}
    told = {0: same, 1: same | {"host": "b", "device": "CPU", "versions": {"torch": "2.12"}}}
    _, device, torch = nodes.judge_introductions(told, ["rank 0", "rank 1"])
    assert device.found == "rank 1 (b) has CPU; rank 0 has H100"
    assert torch.found == "rank 1 (b) has 2.12; rank 0 has 2.13"


def test_a_rank_that_computes_slowly_is_named() -> None:
    [finding] = nodes.judge_products({0: 4e12, 1: 1e12, 2: 3.9e12, 3: 4e12}, NAMES)
    assert (finding.level, finding.found) == ("bad", "rank 1 (a): 1 TFLOP/s; the best has 4 TFLOP/s")


def test_alone_it_is_refused_with_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nodes"]) == 2
    assert "srun sslm doctor --nodes" in capsys.readouterr().err


def be_patient_for_seconds(stopped: bool) -> None:
    """Wait for others for a short time; and never begin, if this is the last rank."""
    nodes.SECONDS = 3.0 if stopped else 60.0
    if stopped and os.environ["RANK"] == "1":
        time.sleep(60)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_ranks_are_measured_or_the_missing_one_is_named(stopped: bool, tmp_path: Path) -> None:
    before = partial(be_patient_for_seconds, stopped)
    ranks = Ranks(["--nodes", "--json"], tmp_path / "log", world=2, before=before, verb=main)
    ranks.processes[0].join(60)
    findings = [Finding(**finding) for finding in json.loads((tmp_path / "log.0").read_text())["findings"]]
    if not stopped:
        assert ranks.wait()[1] == 0
        names = ["ranks", "matmul", "rank to rank, within a node", "all-reduce", "all-gather", "reduce-scatter"]
        assert [finding.name for finding in findings] == names
        assert {finding.level for finding in findings if finding.name != "matmul"} == {"good"}  # others compute, too
        return
    ranks.signal(signal.SIGKILL, 1)
    assert ranks.wait()[0] == 1
    [finding] = findings
    assert (finding.name, finding.level) == ("ranks", "bad")
    assert finding.found == "nothing heard of rank 1, while 1 other did their part"


@pytest.mark.slow
def test_a_node_behind_a_slow_link_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with slurm_cluster(tmp_path, nodes=3) as cluster:
        limit = "rate 400mbit burst 1mb latency 50ms"
        cluster.run("tc", "qdisc", "add", "dev", "node3", "root", "tbf", *limit.split())
        with pytest.raises(AssertionError, match=r"BAD +rank to rank, between nodes +rank 2 \(node3\): 0.\d+ GB/s"):
            cluster.run("srun", "-N3", "-n3", f"--chdir={tmp_path}", "sslm", "doctor", "--nodes", seconds=150)
