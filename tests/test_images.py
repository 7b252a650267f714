"""docker/: what images are made of, and an image that is built and run, stopped, and goes on."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import sslm
from sslm.cli.parse import parse
from sslm.cli.prepare import flag_parser
from sslm.system.exits import DONE, STOPPED, USER_ERROR
from tests.support.containers import Podman, containers
from tests.support.runs import TINY, losses_of

ROOT = Path(__file__).parent.parent
VARIANTS = ("cpu", "cuda")
[EXTRAS] = [line.split()[2:] for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("EXTRAS")]

each_variant = pytest.mark.parametrize("variant", VARIANTS)


# ------------------------------------------------------------------------------------------------ the locks


def lock_of(variant: str) -> str:
    return (ROOT / f"docker/requirements-{variant}.lock").read_text()


def pins_of(variant: str) -> dict[str, Version]:
    return {name: Version(version) for name, version in re.findall(r"^([\w-]+)==(\S+) \\$", lock_of(variant), re.M)}


def asked_for(extras: list[str]) -> Iterator[Requirement]:
    """What pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in project["dependencies"] + [line for name in extras for line in project["optional-dependencies"][name]]:
        yield Requirement(line)


@each_variant
def test_locks_are_in_step_with_what_is_asked_for(variant: str) -> None:
    pins = pins_of(variant)
    for requirement in asked_for(EXTRAS):
        assert requirement.specifier.contains(pins[requirement.name]), f"{requirement}: type make locks"


@each_variant
def test_each_pin_has_hashes_and_no_index_is_named(variant: str) -> None:
    text = lock_of(variant)
    pins = re.findall(r"^\S+==\S+ \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)    # via ", text, re.M)
    assert len(pins) == len(re.findall(r"^[^\s#]", text, re.M)) == len(pins_of(variant))
    assert "://" not in text


def test_variants_differ_in_cuda_alone() -> None:
    cpu, cuda = (pins_of(variant) for variant in VARIANTS)
    assert str(cpu.pop("torch")) == f"{cuda.pop('torch')}+cpu"
    assert cuda.items() >= cpu.items()
    assert all(re.match("nvidia-|cuda-|triton$", name) for name in cuda.keys() - cpu.keys())


def test_images_have_all_extras_but_those_of_developers() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"dev", "docs"}


# ------------------------------------------------------------------------------------------------ compose, recipe


def service(name: str) -> Any:
    return yaml.safe_load((ROOT / "docker/compose.yaml").read_text())["services"][name]


def test_compose_types_what_sslm_understands() -> None:
    settings = parse(service("train")["command"])
    program, verb, *words = service("prepare")["command"]
    assert (program, verb) == ("sslm", "prepare")
    assert str(flag_parser().parse_args(words).out) == str(settings.data.train)
    assert service("ui")["command"][:2] == ["sslm", "ui"]


def test_compose_leaves_the_time_to_save_and_keeps_no_secret() -> None:
    page = (ROOT / "docs/clouds.md").read_text()
    [seconds] = set(re.findall(r"--stop-timeout (\d+) ", page))
    train = service("train")
    assert train["stop_grace_period"] == f"{int(seconds) // 60}m"
    assert all("=" not in variable for variable in train["environment"])  # handed on, not written here
    assert all(service(name)["cap_drop"] == ["ALL"] for name in ("train", "prepare", "ui"))


def test_recipe_builds_both_variants_from_pinned_actions() -> None:
    recipe = yaml.safe_load((ROOT / ".github/workflows/images.yml").read_text())
    [job] = recipe["jobs"].values()
    assert job["strategy"]["matrix"]["variant"] == list(VARIANTS)
    used = [step["uses"] for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in used)
    assert recipe["permissions"] == {}


# ------------------------------------------------------------------------------------------------ a real image

IMAGE = "localhost/sslm:test"
FLAGS = [*TINY, "--data.train", "my.txt", "--max_steps", "60", "--val_every", "60", "--checkpoint.every_steps", "1000"]
LOGGED = ["--logger", "wandb,tensorboard,csv", "--watchdog_seconds", "8"]
DECOYS = (".env", "configs/.env", "docker/key.pem", "sslm/id_rsa", ".git/config")
HEALTH = "import sys; sys.path.insert(0, '/opt/sslm'); import healthcheck as h; h.BETWEEN_LOOKS_SECONDS = 3; {}"


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """What runs the image, which is built from this checkout and some files that must not get into it."""
    with containers(tmp_path_factory.mktemp("scratch")) as podman:
        context = tmp_path_factory.mktemp("context")
        for name in (".dockerignore", "LICENSE", "README.md", "pyproject.toml"):
            shutil.copy(ROOT / name, context)
        for name in ("configs", "docker", "sslm"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, context / name, symlinks=True, ignore=ignored)
        (context / ".git").mkdir()
        for name in DECOYS:
            (context / name).write_text("DECOY-SECRET")
        podman.build(IMAGE, context, "--build-arg=VARIANT=cpu", f"--file={context}/docker/Dockerfile")
        yield podman


@pytest.fixture
def workspace(tmp_path: Path, text: Path) -> Path:
    """A folder of the image's user with a text in it."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    shutil.copy(text, folder / "my.txt")
    os.chown(folder, 1000, 1000)
    return folder


def inside(podman: Podman, name: str, *command: str) -> "subprocess.CompletedProcess[str]":
    return podman.attempt("podman", "exec", name, *command)


def wait_for_lines(file: Path, number: int, podman: Podman, name: str) -> None:
    end = time.monotonic() + 180
    while not file.is_file() or file.read_bytes().count(b"\n") < number:
        assert time.monotonic() < end, podman.said_by(name)
        time.sleep(0.1)


@pytest.mark.slow
def test_an_image_trains_stops_with_all_saved_and_goes_on(podman: Podman, workspace: Path) -> None:
    """SIGTERM, as `docker stop` sends it, reaches Python itself, which is process 1's child."""
    mount = (f"--volume={workspace}:/workspace",)
    whole = podman.start(IMAGE, *FLAGS, *LOGGED, "--run_dir", "runs/whole", options=mount)
    assert podman.code_of(whole) == DONE, podman.said_by(whole)

    name = podman.start(IMAGE, *FLAGS, *LOGGED, "--run_dir", "runs/stopped", options=mount)
    run = workspace / "runs/stopped"
    wait_for_lines(run / "metrics.jsonl", 3, podman, name)
    first = podman.call("podman", "inspect", "--format={{.State.Pid}}", name)
    [python] = map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())
    os.kill(python, signal.SIGSTOP)
    frozen = inside(podman, name, "python", "-c", HEALTH.format("sys.exit(h.main())"))
    os.kill(python, signal.SIGCONT)
    assert frozen.returncode == 1, frozen
    assert re.search("no heartbeat in 3 s: process [0-9]+, /workspace/runs/stopped/stacks", frozen.stdout)
    podman.call("podman", "stop", "--time=120", name)
    assert podman.code_of(name) == STOPPED, podman.said_by(name)
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", "SIGTERM")
    assert 0 < status["step"] < 60

    podman.call("podman", "start", name)
    assert podman.code_of(name) == DONE, podman.said_by(name)
    assert losses_of(run) == losses_of(workspace / "runs/whole")
    assert (run / "export/model.safetensors").stat().st_uid == 1000
    assert list(run.glob("wandb/offline-run-*"))


@pytest.mark.slow
def test_a_container_that_has_just_begun_hears_a_stop(podman: Podman, workspace: Path) -> None:
    """The kernel drops what process 1 doesn't handle, and Python handles nothing in its first moments."""
    for seconds in (0.0, 0.1, 0.2, 0.3, 0.5):
        name = podman.start(IMAGE, *FLAGS, options=(f"--volume={workspace}:/workspace",))
        time.sleep(seconds)
        podman.call("podman", "stop", "--time=60", name)
        assert podman.code_of(name) in (128 + signal.SIGTERM, STOPPED), (seconds, podman.said_by(name))


@pytest.mark.slow
def test_an_image_runs_other_commands_too(podman: Podman, workspace: Path) -> None:
    mount = (f"--volume={workspace}:/workspace",)
    name = podman.start(IMAGE, "sh", "-c", "sleep 300", options=mount)
    healthy = inside(podman, name, "python", "-c", HEALTH.format("sys.exit(h.main())"))
    assert (healthy.returncode, healthy.stdout) == (0, "well\n")  # nothing trains there
    prepared = inside(podman, name, "sslm", "prepare", "my.txt", "--out", "corpus", "--tokenizer", "bpe:512")
    assert prepared.returncode == DONE, prepared
    asked = ["--config", "gpt2-124m", "--data.train", "corpus", "--seq_len", "64", "--batch_size", "16"]
    planned = inside(podman, name, "sslm", "plan", *asked, "--plan_for", "h100:1")
    assert "fits" in planned.stdout, planned
    torchrun = ["torchrun", "--nproc-per-node=2", "-m", "sslm.train", *FLAGS, "--data.train", "corpus"]
    trained = inside(podman, name, *torchrun, "--max_steps", "2", "--run_dir", "runs/two", "--strategy", "deepspeed_2")
    assert trained.returncode == DONE, trained
    modules = "gcsfs, lm_eval, mlflow, peft, s3fs, sacrebleu, tensorboard, torch, trackio, wandb, deepspeed"
    imported = inside(podman, name, "python", "-c", f"import {modules}; print(torch.__version__)")
    assert imported.stdout.strip().endswith("+cpu"), imported


@pytest.mark.slow
def test_a_mistake_ends_a_container_with_2(podman: Podman) -> None:
    code, said = podman.run(IMAGE, "--no_such_flag", "1")
    assert (code, said.count("\n")) == (USER_ERROR, 1)
    assert said.startswith("error: there is no flag --no_such_flag")


@pytest.mark.slow
def test_an_image_has_no_root_no_secret_and_nothing_to_spare(podman: Podman) -> None:
    settings = json.loads(podman.call("podman", "image", "inspect", IMAGE))[0]
    assert settings["User"] == "1000:1000"
    assert settings["Healthcheck"]["Test"] == ["CMD", "python", "/opt/sslm/healthcheck.py"]
    whole = f"{settings['Config']}{podman.call('podman', 'history', '--no-trunc', IMAGE)}"
    assert not re.search("SECRET|TOKEN|PASSWORD|_KEY", whole)
    spare = "-name *.deb -o -path /root/.cache/* -o -path /tmp/* -o -path /var/lib/apt/lists/*"
    look = f"set -f; find / -xdev {spare}; grep -rl DECOY-SECRET /opt /workspace; ls /opt/sslm"
    _, said = podman.run(IMAGE, "sh", "-c", look, options=("--user=0",))  # who sees all
    wheel = f"sslm-{sslm.__version__}-py3-none-any.whl"
    assert said.split() == ["entrypoint.sh", "healthcheck.py", "requirements.lock", wheel]
