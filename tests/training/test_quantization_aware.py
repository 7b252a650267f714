"""Quantization-aware training: weights are rounded as sslm compress rounds them, and the run is as any other."""

from pathlib import Path

import pytest
import torch

from sslm.__main__ import main as sslm
from sslm.config import Config, QuantizeConfig
from sslm.models.compression.aware import Rounding, round_weights, rounding_of, straight_through
from sslm.models.compression.layers import linear_layers
from sslm.models.compression.plain import load
from sslm.models.compression.quantize import Quantization, quantize
from tests.support.processes import train_forked
from tests.support.runs import TrainTiny, losses_of, tensors_of
from tests.support.trained import byte_level, save_model

AWARE = ["--quantize.aware", "int4", "--quantize.group_size", "8"]


@pytest.mark.parametrize("how", [Quantization("int8"), Quantization("int4", 8)])
def test_forward_passes_have_the_weights_that_are_written(how: Quantization, tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    folder = save_model(tmp_path / "llama", "llama", byte_level("the cat sat on the mat"))
    rounding = rounding_of(Config(quantize=QuantizeConfig(aware=how.method, group_size=8)))
    assert rounding is not None
    round_weights(model := load(folder), rounding)
    written = linear_layers(quantize(folder, out, how))
    for name, layer in linear_layers(model).items():
        weight = written[name].weight
        weight = weight.dequantize() if how.method == "int8" else weight
        assert torch.equal(straight_through(layer.weight, rounding), weight), name
    ids = torch.arange(5, 15)[None]
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, load(out)(ids).logits, atol=1e-4)


def test_a_run_that_stops_and_goes_on_is_the_uninterrupted_one(train_tiny: TrainTiny, tmp_path: Path) -> None:
    whole, stopped, plain = tmp_path / "whole", tmp_path / "stopped", tmp_path / "plain"
    assert train_tiny(whole, *AWARE) == 0
    assert train_tiny(stopped, *AWARE, "--stop_after", "3steps") == 75
    assert train_tiny(stopped, *AWARE) == 0
    assert losses_of(whole) == losses_of(stopped)
    last = [tensors_of(run / "checkpoints/step-00000008") for run in (whole, stopped)]
    assert last[0].keys() == last[1].keys()
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    assert train_tiny(plain) == 0
    assert losses_of(plain) != losses_of(whole)
    assert tensors_of(plain / "checkpoints/step-00000008").keys() == last[0].keys()
    assert type(next(iter(linear_layers(load(whole / "export")).values()))) is torch.nn.Linear


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_give_the_losses_of_one(
    train_tiny: TrainTiny, tiny: list[str], tmp_path: Path, strategy: str
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert train_tiny(one, *AWARE) == 0
    flags = [*tiny, *AWARE, "--strategy", strategy, "--devices", "2", "--run_dir", str(two)]
    done = train_forked(flags, tmp_path / "log")
    assert done.returncode == 0, done.stdout
    assert losses_of(two)[:2] == pytest.approx(losses_of(one)[:2], rel=1e-6)
    assert losses_of(two) == pytest.approx(losses_of(one), rel=2e-3)  # another last digit rounds to another number


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--quantize.aware", "int3"], "--quantize.aware int3"),
        (["--strategy", "fsdp_tp"], "--quantize.aware int8: needs whole rows, which --strategy fsdp_tp divides"),
        (["--precision", "fp8"], "rounds weights, and so does --precision fp8"),
        (["--model.model_type", "sslm_lstm"], "LstmForCausalLM has no blocks with linear layers"),
        (["--quantize.aware", "int4", "--quantize.group_size", "48"], "groups of 48 don't divide"),
    ],
)
def test_what_does_not_go_together_is_told(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aware = [] if "--quantize.aware" in flags else ["--quantize.aware", "int8"]
    run = ["--run_dir", str(tmp_path / "run"), "--accelerator", "cpu", "--max_steps", "1"]
    assert sslm(["train", *run, *aware, *flags]) == 2
    assert said in capsys.readouterr().err


def test_gradients_pass_straight_through() -> None:
    weight = torch.randn(4, 16, requires_grad=True)
    (straight_through(weight, Rounding(4, 8)) * (scale := torch.randn(4, 16))).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, scale)
