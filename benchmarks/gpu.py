"""What one GPU tells of sslm in ten minutes: whether it is right, whether it waits, what it takes, how fast it is.

    python benchmarks/gpu.py --minutes 9 --out benchmarks/results/gpu.jsonl
    python benchmarks/gpu.py --only machine,parity,waits

The parts stand in order of their value; each has a limit of its own and ends with a line of JSON, so that whatever time
cuts short, the rest is kept. One process imports everything, and each run is a fork of it (`lab.py`): what hangs is
killed, and what breaks a device breaks none of the next runs. The process itself never touches the GPU.
"""

import os

os.environ.setdefault("DS_ACCELERATOR", "cuda")  # or DeepSpeed asks CUDA when it is imported, and no fork could

import argparse
import sys
import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import gpu_attention
import gpu_parts
from gpu_models import REAL, TINY
from lab import Lab, Part, Wrong, lines, perform

from sslm.system.exits import USER_ERROR

for family in ("llama", "gpt2", "bert", "modernbert", "t5", "bart"):
    import_module(f"transformers.models.{family}.modeling_{family}")
if find_spec("deepspeed"):
    import_module("deepspeed")
with mock.patch("torch.cuda.is_available", return_value=True):  # Inductor asks when it is imported
    import_module("torch._inductor.compile_fx")

RESERVE_SECONDS = 3.0
"""Kept for the summary."""

PARTS = [
    Part(gpu_parts.machine, 40),
    Part(gpu_parts.parity, 90),
    Part(gpu_parts.waits, 60),
    Part(gpu_parts.dtypes, 120),
    Part(gpu_parts.resume, 50),
    Part(gpu_parts.gpt2, 150),
    Part(gpu_parts.memory, 120),
    Part(gpu_attention.attention, 110),
    Part(gpu_parts.recomputation, 40),
    Part(gpu_parts.out_of_memory, 30),
    Part(gpu_parts.sigterm, 40),
    Part(gpu_parts.gpt2_fp8, 120),
    Part(gpu_parts.llama_fsdp, 120),
]
"""In order of their value."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parts = "\n".join(f"  {part.name:14} {part.what}" for part in PARTS)
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"parts:\n{parts}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together (default: %(default)s)")
    parser.add_argument("--only", help="parts (see below), separated by commas")
    parser.add_argument("--out", type=Path, help="add the lines to this file, too")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="factor of all parts' limits (default: %(default)s)"
    )
    parser.add_argument("--tiny", action="store_true", help="small models in all parts: to try this script")
    options = parser.parse_args(arguments)
    asked = options.only.split(",") if options.only else [part.name for part in PARTS]
    if unknown := set(asked) - {part.name for part in PARTS}:
        parser.error(f"--only {','.join(sorted(unknown))}: no such part")
    options.parts = [part for part in PARTS if part.name in asked]
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    end = time.monotonic() + 60 * options.minutes - RESERVE_SECONDS
    statuses: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="sslm-gpu-") as folder, lines(options.out) as write:
        lab = Lab(Path(folder), TINY if options.tiny else REAL)
        lab.deadline = end
        try:
            lab.fork("look", gpu_parts.look_at_machine).wait()
        except Wrong as wrong:
            print(f"this machine has no GPU that torch can use ({wrong})", file=sys.stderr)
            return USER_ERROR
        for part in options.parts:
            line = perform(part, lab, options.patience * part.seconds, end)
            statuses[part.name] = line["status"]
            write(line)
        write({"part": "summary", **statuses})
    return 0 if set(statuses.values()) == {"ok"} else 1


if __name__ == "__main__":
    sys.exit(main())
