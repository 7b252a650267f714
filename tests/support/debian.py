"""Programs that tests run and Debian has."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock


def install(packages: dict[str, str]) -> None:
    """Install what is missing, or skip the test if that is not possible.

    Args:
        packages: program -> the package that has it.
    """
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        pytest.skip(f"no {', '.join(missing)} here, which root installs by apt-get")
    with FileLock(Path(tempfile.gettempdir()) / "sslm-apt-get.lock"):  # other tests install, too; update doesn't wait
        _apt_get(missing)


def _apt_get(packages: list[str]) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    wait = ("-o", "DPkg::Lock::Timeout=300")
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
        done = subprocess.run(["apt-get", "-qq", *wait, *command], capture_output=True, text=True, env=environment)
        if done.returncode:
            pytest.skip(f"apt-get {command[0]} failed: {done.stderr.strip()}")
