"""Compiled blocks: each use is compiled once, and what runs uncompiled is told."""

from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers.modeling_layers import GradientCheckpointingLayer

from sslm.parallel.compilation import compile_blocks
from sslm.train import main
from tests.support.objectives import ENCODER, T5
from tests.support.runs import rows_of, without_model

RUNS = {
    "llama": (f"--objective causal_lm {ENCODER}", 3),  # one kind of block: training, validation, samples of fewer rows
    "modernbert": (f"--objective masked_lm {ENCODER}", 4),  # the first has no norm: two kinds, in validation's shape
    "t5": (f"--objective span_corruption {T5}", 8),  # the first have the biases: two kinds in each half
}


@pytest.fixture
def quick(one_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are traced and guarded as always, but no kernels are made."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    counters.clear()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch looks at it while it traces
@pytest.mark.parametrize("model_type", RUNS)
def test_each_use_of_a_block_is_compiled_once_and_none_runs_uncompiled(
    model_type: str, tiny: list[str], tmp_path: Path, quick: None
) -> None:
    flags, num_graphs = RUNS[model_type]
    run = ["--run_dir", str(tmp_path / "run"), "--compile", "true", "--precision", "bf16-mixed"]
    assert main([*without_model(tiny), *flags.split(), *run]) == 0
    assert [row["step"] for row in rows_of(tmp_path / "run") if row.get("samples")] == [0, 4, 8]
    assert counters["frames"]["ok"] == counters["frames"]["total"]
    assert counters["stats"]["unique_graphs"] == num_graphs


class Block(GradientCheckpointingLayer):
    def forward(self, values: Tensor) -> Tensor:
        return values.sin()


def test_a_block_that_is_given_up_is_named_once(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    blocks: list[nn.Module] = [Block(), Block()]
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=False):
        compile_blocks(blocks)
        for length in range(30):  # none does so in a run
            blocks[length % 2](torch.zeros(2 + length))
    said = capsys.readouterr().out
    assert said.count("--compile: from here on Block runs uncompiled now and then") == 1
    assert "expected 15, actual 16" in said
    assert "Type TORCH_LOGS=recompiles before the command" in said
