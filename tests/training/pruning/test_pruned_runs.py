"""--prune.*: what is pruned stays away, whatever the devices, the optimizer and the moment of a kill."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from sslm.runs.checkpoints.shards import index
from sslm.runs.checkpoints.tensors import read_tensors
from tests.support.processes import Ranks
from tests.support.runs import TrainTiny, losses_of, tensors_of, val_of, wait_for_rows

HALF = ["--prune.sparsity", "0.5", "--prune.begin", "1", "--prune.end", "6"]
FOUR_HEADS = ["--model.num_attention_heads", "4"]


def whole_tensors(checkpoint: Path, part: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint in whose name `part` is, whoever wrote which piece."""
    dtypes = {"prune.kept": torch.bool}
    tensors: dict[str, Any] = {
        name: torch.empty(tensor.shape, dtype=dtypes.get(part, torch.float32))
        for name, tensor in index(checkpoint).items()
        if part in name
    }
    read_tensors(checkpoint, tensors)
    return tensors


@pytest.mark.parametrize(
    "flags",
    [
        ["--prune.method", "movement"],
        pytest.param(["--optim.name", "muon", "--prune.method", "wanda"], marks=pytest.mark.slow),
        pytest.param(["--optim.name", "lion", "--optim.average_decay", "0.9"], marks=pytest.mark.slow),
        pytest.param(["--optim.name", "schedule_free"], marks=pytest.mark.slow),
    ],
)
def test_weights_moments_and_averages_of_what_is_pruned_are_0(
    train_tiny: TrainTiny, tmp_path: Path, flags: list[str]
) -> None:
    run = tmp_path / "run"
    best = ["--checkpoint.keep_best", "1", "--checkpoint.best_is", "highest", "--checkpoint.export", "best"]
    assert train_tiny(run, *HALF, *flags, *best, "--val_every", "2") == 0  # the loss was highest before all was pruned
    tensors = tensors_of(run / "checkpoints/step-000008")
    masks = {n.removeprefix("prune.kept."): mask for n, mask in tensors.items() if n.startswith("prune.kept.")}
    assert len(masks) == 14  # two blocks of seven matrices
    for name, mask in masks.items():
        assert int(mask.sum()) == mask.numel() // 2
        of_it = [
            n for n in tensors if re.search(rf"model\.{re.escape(name)}(\.|$)", n) and tensors[n].shape == mask.shape
        ]
        assert len(of_it) >= 2
        assert not any(tensors[n][~mask].any() for n in of_it)
    exported = load_file(run / "export/model.safetensors")
    assert all(not exported[name][~mask].any() for name, mask in masks.items())


@pytest.mark.parametrize(
    ("method", "pattern", "strategy"),
    [
        ("movement", "unstructured", "fsdp"),
        *(
            pytest.param(method, pattern, strategy, marks=pytest.mark.slow)
            for method, pattern, strategy in (("wanda", "2:4", "ddp"), ("movement", "heads", "tp"))
        ),
    ],
)
def test_two_devices_prune_what_one_does_and_one_goes_on_from_there(
    tiny: list[str], tmp_path: Path, method: str, pattern: str, strategy: str
) -> None:
    flags = [*tiny, *HALF, *FOUR_HEADS, "--prune.method", method, "--prune.pattern", pattern]
    one, two = tmp_path / "one", tmp_path / "two"
    assert Ranks([*flags, "--run_dir", str(one)], tmp_path / "log").wait() == [0]
    shared = [*flags, "--run_dir", str(two), "--strategy", strategy, "--devices", "2", "--stop_after", "4steps"]
    ranks = Ranks(shared, tmp_path / "log")
    assert ranks.wait()[0] == 75, ranks.said()
    assert Ranks([*flags, "--run_dir", str(two)], tmp_path / "log").wait() == [0]
    torch.testing.assert_close(losses_of(two), losses_of(one), rtol=1e-5, atol=1e-5)
    mine, theirs = (whole_tensors(run / "checkpoints/step-000008", "prune.kept") for run in (two, one))
    assert mine.keys() == theirs.keys()
    assert all(mine[name].equal(theirs[name]) for name in mine)
    assert 0 < sum(int(mask.sum()) for mask in mine.values()) * 2 == sum(mask.numel() for mask in mine.values())


@pytest.mark.slow
def test_a_run_killed_amid_pruning_is_the_uninterrupted_one(tiny: list[str], tmp_path: Path) -> None:
    flags = [*tiny, "--prune.pattern", "neurons", "--prune.sparsity", "0.5", "--prune.method", "movement"]
    flags += ["--max_steps", "24", "--checkpoint.every_steps", "2"]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert Ranks([*flags, "--run_dir", str(straight)], tmp_path / "log").wait() == [0]
    for rows in (7, 13):
        ranks = Ranks([*flags, "--run_dir", str(killed)], tmp_path / "log")
        wait_for_rows(killed, rows, ranks)
        ranks.end()
        ranks.wait()
    assert Ranks([*flags, "--run_dir", str(killed)], tmp_path / "log").wait() == [0]
    assert losses_of(killed) == losses_of(straight)
    mine, theirs = (tensors_of(run / "checkpoints/step-000024") for run in (killed, straight))
    assert all(mine[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize("pattern", ["heads", "layers"])
def test_the_export_is_smaller_and_has_the_runs_loss(train_tiny: TrainTiny, tmp_path: Path, pattern: str) -> None:
    run, flags = tmp_path / "run", [*HALF, *FOUR_HEADS, "--prune.pattern", pattern]
    assert train_tiny(run, *flags) == 0
    model = AutoModelForCausalLM.from_pretrained(run / "export")
    heads = model.config.num_attention_heads
    assert (heads, len(model.model.layers)) == {"heads": (2, 2), "layers": (4, 1)}[pattern]
    same = ["--model.num_attention_heads", str(heads), "--model.num_hidden_layers", str(len(model.model.layers))]
    assert train_tiny(tmp_path / "next", "--model.pretrained", str(run / "export"), "--max_steps", "1", *same) == 0
    assert val_of(tmp_path / "next")[0] == pytest.approx(val_of(run)[8], abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prune.sparsity", "1"], "--prune.sparsity 1.0: expected a share above 0 and below 1"),
        (["--prune.pattern", "2:4", "--model.intermediate_size", "66"], "has 66 inputs, which 4 does not divide"),
        (["--prune.sparsity", "0.5", "--optim.name", "adamw_8bit"], "not with --optim.name adamw_8bit"),
        (["--prune.sparsity", "0.5", "--model.freeze", "blocks:1"], "not with --model.freeze blocks:1"),
        (["--prune.sparsity", "0.5", "--strategy", "pp", "--devices", "2"], "not with --strategy pp; give"),
        (
            ["--prune.pattern", "2:4", "--prune.method", "wanda", "--strategy", "tp", "--devices", "2"],
            "each device sees a part",
        ),
        (["--prune.sparsity", "0.2", "--prune.pattern", "heads"], "is less than one of 2 heads; give 0.5 or more"),
    ],
)
def test_what_cant_be_pruned_is_refused_before_anything_starts(
    train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert train_tiny(tmp_path / "run", *flags) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
