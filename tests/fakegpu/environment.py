"""An environment with fake GPUs: a virtual environment with a CUDA build of torch, and the runtime that stands in.

It is made once, in one to two minutes and 5 GB, in the user's cache folder, or in the folder that SSLM_FAKEGPU_VENV
names; a virtual environment that is there already is taken as it is. All but torch comes from the environment that runs
the tests.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

CHECKOUT = Path(__file__).parent.parent.parent
RUNTIME = Path(__file__).parent / "runtime"
TORCH = "torch==2.11.*"
"""Not an open range: the newest torch of an index need not be a CUDA build."""
HEADERS = "nvidia-cuda-crt"
"""CUDA headers that torch doesn't bring."""
NEEDED_BYTES = 8 * 10**9
TOOLS = ("gcc", "g++", "nm")
NO_NETWORK = ("(from versions: none)", "Failed to establish a new connection", "NameResolutionError", "ConnectTimeout")
"""What pip says if it can't reach its index."""


class Missing(Exception):
    """What an environment takes is not there: what, and what to type."""


def prepare() -> Path:
    """Return the virtual environment's folder; make it, and its runtime, if they are not there.

    Raises:
        Missing: the machine has no network, compiler, or room for it.
        RuntimeError: all was there, and it failed.
    """
    if sys.platform != "linux":
        raise Missing("the fake GPUs run under Linux only")
    if absent := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise Missing(f"the fake GPUs are built with {', '.join(absent)}: apt-get install gcc g++ binutils")
    if find_spec("deepspeed") is None:
        raise Missing("DeepSpeed runs on the fake GPUs, too: pip install 'sslm[deepspeed]'")
    folder = environment_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "bin/python").exists():
            install(folder)
        if not runtime_of(folder).is_dir():
            build(folder)
    return folder


def variables(folder: Path) -> dict[str, str]:
    """The environment variables of a process with fake GPUs."""
    runtime = runtime_of(folder)
    return {
        # a test of this process that ran sslm on the CPU has told DeepSpeed so
        **{name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"},
        "FAKE_RUNTIME": str(runtime),
        "FAKE_SITE": sysconfig.get_path("purelib"),
        "LD_PRELOAD": str(runtime / "libfakecuda.so"),
        "LD_LIBRARY_PATH": str(runtime),
        "PYTHONPATH": f"{RUNTIME / 'site'}:{CHECKOUT}",
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def environment_folder() -> Path:
    if named := os.environ.get("SSLM_FAKEGPU_VENV"):
        return Path(named).absolute()
    key = digest([TORCH, HEADERS, sysconfig.get_python_version()])
    return user_cache_path("sslm") / f"fakegpu-{key}"


def runtime_of(folder: Path) -> Path:
    """Where the runtime is that belongs to these sources."""
    sources = [file.read_text() for file in sorted(RUNTIME.iterdir()) if file.is_file()]
    return folder / f"fake-runtime-{digest(sources)}"


def digest(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def install(folder: Path) -> None:
    """Make the virtual environment beside its place, which it takes when it is whole."""
    free = shutil.disk_usage(folder.parent).free
    if free < NEEDED_BYTES:
        raise Missing(
            f"{folder.parent} has {free / 1e9:.0f} GB free, the fake GPUs' environment takes {NEEDED_BYTES / 1e9:g}: "
            f"make room, or set SSLM_FAKEGPU_VENV to a folder elsewhere"
        )
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    call([sys.executable, "-m", "venv", str(part)])
    pip(part, [TORCH])
    pip(part, ["--no-deps", HEADERS])
    part.rename(folder)


def pip(folder: Path, packages: list[str]) -> None:
    command = [
        str(folder / "bin/python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--retries",
        "2",
        "--no-compile",
        *packages,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode and any(words in done.stderr for words in NO_NETWORK):
        raise Missing(
            "pip reaches no index to install the fake GPUs' environment from: connect this machine, or set "
            "SSLM_FAKEGPU_VENV to a virtual environment that has a CUDA build of torch 2.11"
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")


def build(folder: Path) -> None:
    """Compile the runtime for the environment's torch."""
    paths = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(call([str(folder / "bin/python"), "-c", paths]).strip())
    torch, cuda = site / "torch", site / "nvidia/cu13/include"
    if not (torch / "lib/libtorch_cuda.so").exists():
        raise Missing(f"torch in {folder} is no CUDA build: {folder}/bin/pip install '{TORCH}' from PyPI's own index")
    if not (cuda / "crt").is_dir():
        pip(folder, ["--no-deps", HEADERS])
    runtime = runtime_of(folder)
    part = runtime.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    call([sys.executable, str(RUNTIME / "stubs.py"), str(torch / "lib")], cwd=part)
    headers = [f"-I{path}" for path in (cuda, torch / "include", torch / "include/torch/csrc/api/include", part)]
    libraries = [f"-L{torch}/lib", "-ltorch", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch}/lib"]
    compile_library(["gcc", "-O2"], ["cudart.c", "nccl.c", "libraries.c"], part / "libfakecuda.so", headers, ["-lm"])
    compile_library(["gcc", "-O1"], ["libcuda.c"], part / "libcuda.so.1", headers)
    compile_library(["g++", "-O1", "-std=c++20"], ["cpuops.cpp"], part / "libcpuops.so", headers, libraries)
    part.rename(runtime)


def compile_library(
    compiler: list[str], sources: list[str], library: Path, headers: list[str], libraries: Sequence[str] = ()
) -> None:
    inputs = [str(RUNTIME / source) for source in sources]
    call([*compiler, "-shared", "-fPIC", "-w", *headers, *inputs, "-o", str(library), *libraries])


def call(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return done.stdout
