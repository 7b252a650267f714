"""Images built and run for real, on this one machine: buildah, podman and runc, on a base of Debian's own packages.

No service runs and no registry is asked. Images are kept in the user's cache folder (4 GB), apart from any others
of this machine.
Needs root on Linux; installs Debian's packages where they are missing.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from platformdirs import user_cache_path

from tests.support.debian import install

PACKAGES = {"buildah": "buildah", "podman": "podman", "runc": "runc", "conmon": "conmon", "debootstrap": "debootstrap"}
CHECKOUT = Path(__file__).parents[2]
BASE = "localhost/base:bookworm"
"""What docker/Dockerfile stands on, which elsewhere is Debian's own image."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
NEEDED_BYTES = 8 * 10**9


class Podman:
    """Images and containers that live in a folder.

    Args:
        folder: where they are kept.
        scratch: for files that builds see.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.scratch = folder, scratch
        self.places = ["--root", str(folder / "storage"), "--runroot", str(folder / "run")]
        self.started: list[str] = []

    def call(self, program: str, *words: str, timeout: float = 1200) -> str:
        """Run buildah or podman and return what it prints."""
        done = self.attempt(program, *words, timeout=timeout)
        assert done.returncode == 0, f"{program} {' '.join(words)}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout.strip()

    def attempt(self, program: str, *words: str, timeout: float = 1200) -> "subprocess.CompletedProcess[str]":
        kind = ["--cgroup-manager=cgroupfs", "--runtime=runc"] if program == "podman" else []
        environment = {**os.environ, "BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "overlay"}
        command = [program, *self.places, *kind, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)

    def make_base(self) -> None:
        if self.attempt("buildah", "inspect", "--type=image", BASE).returncode == 0:
            return
        system = self.scratch / "system"
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(system)],
            capture_output=True,
            text=True,
            timeout=600,
        )
        if done.returncode:
            pytest.skip(f"debootstrap failed: {done.stdout[-500:]}{done.stderr[-500:]}")
        container = self.call("buildah", "from", "scratch")
        self.call("buildah", "add", container, str(system), "/")
        self.call("buildah", "commit", "--rm", container, BASE)
        shutil.rmtree(system)

    def build(self, tag: str, context: Path, *options: str) -> None:
        """Build docker/Dockerfile with this machine's network, certificates and pip settings; none of it stays."""
        pip_conf = self.scratch / "pip.conf"
        lines, mounts = ["[global]"], [f"{pip_conf}:/etc/pip.conf:ro"]
        for name in ("index-url", "find-links"):
            command = [sys.executable, "-m", "pip", "config", "get", f"global.{name}"]
            if value := subprocess.run(command, capture_output=True, text=True).stdout.strip():
                lines.append(f"{name} = {value}")
                mounts += [f"{value}:{value}:ro"] if Path(value).is_dir() else []
        if CERTIFICATES.is_file():
            lines.append(f"cert = {CERTIFICATES}")
            mounts.append(f"{CERTIFICATES}:{CERTIFICATES}:ro")
        pip_conf.write_text("\n".join(lines) + "\n")
        volumes = [f"--volume={mount}" for mount in mounts]
        kind = ["--layers", "--format=docker", "--network=host", f"--build-arg=BASE_IMAGE={BASE}"]
        self.call("buildah", "build", *kind, *volumes, *options, f"--tag={tag}", str(context))
        self.call("podman", "image", "prune", "--force")  # layers of what it was before

    def start(self, image: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
        """Start a container without a network and return its name."""
        name = f"sslm-{uuid.uuid4().hex[:8]}"
        self.started.append(name)
        limits = ["--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096"]  # podman's own may be above the machine's
        self.call("podman", "run", "--detach", "--network=none", f"--name={name}", *limits, *options, image, *arguments)
        return name

    def run(self, image: str, *arguments: str, options: tuple[str, ...] = ()) -> tuple[int, str]:
        """Run a container to its end and return its exit code and what it printed."""
        name = self.start(image, *arguments, options=options)
        return self.code_of(name), self.said_by(name)

    def code_of(self, name: str) -> int:
        """Wait for a container's end and return its exit code."""
        return int(self.call("podman", "wait", name, timeout=300))

    def said_by(self, name: str) -> str:
        done = self.attempt("podman", "logs", name)
        return done.stdout + done.stderr

    def close(self) -> None:
        for name in self.started:
            self.call("podman", "rm", "--force", "--time=0", name)
        subprocess.run(["umount", "--quiet", str(self.folder / "storage/overlay")], check=False)  # it holds itself


@contextlib.contextmanager
def containers(scratch: Path) -> Iterator[Podman]:
    """What builds and runs images; skips where nothing can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("building and running images takes root on Linux")
    install(PACKAGES)
    folder = user_cache_path("sslm") / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "storage").is_dir() and shutil.disk_usage(folder).free < NEEDED_BYTES:
            pytest.skip(f"images take {NEEDED_BYTES / 1e9:g} GB in {folder}")
        podman = Podman(folder, scratch)
        try:
            podman.make_base()
            yield podman
        finally:
            podman.close()
