"""Compiled blocks: each use is compiled once, and what runs uncompiled is told."""

import os
import re
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import LlamaConfig, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from sslm.models.build import build, on_meta
from sslm.models.head import LanguageModel
from sslm.models.lstm import LstmConfig
from sslm.parallel.compilation import check_compiled, choose_compiled, compile_modules
from sslm.parallel.launch import Compiled, Launch
from sslm.parallel.parallelize import parallelize
from sslm.parallel.recompute import KEEP_ALL, parse_recompute
from sslm.system.errors import UserError, sentence_of
from sslm.train import main
from tests.support.objectives import ENCODER, T5
from tests.support.processes import run_ranks, train_forked
from tests.support.runs import losses_of, rows_of, without_model

MODELS = {
    "llama": f"--objective causal_lm {ENCODER}",
    "modernbert": f"--objective masked_lm {ENCODER}",
    "t5": f"--objective span_corruption {T5}",
}
RUNS = {
    ("llama", "block"): 3,  # one kind of block: training, validation, samples of fewer rows
    ("modernbert", "block"): 4,  # the first has no norm: two kinds, in validation's shape
    ("t5", "block"): 8,  # the first have the biases: two kinds in each half
    ("llama", "model"): 3,
    ("modernbert", "model"): 2,  # its samples are validation's
    ("t5", "model"): 2,
}
"""Model, what is compiled as one piece -> graphs."""


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch looks at it while it traces
@pytest.mark.parametrize(("model_type", "unit"), RUNS)
def test_each_use_is_compiled_once_and_nothing_runs_uncompiled(
    model_type: str, unit: str, tiny: list[str], tmp_path: Path, no_kernels: None
) -> None:
    run = ["--run_dir", str(tmp_path / "run"), "--compile", unit, "--precision", "bf16-mixed"]
    assert main([*without_model(tiny), *MODELS[model_type].split(), *run]) == 0
    assert [row["step"] for row in rows_of(tmp_path / "run") if row.get("samples")] == [0, 4, 8]
    assert counters["frames"]["ok"] == counters["frames"]["total"]
    assert counters["stats"]["unique_graphs"] == RUNS[model_type, unit]


H100 = Launch("gpu", 1, 1, "single", "bf16-mixed")
SMALL = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
LARGE = LlamaConfig()
LSTM = LstmConfig()


@pytest.mark.parametrize(
    ("config", "how", "recomputation", "compiled"),
    [
        (SMALL, {}, "none", "model"),
        (SMALL, {"strategy": "ddp", "devices": 8}, "none", "model"),
        (SMALL, {"accelerator": "cpu"}, "none", "off"),
        (SMALL, {}, "full", "block"),
        (SMALL, {}, "budget:0.5", "model"),
        (SMALL, {"strategy": "fsdp", "devices": 8}, "none", "block"),
        (SMALL, {"strategy": "deepspeed_3", "devices": 8}, "none", "block"),
        (SMALL, {"strategy": "tp", "devices": 2, "tensor_parallel_size": 2}, "none", "model"),
        (LARGE, {"strategy": "tp", "devices": 2, "tensor_parallel_size": 2}, "none", "block"),
        (LARGE, {}, "none", "block"),
        (LSTM, {}, "none", "off"),
    ],
)
def test_auto_compiles_what_suits_the_launch(
    config: PreTrainedConfig, how: dict[str, Any], recomputation: str, compiled: str
) -> None:
    model, launch = on_meta(config, "AutoModelForCausalLM"), replace(H100, **how)
    assert choose_compiled(launch, model, parse_recompute(recomputation)) == compiled


@pytest.mark.parametrize("unit", ["block", "model"])
def test_an_lstm_is_not_compiled(unit: Compiled) -> None:
    with pytest.raises(UserError, match=f"^--compile {unit}: torch can't compile an LSTM; give off"):
        check_compiled(replace(H100, compiled=unit), on_meta(LSTM, "AutoModelForCausalLM"), KEEP_ALL)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiler_that_fails_is_told_in_a_sentence(one_compiler: None) -> None:
    def broken(*_: Any) -> Any:
        raise UnicodeDecodeError("utf-8", b"\xdf", 0, 1, "invalid continuation byte")

    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed) as failed:
        torch.compile(torch.sin, backend=broken)(torch.ones(1))
    sentence = sentence_of(failed.value)
    assert sentence is not None
    assert re.match(r"torch's compiler failed \(.*invalid continuation byte.*\): give --compile off", sentence)


class Block(GradientCheckpointingLayer):
    def forward(self, values: Tensor) -> Tensor:
        return values.sin()


def test_a_block_that_is_given_up_is_named_once(no_kernels: None, capsys: pytest.CaptureFixture[str]) -> None:
    blocks: list[nn.Module] = [Block(), Block()]
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=False):
        compile_modules(blocks)
        for length in range(30):  # none does so in a run
            blocks[length % 2](torch.zeros(2 + length))
    said = capsys.readouterr().out
    assert said.count("--compile: from here on Block runs uncompiled now and then") == 1
    assert "expected 15, actual 16" in said
    assert "Type TORCH_LOGS=recompiles before the command" in said


def compute(rank: int, world: int, folder: Path, compiled: Compiled, out: str) -> None:
    """Take the gradients of documents in one row, and keep them in a file; kernels go into the folder's cache."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    torch._inductor.config.compile_threads = 1
    network = LanguageModel(build(SMALL, "AutoModelForCausalLM", 0)).train()
    parallelize(network, network.model, None, compiled=compiled)
    ids, documents = torch.arange(32).reshape(2, 16), torch.arange(15).expand(2, 15) // 5
    network(labels=ids[:, 1:], input_ids=ids[:, :-1], segment_ids=documents).sum().backward()
    torch.save([parameter.grad for parameter in network.parameters()], folder / out)


@pytest.mark.slow
def test_what_was_compiled_is_kept_and_computes_the_same(tmp_path: Path) -> None:
    """Kernels are really made, by the first of two processes."""
    run_ranks(compute, 1, tmp_path, tmp_path, "block", "first", timeout=300)
    run_ranks(compute, 1, tmp_path, tmp_path, "off", "uncompiled")
    for ours, exact in zip(torch.load(tmp_path / "first"), torch.load(tmp_path / "uncompiled"), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5)
    compiled = kernels(tmp_path)
    assert compiled
    run_ranks(compute, 1, tmp_path, tmp_path, "block", "again", timeout=300)
    assert kernels(tmp_path) == compiled


def kernels(folder: Path) -> set[Path]:
    return set((folder / "cache/sslm/compiled").rglob("*.so"))


def make_no_kernels() -> None:
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    nn.Module.compile = partialmethod(nn.Module.compile, backend="eager")  # type: ignore[assignment, method-assign]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "unit", "depth"), [("tp", "model", "1"), ("tp", "block", "2"), ("pp", "block", "2")]
)
def test_what_devices_share_is_compiled_too(
    strategy: str, unit: str, depth: str, tiny: list[str], tmp_path: Path
) -> None:
    for name in (unit, "off"):
        short = ["--model.num_hidden_layers", depth, "--max_steps", "2", "--val_every", "2"]
        flags = [*short, "--strategy", strategy, "--devices", "2", "--compile", name, "--run_dir", str(tmp_path / name)]
        done = train_forked([*tiny, *flags], tmp_path / "log", before=make_no_kernels)
        assert done.returncode == 0, done.stdout
    assert losses_of(tmp_path / unit) == pytest.approx(losses_of(tmp_path / "off"), abs=1e-5)
