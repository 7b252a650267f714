"""Whether the packages that sslm needs are there, in versions that it knows."""

import platform
from collections.abc import Iterator
from importlib import metadata
from shlex import quote

from packaging.requirements import Requirement

import sslm
from sslm.cli.doctor.finding import Finding

DEVELOPERS = "dev"
"""The extra that no run needs."""


def look() -> Iterator[Finding]:
    """Compare what is installed with the ranges in sslm's own metadata."""
    yield Finding("python", f"{platform.python_version()}, {platform.platform()}")
    yield Finding("sslm", sslm.__version__)
    yield from packages()
    yield from torch_build()


def packages() -> Iterator[Finding]:
    """Yield what is missing or out of range, then all that is there."""
    there: list[str] = []
    absent: list[str] = []
    for requirement, extra in requirements():
        version = version_of(requirement.name)
        if version is None and extra:
            absent.append(f"{requirement.name} (sslm[{extra}])")
        elif version is None or not requirement.specifier.contains(version, prereleases=True):
            what = "is not installed" if version is None else f"{version} is not in {requirement.specifier}"
            wanted = quote(f"{requirement.name}{requirement.specifier}")
            yield Finding(requirement.name, what, "bad", "anything that uses it", f"pip install {wanted}")
        else:
            there.append(f"{requirement.name} {version}")
    yield Finding("packages", ", ".join(there))
    if absent:
        yield Finding("extras", f"not there: {', '.join(absent)}")


def requirements() -> Iterator[tuple[Requirement, str]]:
    """Yield what sslm needs, each with the extra that it belongs to, or ''."""
    extras = [extra for extra in metadata.metadata("sslm").get_all("Provides-Extra") or () if extra != DEVELOPERS]
    for text in metadata.requires("sslm") or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            yield requirement, ""
            continue
        yield from ((requirement, extra) for extra in extras if marker.evaluate({"extra": extra}))


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def torch_build() -> Iterator[Finding]:
    """Tell what torch was built with, and whether it can be imported at all."""
    try:
        import torch
    except Exception as error:  # a library of the system's that it needs, for example
        again = "pip install --force-reinstall torch"
        yield Finding("torch", f"can't be imported: {error}", "bad", "everything", again)
        return
    if torch.version.cuda is None:
        yield Finding("torch", f"{torch.__version__}, built for {'ROCm' if torch.version.hip else 'CPUs alone'}")
        return
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    yield Finding("torch", f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}, NCCL {nccl}")
