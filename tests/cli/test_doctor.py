"""`sslm doctor`: what it finds on this machine, and what it says of one that lacks something."""

import json
import resource
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sslm.cli.doctor import environment, host, main
from sslm.cli.doctor.finding import Check, Finding, findings_of
from tests.support.processes import Ranks

Findings = dict[str, dict[str, str]]


def examined(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, Findings]:
    """Run the verb without its runs; return its exit code, and findings by name."""
    code = main(["--json", *flags])
    return code, by_name(capsys.readouterr().out)


def by_name(said: str) -> Findings:
    told: dict[str, Any] = json.loads(said)
    assert told["hurts"] == any(finding["level"] == "bad" for finding in told["findings"])
    return {finding["name"]: finding for finding in told["findings"]}


def test_each_side_of_this_machine_is_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    code, findings = examined(capsys)
    assert code == int(any(finding["level"] == "bad" for finding in findings.values()))
    assert {"python", "sslm", "torch", "packages", "cores", "memory", "open files", "processes"} <= set(findings)
    assert {finding["level"] for finding in findings.values()} <= {"good", "note", "bad"}
    assert all(finding["hurts"] for finding in findings.values() if finding["level"] == "bad")
    assert "transformers" in findings["packages"]["found"]


def test_a_limit_that_is_too_low_is_bad_with_what_to_type(tmp_path: Path) -> None:
    lower = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (100, 100))
    forked = Ranks(["--json"], tmp_path / "log", before=lower, verb=main)
    assert forked.wait() == [1]
    finding = by_name(forked.said())["open files"]
    assert (finding["level"], finding["found"]) == ("bad", "100, and at most 100")
    assert "ulimit -n" in finding["to_type"]


def test_no_secret_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "SSLM_PASSWORD"):
        monkeypatch.setenv(name, "tell-nobody")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:tell-nobody@proxy:3128")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    main([])
    said = capsys.readouterr().out
    assert "tell-nobody" not in said
    assert all(words in said for words in ("HF_TOKEN", "(set; hidden)", "http://proxy:3128", "NCCL_DEBUG"))


@pytest.mark.parametrize(
    ("name", "value", "level"),
    [("CUDA_LAUNCH_BLOCKING", "1", "bad"), ("CUDA_VISIBLE_DEVICES", "", "note"), ("PYTHONHASHSEED", "0", "good")],
)
def test_variables_that_hurt_are_told(name: str, value: str, level: str) -> None:
    [finding] = environment.look({name: value, "EDITOR": "vi"})
    assert (finding.name, finding.level) == (name, level)


def test_more_threads_than_the_quota_leaves_are_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/job\n")
    (tmp_path / "sys/fs/cgroup/job").mkdir(parents=True)
    assert host.cpu_quota(tmp_path) is None
    (tmp_path / "sys/fs/cgroup/job/cpu.max").write_text("max 100000\n")
    assert host.cpu_quota(tmp_path) is None
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("150000 100000\n")
    assert host.cpu_quota(tmp_path) == 1.5
    threads = host.usable_cores() + 1
    forked = Ranks(["--json"], tmp_path / "log", before=partial(host.torch.set_num_threads, threads), verb=main)
    forked.wait()
    assert by_name(forked.said())["cores"]["level"] == "bad"


def test_an_error_and_no_answer_are_findings() -> None:
    def broken() -> list[Finding]:
        raise ValueError("what")

    forever = threading.Event()
    [error] = findings_of(Check("broken", broken, seconds=5))
    [late] = findings_of(Check("late", lambda: [Finding("late", str(forever.wait()))], seconds=0.05))
    forever.set()
    assert (error.level, error.found) == ("note", "could not be checked: ValueError: what")
    assert (late.level, late.found) == ("bad", "no answer within 0.05 s")
