"""What `pip install sslm` gives: the wheel has the package's every file, and works where there is no checkout."""

import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    checkout = out / "checkout"  # building leaves folders
    subprocess.run(["git", "clone", "--quiet", ROOT, checkout], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, checkout]
    done = subprocess.run(command, capture_output=True, text=True)
    if "Could not find a version" in done.stderr:
        pytest.skip("building takes setuptools, which pip did not find")
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "sslm", "configs"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = {name.replace("configs/", "sslm/configs/") for name in listed.stdout.splitlines()} - {"sslm/configs"}
    assert files == {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}


@pytest.mark.slow
def test_an_installed_wheel_trains_by_a_config_that_it_brings(wheel: Path, tiny: list[str], tmp_path: Path) -> None:
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
