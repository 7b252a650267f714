"""A folder's model, loaded by transformers in a process of its own, measured there: quality, speed, memory.

`python -m sslm.cli.compress.reloaded` reads what to do as JSON from stdin.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sslm.cli.compress.flags import flag_parser
from sslm.cli.compress.quality import Measure, Quality
from sslm.models.masks import num_positions
from sslm.runs.trained import Trained, open_trained
from sslm.system.errors import RunFailed, UserError
from sslm.system.exits import DONE, USER_ERROR, exits_politely
from sslm.system.files import write_atomically
from sslm.system.ranks import die_with_parent
from sslm.system.terminal import keep_libraries_quiet

BATCH, LONGEST = 8, 128
"""Rows, and most tokens of each, of the passes that are timed."""
SECONDS, FEWEST = 1.0, 3
"""How long passes are timed, and how many at least."""
OF_RUN = ("name", "objective", "seq_len", "settings")
"""What a folder doesn't tell of its model, and the original did."""


@dataclass(frozen=True)
class Measured:
    """What a process of its own has measured."""

    quality: Quality
    tokens_per_second: float
    """Of forward passes of the body, 8 rows of at most 128 tokens at a time."""
    peak_bytes: int
    """Largest memory of the process, or of the GPU, beyond what it had before the model was loaded."""


def measured_elsewhere(folder: Path, trained: Trained, arguments: list[str]) -> Measured:
    """Measure a folder's model in a new process.

    Args:
        folder: a Hugging Face folder.
        trained: the original, whose run tells how to measure.
        arguments: as typed after `sslm compress`.

    Raises:
        UserError: it can't be measured on what was given.
        RunFailed: it can't be loaded, or the process was ended.
    """
    known = {name: getattr(trained, name) for name in OF_RUN}
    with tempfile.TemporaryDirectory() as there:
        result = Path(there) / "measured.json"
        job = {"folder": str(folder), "known": known, "arguments": arguments, "result": str(result)}
        command = [sys.executable, "-m", __name__]
        ended = subprocess.run(command, input=json.dumps(job, default=str), text=True, capture_output=True)
        if ended.returncode == DONE:
            found = json.loads(result.read_text())
            return Measured(Quality(*found["quality"]), found["tokens_per_second"], found["peak_bytes"])
    said = (ended.stderr.strip().splitlines() or ["no word"])[-1]
    if ended.returncode == USER_ERROR:
        raise UserError(said.removeprefix("error: "))
    raise RunFailed(f"{folder.name}: could not be measured after reloading (exit code {ended.returncode}: {said})")


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    die_with_parent()
    keep_libraries_quiet()
    job: dict[str, Any] = json.load(sys.stdin)
    options = flag_parser().parse_args(job["arguments"])
    device = device_of(options.device)
    before = _memory(device)
    trained = open_trained(job["folder"])._replace(**job["known"])
    quality = Measure(trained, options).quality(trained, device)
    found = {
        "quality": quality,
        "tokens_per_second": speed(trained.model),
        "peak_bytes": max(_peak(device) - before, 0),
    }
    write_atomically(Path(job["result"]), json.dumps(found))
    return DONE


def device_of(asked: str) -> torch.device:
    """Choose the device to measure on; UserError if there is no GPU and one is asked for."""
    if asked == "gpu" and not torch.cuda.is_available():
        raise UserError("--device gpu: there is no GPU here; leave the flag out")
    return torch.device("cuda" if torch.cuda.is_available() and asked != "cpu" else "cpu")


def _memory(device: torch.device) -> int:
    """Bytes in use now, above which the peak counts."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far: that of importing libraries
    return _of_process("VmRSS")


def _peak(device: torch.device) -> int:
    """Largest memory so far, in bytes."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _of_process("VmHWM")


def _of_process(name: str) -> int:
    """Read a figure from what Linux tells of this process; elsewhere the peak.

    `getrusage` tells the peak of whoever started it, too: Linux keeps that across exec.
    """
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@torch.inference_mode()
def speed(model: PreTrainedModel) -> float:
    """Time forward passes of a model's body; tokens a second."""
    config: Any = model.config
    length = min(LONGEST, num_positions(config) or LONGEST)
    ids = torch.arange(BATCH * length, device=model.device).view(BATCH, length) % config.vocab_size
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if config.is_encoder_decoder else {})
    seconds: list[float] = []
    model.base_model(**inputs)
    while sum(seconds) < SECONDS or len(seconds) < FEWEST:
        start = time.perf_counter()
        model.base_model(**inputs)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        seconds.append(time.perf_counter() - start)
    return float(ids.numel() / statistics.median(seconds))


if __name__ == "__main__":
    sys.exit(main())
