"""`sslm doctor`: what it finds on this machine, and what it says of one that lacks something."""

import json
import os
import re
import resource
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import sslm
from sslm.cli.doctor import environment, gpus, host, main, network
from sslm.cli.doctor.finding import Check, Finding, findings_of
from sslm.cli.doctor.strategies import Trial, trials, tried
from sslm.parallel import cores
from tests.support.files import use_for_temporary_files
from tests.support.processes import Ranks, free_port, run_command
from tests.support.servers import HttpServer

Findings = dict[str, dict[str, str]]


def examined(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, Findings]:
    """Run the verb without its runs; return its exit code, and findings by name."""
    code = main(["--json", "--quick", "--offline", *flags])
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
    forked = Ranks(["--json", "--quick", "--offline"], tmp_path / "log", before=lower, verb=main)
    assert forked.wait() == [1]
    finding = by_name(forked.said())["open files"]
    assert (finding["level"], finding["found"]) == ("bad", "100, and at most 100")
    assert "ulimit -n" in finding["to_type"]


def test_no_secret_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "SSLM_PASSWORD"):
        monkeypatch.setenv(name, "tell-nobody")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:tell-nobody@proxy:3128")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("HF_WHATEVER", f"hf_{'a1B2' * 8}")
    main(["--quick", "--offline"])
    said = capsys.readouterr().out
    assert "tell-nobody" not in said
    assert "a1B2" not in said
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
    assert cores.cpu_quota(tmp_path) is None
    (tmp_path / "sys/fs/cgroup/job/cpu.max").write_text("max 100000\n")
    assert cores.cpu_quota(tmp_path) is None
    (tmp_path / "sys/fs/cgroup/cpu.max").write_text("150000 100000\n")
    assert cores.cpu_quota(tmp_path) == 1.5
    monkeypatch.setenv("OMP_NUM_THREADS", str(len(cores.usable_cpus()) + 1))
    asked = host.cores()
    assert asked.level != "good"
    assert asked.to_type.startswith("export OMP_NUM_THREADS=")
    threads = len(cores.usable_cpus()) + 1
    forked = Ranks(
        ["--json", "--quick", "--offline"],
        tmp_path / "log",
        before=partial(host.torch.set_num_threads, threads),
        verb=main,
    )
    forked.wait()
    assert by_name(forked.said())["cores"]["level"] == "bad"


def test_a_broken_torch_is_told_with_what_else_is_there(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so: cannot open shared object file')")
    paths = f"{tmp_path}:{Path(sslm.__file__).parents[1]}"
    finished = run_command(["-m", "sslm", "doctor", "--json"], env={"PYTHONPATH": paths})
    findings = by_name(finished.stdout)
    assert finished.returncode == 1
    assert findings["torch"]["found"] == "can't be imported: libcudart.so: cannot open shared object file"
    assert "transformers" in findings["packages"]["found"]


def test_a_product_in_bf16_is_exact() -> None:
    assert gpus.product("cpu", "CPU").found == "right in bf16"


def test_the_ceiling_is_what_a_matmul_reaches() -> None:
    found = gpus.ceiling(torch.device("cpu"), torch.float32).found
    assert re.fullmatch(r"[\d.]+ [GT]FLOP/s in float32, a matmul of 1024 x 1024", found)


def test_an_error_and_no_answer_are_findings() -> None:
    def broken() -> list[Finding]:
        raise ValueError("what")

    forever = threading.Event()
    [error] = findings_of(Check("broken", broken, seconds=5))
    look = Check("late", lambda: [Finding("late", str(forever.wait()))], seconds=0.05)
    [late], [mildly] = findings_of(look), findings_of(look._replace(if_late="note"))
    forever.set()
    assert (error.level, error.found) == ("note", "could not be checked: ValueError: what")
    assert (late.level, late.found) == ("bad", "no answer within 0.05 s")
    assert mildly.level == "note"


def test_a_folder_that_takes_no_files_is_bad_and_one_that_does_stays_empty(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, findings = examined(capsys, "--run_dir", "/proc/self", "--cache_dir", str(tmp_path / "not/yet"))
    assert code == 1
    assert findings["run folder's disk, files"]["level"] == "bad"
    assert "--run_dir" in findings["run folder's disk, files"]["to_type"]
    assert findings["cache's disk, locks"]["level"] == "good"
    assert "writes" in findings["cache's disk, speed"]["found"]
    assert list(tmp_path.iterdir()) == []


def test_servers_are_asked_and_their_errors_are_notes(tmp_path: Path) -> None:
    server = HttpServer(tmp_path)
    try:
        environ = {"HF_ENDPOINT": server.url.replace("//", "//me:tell-nobody@"), "WANDB_BASE_URL": server.url}
        server.faults = [503, 407]
        found = [*network.hub(environ), *network.wandb({**environ, "WANDB_API_KEY": "tell-nobody"})]
        assert [finding.level for finding in found] == ["note", "note"]
        assert "503" in found[0].found
        assert "(logged in)" in found[1].found
        [answering] = network.wandb(environ)
        assert answering.level == "good"
    finally:
        server.stop()
    found += network.hub({"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"})
    assert "Connection refused" in found[-1].found
    assert "tell-nobody" not in str(found)
    [offline] = network.wandb({"WANDB_MODE": "offline"})
    assert offline.level == "good"


SMI = """#!/bin/sh
cat <<END
0, 570.1, 0, 1980, 1980, 40, 120.5, 700.00, 0x0000000000000004
1, 570.1, 3, 1980, 1980, 41, 120.5, 700.00, 0x0000000000000000
2, 570.1, [N/A], 345, 1980, 93, 120.5, 700.00, 0x0000000000000060
END
"""


def test_what_the_driver_says_of_health_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    healthy, failed, hot = gpus.health()
    assert [healthy.level, failed.level, hot.level] == ["good", "bad", "bad"]
    assert "too hot" in hot.found
    assert "memory" in failed.hurts
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho no devices were found; exit 6\n")
    [silent] = gpus.health()
    assert (silent.level, silent.found) == ("note", "no devices were found")
    if not gpus.torch.cuda.is_available():
        assert gpus.none_seen().level == "bad"


def test_strategies_are_tried_on_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(trials(["single", "ddp"], gpus=0)) == [Trial("single", "cpu", 1), Trial("ddp", "cpu", 2)]
    on_eight = [Trial("single", "gpu", 1), Trial("ddp", "gpu", 8), Trial("ddp", "cpu", 2), Trial("fsdp", "gpu", 8)]
    assert list(trials(["single", "ddp", "fsdp"], gpus=8)) == on_eight
    assert main(["--strategies", "single,ddpp"]) == 2
    assert "--strategies ddpp: there is no such strategy (did you mean ddp?)" in capsys.readouterr().err


@pytest.mark.slow
def test_three_steps_are_trained_or_the_error_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["--json", "--offline", "--strategies", "ddp"])
    assert by_name(capsys.readouterr().out)["ddp on 2 CPU processes"]["found"].startswith("3 steps, in ")
    refused = tried(Trial("single", "cpu", 0), tmp_path, os.environ)
    assert refused.level == "bad"
    assert refused.found.startswith("--batch_size 0: expected a whole number above 0")
    late = tried(Trial("ddp", "cpu", 2), tmp_path, os.environ, seconds=0.5)
    assert (late.level, late.found) == ("bad", "not done within 0.5 s")


@pytest.mark.slow
def test_nothing_stays_after_an_interrupt(tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    flags, there = ["--offline", "--strategies", "single"], partial(use_for_temporary_files, folder)
    forked = Ranks(flags, tmp_path / "log", before=there, verb=main)
    while not (runs := list(folder.glob("sslm-doctor-*/*"))):
        assert forked.is_alive(), forked.said()
        time.sleep(0.02)
    forked.signal(signal.SIGINT)
    assert forked.wait() == [75], runs
    assert list(folder.iterdir()) == []
