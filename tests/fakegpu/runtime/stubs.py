"""Write functions that do nothing for what torch takes from CUDA's libraries and no source here defines.

python stubs.py TORCH_LIB    # stubs.h and driver_stubs.h, in the current folder
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
USERS = ("libtorch_cuda.so", "libtorch_cuda_linalg.so", "libtorch_python.so")


def undefined(library: Path) -> set[str]:
    """Names that a library takes from others."""
    listed = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    return {line.split()[-1].partition("@")[0] for line in listed.stdout.splitlines()}


def defined(source: str) -> set[str]:
    """Names of the functions that a source here has."""
    return set(re.findall(r"^API [\w ]+[ *](\w+)\(", (HERE / source).read_text(), re.MULTILINE))


def stub(name: str) -> str:
    if name.startswith("cudnnCreate"):
        return f"API int {name}(void **made_here) {{ return made(made_here, 4096); }}"
    is_matmul = re.search(r"[Gg]emm|Matmul$|gemv", name)
    return f"API int {name}(void) {{ {'count(MATMUL, 0); ' if is_matmul else ''}return 0; }}"


if __name__ == "__main__":
    torch = Path(sys.argv[1])
    taken = set[str]().union(*(undefined(torch / user) for user in USERS))
    libraries = {name for name in taken if name.startswith(("cublas", "cudnn"))} - defined("libraries.c")
    driver = {n for n in undefined(torch / "libcaffe2_nvrtc.so") if re.match("cu[A-Z]", n)} - defined("libcuda.c")
    Path("stubs.h").write_text("".join(f"{stub(name)}\n" for name in sorted(libraries)))
    Path("driver_stubs.h").write_text("".join(f"API int {name}(void) {{ return 0; }}\n" for name in sorted(driver)))
