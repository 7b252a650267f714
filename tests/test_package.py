"""What `pip install sslm` gives: archives with every file, from which a wheel comes that works where no checkout is."""

import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest

import sslm
from sslm.__main__ import main

ROOT = Path(__file__).parents[1]
BUILD_ARCHIVE = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("archive")
    checkout = out / "checkout"  # building leaves folders
    subprocess.run(["git", "clone", "--quiet", ROOT, checkout], check=True)
    subprocess.run([sys.executable, "-c", BUILD_ARCHIVE, out], cwd=checkout, check=True, capture_output=True)
    return out / f"sslm-{sslm.__version__}.tar.gz"


@pytest.fixture(scope="module")
def wheel(archive: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", archive.parent, archive]
    done = subprocess.run(command, capture_output=True, text=True)
    if "Could not find a version" in done.stderr:
        pytest.skip("building takes setuptools, which pip did not find")
    assert done.returncode == 0, done.stderr
    return archive.parent / f"sslm-{sslm.__version__}-py3-none-any.whl"


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{sslm.__version__}\n"
    assert f"## {sslm.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_archive_has_every_file_of_the_checkout(archive: Path) -> None:
    with tarfile.open(archive) as opened:
        names = {member.name.partition("/")[2] for member in opened if member.isfile()}
    made = {"PKG-INFO", "setup.cfg"} | {name for name in names if name.startswith("sslm.egg-info/")}
    copies = {f"sslm/{name}" for name in tracked("configs")}
    assert names - made == {name for name in tracked() if not name.startswith(".")} - {"sslm/configs"} | copies


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    files = {name.replace("configs/", "sslm/configs/") for name in tracked("sslm", "configs")} - {"sslm/configs"}
    assert files == {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}


@pytest.mark.slow
def test_an_installed_wheel_trains_by_a_config_that_it_brings(
    wheel: Path, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    [site] = (tmp_path / "venv/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--ignore-installed"]
    subprocess.run([*install, wheel], check=True)
    code = "import sslm; print(sslm.__file__)"
    where = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert where.strip() == str(site / "sslm/__init__.py")
    command = [tmp_path / "venv/bin/sslm", "train", "--config", "laptop", *tiny, "--max_steps", "2", "--run_dir", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run/export/model.safetensors").is_file()


def tracked(*folders: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(listed.stdout.splitlines())
