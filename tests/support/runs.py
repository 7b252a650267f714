"""Small runs to test with: their flags, what they leave behind, how to wait for them and to damage them."""

import contextlib
import json
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sslm.runs.checkpoints.folder import damage_of
from sslm.system.files import sha256_of
from tests.support.processes import Ranks

SMALL_RUN = shlex.split(
    "--data.tokenizer bpe:512 --seq_len 32 --batch_size 4 --data.val_sequences 12 --optim.warmup_steps 2 --log_every 1 "
    "--val_every 4 --max_steps 8 --checkpoint.every_steps 4 --accelerator cpu"
)
SMALL_LLAMA = shlex.split(
    "--model.hidden_size 32 --model.intermediate_size 64 --model.num_hidden_layers 2 --model.num_attention_heads 2"
)
TINY = SMALL_RUN + SMALL_LLAMA
"""Flags of a run of a second or two."""


TrainTiny = Callable[..., int]


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses_of(run: Path) -> list[float]:
    return [row["train/loss"] for row in rows_of(run) if "train/loss" in row]


def digests_of(run: Path) -> list[str]:
    return [row["batch_digest"] for row in rows_of(run) if "batch_digest" in row]


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    return {name: value for file in sorted(checkpoint.glob("*.safetensors")) for name, value in load_file(file).items()}


def val_of(run: Path) -> dict[int, float]:
    return {row["step"]: row["val/loss"] for row in rows_of(run) if "val/loss" in row}


def wait_for_rows(run: Path, number: int, process: "Ranks | subprocess.Popen[str]", seconds: float = 180) -> None:
    """Wait until metrics.jsonl has that many rows."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").read_bytes().count(b"\n") >= number:
            return
        time.sleep(0.005)
    assert process.poll() is not None, f"no {number} rows within {seconds} seconds"


def ranks_of(run: Path) -> dict[str, int]:
    """Process ids of a run's ranks, by LOCAL_RANK ("" is the one that started the others)."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and str(run).encode() in (folder / "cmdline").read_bytes():
                variables = dict(
                    pair.split(b"=", 1) for pair in (folder / "environ").read_bytes().split(b"\0") if b"=" in pair
                )
                found[variables.get(b"LOCAL_RANK", b"").decode()] = int(folder.name)
    return found


def wait_for_step(run: Path) -> None:
    end = time.monotonic() + 180
    while not (run / "metrics.jsonl").is_file() or '"train/loss"' not in (run / "metrics.jsonl").read_text():
        assert time.monotonic() < end
        time.sleep(0.1)


def without_model(flags: list[str]) -> list[str]:
    return [
        part
        for pair in zip(flags[::2], flags[1::2], strict=True)
        if not pair[0].startswith("--model.")
        for part in pair
    ]


def damage(checkpoint: Path, name: str = "optim.state", by: float = 0.01) -> str:
    """Change the first number of the first tensor whose name begins so; reseal the checkpoint. Returns the name."""
    [shard] = checkpoint.glob("*.safetensors")
    with safe_open(shard, "pt") as stream:
        tensors, metadata = {key: stream.get_tensor(key) for key in stream.keys()}, stream.metadata()  # noqa: SIM118
    chosen = next(key for key in sorted(tensors) if key.startswith(name) and tensors[key].ndim)
    tensors[chosen].view(-1)[0] += by
    save_file(tensors, shard, metadata)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest[shard.name] = {"bytes": shard.stat().st_size, "sha256": sha256_of(shard)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert not damage_of(checkpoint)
    return chosen
