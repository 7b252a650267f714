"""An average of the weights: what it is, that it is validated and exported, whole or sharded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sslm.cli.export import main as export
from sslm.training.average import MovingAverage
from tests.support.processes import Ranks
from tests.support.runs import TrainTiny, losses_of, rows_of, val_of

AVERAGED = ["--optim.average_decay", "0.8", "--optim.lr", "0.01"]


def test_it_is_what_the_formula_says_and_leaves_the_weights_as_they_are() -> None:
    weight, narrow = torch.tensor([1.0, 2.0]), torch.tensor([3.0], dtype=torch.bfloat16)
    average = MovingAverage({"weight": weight, "narrow": narrow}, decay=0.75)
    weight += 4
    narrow += 1
    average.update()
    assert average.tensors["weight"].tolist() == [2, 3]  # 1 + 0.25 * 4
    assert average.tensors["narrow"].tolist() == [3.25]
    before = weight.clone()
    average.put_in(torch.nn.Identity())
    assert weight.tolist() == [2, 3]
    average.take_out(torch.nn.Identity())
    assert weight.equal(before)
    assert narrow.tolist() == [4]


def test_it_is_validated_and_exported_and_training_is_as_without(train_tiny: TrainTiny, tmp_path: Path) -> None:
    with_it, without = tmp_path / "with", tmp_path / "without"
    assert train_tiny(with_it, *AVERAGED) == train_tiny(without, *AVERAGED[2:]) == 0
    assert losses_of(with_it) == losses_of(without)
    assert val_of(with_it)[0] == val_of(without)[0]
    assert val_of(with_it)[8] != val_of(without)[8]
    saved = load_file(with_it / "checkpoints/step-000008/shard-00000.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    exported = load_file(with_it / "export/model.safetensors")
    assert exported[name].equal(saved[f"average.model.{name}"])
    assert export([str(with_it), "--last", "--out", str(tmp_path / "last")]) == 0
    assert load_file(tmp_path / "last/model.safetensors")[name].equal(saved[f"model.model.{name}"])
    assert not exported[name].equal(saved[f"model.model.{name}"])


def test_what_schedule_free_averages_is_validated_and_exported(train_tiny: TrainTiny, tmp_path: Path) -> None:
    run, flags = tmp_path / "run", ["--optim.name", "schedule_free", "--optim.lr", "0.01"]
    assert train_tiny(run, *flags, "--stop_after", "5steps") == 75
    assert train_tiny(run, *flags) == 0
    saved = load_file(run / "checkpoints/step-000008/shard-00000.safetensors")
    exported = load_file(run / "export/model.safetensors")
    for name, weight in exported.items():
        y, z = saved[f"model.model.{name}"], saved[f"optim.state.model.{name}.z"]
        torch.testing.assert_close(0.1 * z + 0.9 * weight, y)
        assert weight.equal(saved[f"average.model.{name}"])
    assert train_tiny(tmp_path / "next", "--model.pretrained", str(run / "export"), "--max_steps", "1") == 0
    assert val_of(tmp_path / "next")[0] == pytest.approx(val_of(run)[8], abs=1e-5)
    assert {row["lr"] for row in rows_of(run) if "lr" in row and row["step"] > 2} == {0.01}
    assert train_tiny(tmp_path / "no", *flags, "--optim.average_decay", "0.9") == 2


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["fsdp"], ["tp"], ["fsdp", "--precision", "bf16-true"]], ids=" ".join)
def test_it_is_the_same_where_weights_are_sharded(flags: list[str], tiny: list[str], tmp_path: Path) -> None:
    precision = flags[1:]
    for name, world, strategy in (("one", 1, "single"), ("two", 2, flags[0])):
        arguments = [*tiny, *AVERAGED, "--run_dir", str(tmp_path / name), "--strategy", strategy, *precision]
        assert set(Ranks([*arguments, "--stop_after", "5steps"], tmp_path / "log", world).wait()) <= {75, 0}
        assert set(Ranks(arguments, tmp_path / "log", world).wait()) == {0}
    close = pytest.approx(list(val_of(tmp_path / "one").values()), abs=4e-3 if precision else 1e-6)
    assert list(val_of(tmp_path / "two").values()) == close


def test_deepspeed_has_none(train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_tiny(tmp_path / "run", *AVERAGED, "--strategy", "deepspeed_2") == 2
    assert "--optim.average_decay: not under --strategy deepspeed_2" in capsys.readouterr().err


def test_a_run_goes_on_with_the_average_it_has(train_tiny: TrainTiny, tmp_path: Path) -> None:
    assert train_tiny(tmp_path / "straight", *AVERAGED) == 0
    assert train_tiny(tmp_path / "run", *AVERAGED, "--stop_after", "3steps") == 75
    assert train_tiny(tmp_path / "run", *AVERAGED) == 0
    shards = [
        load_file(tmp_path / run / "checkpoints/step-000008/shard-00000.safetensors") for run in ("run", "straight")
    ]
    assert all(shards[0][name].equal(shards[1][name]) for name in shards[1])
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"
