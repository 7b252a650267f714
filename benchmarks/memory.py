"""The plan's memory beside the peak of torch's allocator: each family, in fp32 and bf16-mixed, compiled or not.

    python benchmarks/memory.py --fake --out benchmarks/results/memory.json
    python benchmarks/memory.py --only jetmoe,t5

With --fake it needs no GPU: the fake one of tests/fakegpu has CUDA's host code and torch's allocator, and kernels that
do nothing. There torch's partitioner alone decides what compiled blocks keep, and mixtures of experts send each expert
equally many tokens; an LSTM's buffer, whose size cuDNN alone knows, is left out. Each run is a fork of one process that
has imported everything (`lab.py`), and ends after two steps.
"""

import os

os.environ.setdefault("DS_ACCELERATOR", "cuda")  # or DeepSpeed asks CUDA when it is imported, and no fork could

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

VOCABULARY = "--model.vocab_size 32000 --seq_len 512"
WIDE = "--model.hidden_size 512 --model.num_hidden_layers 4"
HEADS = "--model.num_attention_heads 8"
T5 = "--objective span_corruption --model.d_model 512 --model.d_kv 64 --model.num_layers 4 --model.num_heads 8 "
T5 += VOCABULARY
EXPERTS = "--model.num_local_experts 8 --model.num_experts_per_tok 2"
FAMILIES = {
    "llama": f"{WIDE} {HEADS} --model.intermediate_size 1408 {VOCABULARY}",
    "gpt2": f"--model.n_embd 512 --model.n_layer 4 --model.n_head 8 {VOCABULARY}",
    "bert": f"--objective masked_lm {WIDE} {HEADS} --model.intermediate_size 2048 {VOCABULARY}",
    "modernbert": f"--objective masked_lm {WIDE} {HEADS} --model.intermediate_size 768 {VOCABULARY}",
    "t5": f"{T5} --model.d_ff 1024",
    "mixtral": f"{WIDE} {HEADS} --model.intermediate_size 1024 --model.num_key_value_heads 4 {EXPERTS} {VOCABULARY}",
    "jetmoe": f"--model.hidden_size 512 --model.num_hidden_layers 2 --model.intermediate_size 1024 "
    f"--model.num_key_value_heads 4 --model.kv_channels 64 {EXPERTS} {VOCABULARY}",
    "switch_transformers": f"{T5} --model.d_ff 1024 --model.num_decoder_layers 4 --model.num_experts 8 "
    "--model.num_sparse_encoder_layers 2 --model.num_sparse_decoder_layers 2",
    "nllb-moe": "--objective denoising --model.d_model 512 --model.encoder_layers 4 --model.decoder_layers 4 "
    "--model.encoder_attention_heads 8 --model.decoder_attention_heads 8 --model.encoder_ffn_dim 2048 "
    "--model.decoder_ffn_dim 2048 --model.num_experts 8 --model.encoder_sparse_step 2 --model.decoder_sparse_step 2 "
    f"--model.encoder_layerdrop 0 --model.decoder_layerdrop 0 {VOCABULARY}",
    "sslm_lstm": f"{WIDE} {VOCABULARY}",
}
"""By model type."""
WAYS = [f"{precision}{compiled}" for compiled in ("", " --compile block") for precision in ("32", "bf16-mixed")]
RUN = (
    "--data.tokenizer bpe:512 --batch_size 16 --micro_batch_size 8 --max_steps 3 --log_every 1000 --val_every 1000 "
    "--data.val_sequences 1 --checkpoint.every_steps 1000 --devices 1 --strategy single --accelerator gpu"
)
ALLOWED = 0.08
"""Difference between plan and peak that is let pass, as a fraction of the peak."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fake", action="store_true", help="on a fake GPU, in an environment that is made if needed")
    parser.add_argument("--only", help=f"families, separated by commas: {', '.join(FAMILIES)}")
    parser.add_argument("--uncompiled", action="store_true", help="leave out compiled runs")
    parser.add_argument("--seconds", type=float, default=300, help="limit of each run (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the results to this file, too, after each run")
    options = parser.parse_args(arguments)
    options.families = options.only.split(",") if options.only else list(FAMILIES)
    if unknown := set(options.families) - set(FAMILIES):
        parser.error(f"--only {','.join(sorted(unknown))}: no such family")
    options.ways = WAYS[:2] if options.uncompiled else WAYS
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.fake and "FAKE_RUNTIME" not in os.environ:
        run_in_fake_environment()
    cases: dict[str, dict[str, Any]] = {}
    results = {**header(), "cases": cases}
    for family, way, found in measurements(options):
        cases.setdefault(family, {})[way] = found
        print(f"{family}, {way}: {told(found)}", file=sys.stderr, flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(cases))
    return 0 if all(abs(difference(found)) <= ALLOWED for ways in cases.values() for found in ways.values()) else 1


def run_in_fake_environment() -> None:
    """Become this script in the fake GPUs' environment."""
    from tests.fakegpu import environment

    try:
        folder = environment.prepare()
    except environment.Missing as missing:
        sys.exit(str(missing))
    variables = {**environment.variables(folder), "FAKE_GPUS": "1", "FAKE_SKIP_COPY_ABOVE": "100000"}
    os.execve(folder / "bin/python", ["python", *sys.argv], variables)


def header() -> dict[str, Any]:
    return {
        "command": f"python benchmarks/memory.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "gpu": "fake" if "FAKE_RUNTIME" in os.environ else "real",
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "lightning")},
    }


def measurements(options: argparse.Namespace) -> Any:
    """Yield family, way, and what was found: planned and peak bytes, or why there are none."""
    from gpu_models import REAL
    from gpu_parts import with_peak
    from lab import Lab, Late, Wrong
    from watch import without_contents

    for family in options.families:
        name = family.replace("-", "_")
        if family != "sslm_lstm":
            import_module(f"transformers.models.{name}.modeling_{name}")

    def watch(arguments: list[str]) -> None:
        if "FAKE_RUNTIME" in os.environ:
            without_contents()
        with_peak(arguments)

    with tempfile.TemporaryDirectory(prefix="sslm-memory-") as folder:
        lab = Lab(Path(folder), REAL)
        for way in options.ways:
            for family in options.families:
                if family == "sslm_lstm" and "compile" in way:  # which torch can't
                    continue
                lab.deadline = time.monotonic() + options.seconds
                flags = f"--model.model_type {family} {FAMILIES[family]} {RUN} --compile off --precision {way}"
                try:
                    yield family, way, lab.train(f"{family} {way}", flags, watch=watch).wait().found
                except (Late, Wrong) as why:
                    yield family, way, {"why": str(why)}


def difference(found: dict[str, Any]) -> float:
    """Return by how much the plan is above the peak, as a fraction of the peak; infinite if there is no peak."""
    return found["planned"] / found["peak"] - 1 if "peak" in found else float("inf")


def told(found: dict[str, Any]) -> str:
    if "why" in found:
        return str(found["why"])
    return f"{found['planned'] / 2**20:,.0f} / {found['peak'] / 2**20:,.0f} ({difference(found):+.1%})"


def table(cases: dict[str, dict[str, Any]]) -> str:
    """Return Markdown: plan / peak in MiB, and the difference."""
    ways = list(dict.fromkeys(way for found in cases.values() for way in found))
    titles = [way.replace("32", "fp32").replace(" --compile block", ", compiled") for way in ways]
    lines = [["plan / peak, MiB", *titles], ["---", *("--:" for _ in ways)]]
    lines += [
        [family, *(told(found[way]) if "peak" in found.get(way, {}) else "–" for way in ways)]
        for family, found in cases.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
