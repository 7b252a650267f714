"""Optimizers: the held-out loss that AdamW and Muon reach, and what an update of each costs.

    OMP_NUM_THREADS=1 python benchmarks/optimizers.py losses --out benchmarks/results/optimizers.json
    OMP_NUM_THREADS=1 python benchmarks/optimizers.py updates --out benchmarks/results/optimizers.json

losses: the default run of `sslm train` (a llama of 1.1 M parameters on Python's documentation), shorter, at three
rates; Muon gets three quarters of the steps. Each is a process of its own. Schedules span each run's own steps, so a
shorter run has decayed at its end, too.

updates: processor time of a step of the optimizer alone, and bytes of its states a parameter, of a llama of 6.2 M
parameters; clipped, with the word that nothing is withheld.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = 300
SHARES = {"adamw": 1.0, "muon": 0.75}
"""Optimizer -> share of the steps that it gets."""
RATES = (2e-3, 4e-3, 8e-3)
NEVER = 1_000_000
ROUNDS = 7


def losses(options: argparse.Namespace) -> dict[str, Any]:
    """Train all, and say each loss."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for optimizer, share in SHARES.items():
            steps, of_rate = round(share * options.steps), {}
            for rate in RATES:
                each = [held_out_loss(optimizer, steps, rate, seed, Path(folder)) for seed in options.seeds]
                of_rate[str(rate)] = round(statistics.mean(each), 4)
                print(f"{optimizer}: {steps} steps, rate {rate}: held-out loss {of_rate[str(rate)]}", flush=True)
            found[optimizer] = {"steps": steps, "losses": of_rate, "best": min(of_rate.values())}
    return found | {"seeds": options.seeds}


def held_out_loss(optimizer: str, steps: int, rate: float, seed: int, folder: Path) -> float:
    """Train, and return the last validation's loss in nats a token."""
    run = folder / f"{optimizer}-{rate}-{seed}"
    flags: dict[str, Any] = {"run_dir": run, "max_steps": steps, "seed": seed, "optim.name": optimizer}
    flags |= {"optim.lr": rate, "val_every": NEVER, "accelerator": "cpu", "checkpoint.every_steps": NEVER}
    typed = [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    subprocess.run([sys.executable, "-m", "sslm.train", *typed], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return float([row["val/loss"] for row in rows if "val/loss" in row][-1])


def updates(options: argparse.Namespace) -> dict[str, Any]:
    """Time each optimizer's update."""
    import torch
    from transformers import LlamaConfig

    from sslm.config import OptimConfig
    from sslm.models.build import build
    from sslm.training.optimizers.build import OPTIMIZERS, build_optimizer

    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4}
    model = build(LlamaConfig(vocab_size=2048, **sizes), "AutoModelForCausalLM", 0)
    found: dict[str, Any] = {}
    for name in OPTIMIZERS:
        optimizer, times = build_optimizer(model, OptimConfig(name=name, lr=1e-3)), []  # type: ignore[arg-type]
        for parameter in model.parameters():
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        optimizer.grad_scale, optimizer.withheld = torch.tensor(1.5), torch.tensor(0.0)
        for _ in range(ROUNDS):
            began = time.process_time()
            optimizer.step()
            times.append(time.process_time() - began)
        states = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
        found[name] = {"ms": round(1000 * statistics.median(times), 1)}
        found[name] |= {"state_bytes": round(states / model.num_parameters(), 2)}
        print(f"{name}: {found[name]['ms']} ms, {found[name]['state_bytes']} bytes a parameter", flush=True)
    return found


def main() -> int:
    """Measure one of the two, and keep it beside the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("losses", "updates"))
    parser.add_argument("--out", type=Path, help="JSON file to write into")
    parser.add_argument("--steps", type=int, default=STEPS, help="losses: optimizer steps of AdamW")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="losses: the mean over these is told")
    options = parser.parse_args()
    found = losses(options) if options.what == "losses" else updates(options)
    if options.out is not None:
        kept = json.loads(options.out.read_text()) if options.out.exists() else {}
        options.out.write_text(json.dumps(kept | {options.what: found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
