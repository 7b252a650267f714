"""Environment variables that change how a run trains."""

import re
from collections.abc import Iterator, Mapping

from sslm.cli.doctor.finding import Finding
from sslm.system.errors import short, without_secrets

TOLD = re.compile(
    r"(CUDA|NCCL|GLOO|TORCH|PYTORCH|OMP|MKL|HF|HUGGINGFACE|TRANSFORMERS|TOKENIZERS|WANDB|DS|SLURM|SSLM)_\w+"
    r"|TORCHINDUCTOR\w*|PYTHONHASHSEED|PYTHONPATH|LD_LIBRARY_PATH|LD_PRELOAD|XDG_CACHE_HOME|TMPDIR|MASTER_(ADDR|PORT)"
    r"|(WORLD_SIZE|(LOCAL_)?RANK)|(https?|no|all)_proxy",
    re.IGNORECASE,
)
SECRET = re.compile(r"TOKEN(?!IZERS)|KEY|SECRET|PASSW|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
"""Stands in the names of variables whose values nobody may see."""
KEY = re.compile(r"\b(hf_|wandb_|sk-|gh[a-z]_)\w{16,}|\b[0-9a-f]{40}\b")
"""Looks like a token or key of the hub, W&B and others, whatever the variable is called."""


def look(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the variables that are set; the values of those that look like secrets are hidden."""
    names = [name for name in sorted(environ) if TOLD.fullmatch(name)]
    for name in names:
        yield told(name, environ[name])
    if "WORLD_SIZE" in environ and "RANK" not in environ:
        yield Finding("WORLD_SIZE", "set without RANK", "note", "a library may wait for others", "unset WORLD_SIZE")
    if not names:
        yield Finding("environment", "no variable is set that changes a run")


def told(name: str, value: str) -> Finding:
    """Tell a variable, and what a value does that is known to hurt."""
    shown = "(set; hidden)" if SECRET.search(name) or KEY.search(value) else short(without_secrets(value))
    if name == "CUDA_VISIBLE_DEVICES" and value.strip() in ("", "-1"):
        return Finding(name, shown or "(empty)", "note", "no GPU is seen", "unset CUDA_VISIBLE_DEVICES")
    if name == "CUDA_LAUNCH_BLOCKING" and value not in ("", "0"):
        return Finding(name, shown, "bad", "speed: the host waits for every kernel", "unset CUDA_LAUNCH_BLOCKING")
    if name in ("NCCL_P2P_DISABLE", "NCCL_SHM_DISABLE", "NCCL_IB_DISABLE") and value not in ("", "0"):
        return Finding(name, shown, "note", "speed between GPUs: a road is switched off", f"unset {name}")
    return Finding(name, shown)
