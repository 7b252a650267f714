"""On one GPU every strategy and precision trains GPT-2 124M nearly to the losses of fp32. Skips itself."""

from pathlib import Path

import pytest
import torch

from tests.support.processes import run_command
from tests.support.runs import losses_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]

RUN = [
    "-m",
    "sslm.train",
    "--config",
    "configs/gpt2-124m.yaml",
    "--data.tokenizer",
    "bpe:2048",
    "--batch_size",
    "8",
    "--micro_batch_size",
    "4",
    "--seq_len",
    "512",
    "--max_steps",
    "50",
    "--log_every",
    "1",
    "--val_every",
    "50",
    "--logger",
    "none",
    "--accelerator",
    "gpu",
    "--devices",
    "1",
    "--data.val_sequences",
    "16",
]
STRATEGIES = ("single", "ddp", "fsdp", "deepspeed_1", "deepspeed_2", "deepspeed_3")
TOLERANCES = {"32": 2e-3, "bf16-mixed": 5e-2, "bf16-true": 1e-1, "16-mixed": 5e-2, "fp8": 2e-1}
"""Of a loss in nats, after 50 steps in which differences grow."""


def train(run: Path, *flags: str) -> list[float]:
    done = run_command([*RUN, "--run_dir", str(run), *flags], timeout=400)
    assert done.returncode == 0, done.stderr
    return losses_of(run)


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return train(tmp_path_factory.mktemp("fp32") / "run", "--strategy", "single", "--precision", "32")


@pytest.mark.parametrize(
    ("strategy", "precision"),
    [(s, p) for s in STRATEGIES for p in TOLERANCES if (s, p) != ("fsdp", "16-mixed")],  # which is refused
)
def test_every_strategy_and_precision_trains_to_the_losses_of_fp32(
    strategy: str, precision: str, fp32: list[float], tmp_path: Path
) -> None:
    losses = train(tmp_path / "run", "--strategy", strategy, "--precision", precision)
    assert losses == pytest.approx(fp32, abs=TOLERANCES[precision])
    assert losses[-1] < losses[0] - 1


def test_micro_batch_auto_fits(tmp_path: Path) -> None:
    flags = ["--micro_batch_size", "auto", "--batch_size", "512", "--max_steps", "3"]
    train(tmp_path / "run", "--strategy", "single", *flags)
    assert (tmp_path / "run/micro_batch_size.json").is_file()
