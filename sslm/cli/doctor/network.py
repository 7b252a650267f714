"""Whether the servers answer that a run may ask."""

import netrc
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from sslm.cli.doctor.finding import Finding
from sslm.system.errors import one_line, without_secrets

SECONDS = 3.0
"""How long a server may take."""


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether the environment says that the hub is not to be asked."""
    return environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def none_asked() -> Iterator[Finding]:
    yield Finding("servers", "none asked (--offline, or HF_HUB_OFFLINE)")


def hub(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Ask Hugging Face's hub, or what HF_ENDPOINT names."""
    url = environ.get("HF_ENDPOINT") or "https://huggingface.co"
    yield asked(
        "hub",
        url,
        "--model.pretrained, tokenizers and data by their names there",
        "export HF_HUB_OFFLINE=1 if that is meant",
    )


def wandb(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Ask Weights & Biases, or what WANDB_BASE_URL names."""
    if environ.get("WANDB_MODE") in ("offline", "disabled"):
        yield Finding("W&B", f"not asked: WANDB_MODE={environ['WANDB_MODE']}")
        return
    url = environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    login = "logged in" if environ.get("WANDB_API_KEY") or has_login(url) else "nobody is logged in"
    found = asked("W&B", url, "--logger wandb, which then writes to the run folder", "export WANDB_MODE=offline")
    yield Finding(found.name, f"{found.found} ({login})", found.level, found.hurts, found.to_type)


def asked(name: str, url: str, hurts: str, to_type: str) -> Finding:
    """Ask a server for its first page; any answer will do, but that of a proxy which refuses."""
    start, shown = time.perf_counter(), without_secrets(url)
    try:
        with urllib.request.urlopen(shown, timeout=SECONDS) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    except (OSError, ValueError) as error:
        why = without_secrets(one_line(error).removeprefix("<urlopen error ").removesuffix(">"))
        return Finding(name, f"{shown} can't be reached: {why}", "note", hurts, to_type)
    if status == 407 or status >= 500:
        return Finding(name, f"{shown} answers with {status}", "note", hurts, to_type)
    return Finding(name, f"{shown} answers after {time.perf_counter() - start:.1f} s")


def has_login(url: str) -> bool:
    """Whether ~/.netrc, where wandb keeps its login, knows a server."""
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(url).hostname or "") is not None
    return False
