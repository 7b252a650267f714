"""`sslm compress`: what is typed, what is refused, and one whole command."""

import json
import sys
from pathlib import Path

import pytest
import torch

from sslm.cli.compress import main
from sslm.cli.compress.calibration import calibration
from sslm.cli.compress.flags import MostLoss, flag_parser
from sslm.cli.compress.recipes import Recipe, recipes_of
from sslm.cli.compress.report import table, write_card, write_report
from sslm.cli.compress.results import Result, Results
from sslm.cli.evaluate import main as evaluate
from sslm.cli.generate import main as generate
from sslm.models.compression.plain import load
from sslm.models.compression.quantize import Quantization, quantize
from sslm.runs.trained import open_trained
from sslm.train import main as train
from tests.support.runs import TrainTiny
from tests.support.trained import byte_level, save_model

Capture = pytest.CaptureFixture[str]
TEXT = "the cat sat on the mat and the dog sat on the cat\n" * 20


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compress")
    (folder / "text.txt").write_text(TEXT)
    return save_model(folder / "llama", "llama", byte_level(TEXT))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--quantize", "int3"], "'int3' is none of int8, int8-dynamic, int4, int4-gptq, none"),
        (["--quantize", "int8", "--at_most_loss", "2 bits"], "expected an amount such as +2% or 0.01"),
        (["--quantize", "int4", "--group_size", "0"], "expected a whole number above 0, got '0'"),
        (["--prune", "heads"], "'heads': expected a share, too, as in 'heads 0.25'"),
        (["--prune", "1.0"], "prune.sparsity 1.0: expected a share above 0 and below 1"),
        (["--quantize", "int8,,int4"], "'' is none of int8, int8-dynamic, int4"),
        (["--prune", "2:3"], "prune.pattern 2:3: expected unstructured, 2:4"),
        (["--prune", "movement 0.5"], "prune.method movement: only training can tell it; give magnitude or wanda"),
        (["--prune", "0.0001"], "is less than one weight of the 512 that are compared; give 0.00195 or more"),
        (["--prune", "2:4 4:8"], "'2:4' and '4:8' are both a pattern; give one"),
        (["--prune", "0.5 wanda", "--data", "embedded", "--calibrate", "missing.txt"], "missing.txt"),
        ([], "nothing to do; give --quantize int8, or --prune 2:4"),
        (["--quantize", "int4-gptq"], "--group_size 32: rows of model.layers.0.self_attn.q_proj have 16 weights"),
        (["--quantize", "int8"], "is no run, so it has no text of its own; give some: --data"),
        (["--quantize", "int8", "--data", "missing.txt"], "missing.txt"),
        (["--quantize", "int8", "--data", ""], "--data: the path is empty"),
        (["--prune", "0.5 wanda", "--data", "embedded", "--calibrate", ""], "the path is empty"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    llama: Path, tmp_path: Path, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main([str(llama), *given, "--out", str(tmp_path / "there/out")])
    except SystemExit as ended:  # argparse's
        code = int(ended.code or 0)
    assert code == 2
    assert said in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("method", "library"), [("int8", "torchao"), ("int4", "compressed-tensors"), ("int4-gptq", "compressed-tensors")]
)
def test_quantized_folders_are_neither_trained_nor_read_without_their_library(
    llama: Path, tmp_path: Path, method: str, library: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """By what makes a quantized folder, and by what reads one; Python's own import doesn't find it."""
    small, text = tmp_path / "small", str(llama.parent / "text.txt")
    small.mkdir()
    open_trained(str(llama)).tokenizer.save_pretrained(small)
    quantize(llama, small, Quantization(method, 8))
    recipe, made = Recipe(None, Quantization(method, 8)), result(method, 2.0)
    write_card(small, recipe, Results("m", "loss", False, None, {"sslm": "0"}, "cpu", made, [made]), made)
    assert f"pip install transformers {library}\n" in (small / "README.md").read_text()
    there = tmp_path / "there"
    trains = ["--model.pretrained", str(small), "--data.train", text, "--run_dir", str(there), "--seq_len", "16"]
    trains += ["--batch_size", "1"]
    assert main([str(small), "--prune", "2:4", "--data", text, "--out", str(there)]) == 2
    assert f"error: {small}: its weights are quantized already; give the model that" in capsys.readouterr().err
    if library == "torchao":  # int4 is unpacked and can be trained
        assert train(trains) == 2
        assert f"error: {small}: its weights are of 8 bits, which" in capsys.readouterr().err
        assert train(["--distill.teacher", *trains[1:]]) == 2
        assert f"--distill.teacher {small}: its weights are of 8 bits" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, library.replace("-", "_"), None)
    said = f"needs {library}, which is not installed; pip install 'sslm[quantize]'\n"
    asked = [str(llama), "--quantize", f"none,{method}", "--prune", "2:4", "--data", text, "--out", str(there)]
    assert main(asked) == 2
    assert capsys.readouterr().err == f"error: --quantize {method}: {said}"
    reads = f"{small}: its weights are quantized, and reading them {said}"
    for command, more in ((evaluate, ["--data", text]), (generate, ["--prompt", "the"]), (main, ["--prune", "2:4"])):
        more = [*more, "--out", str(there)]
        assert command([str(small), *more]) == 2
        assert capsys.readouterr().err == f"error: {reads}"
    assert train(trains) == 2
    assert capsys.readouterr().err == f"error: --model.pretrained {reads}"
    assert not there.exists()


@pytest.mark.slow
def test_a_folder_is_measured_again_after_reloading(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = str(llama.parent / "text.txt"), tmp_path / "out"
    asked = [str(llama), "--quantize", "int8,int4", "--group_size", "8", "--data", text, "--device", "cpu"]
    assert main([*asked, "--at_most_loss", "0.08%", "--out", str(out)]) == 1  # int8: +0.14 %, int4: +0.03 %
    assert {path.name for path in out.iterdir()} == {"compress.json", "compress.md", "compress.png", "int4"}
    found = json.loads((out / "compress.json").read_text())
    int8, int4 = found["smaller"]
    assert (int8["is_kept"], int4["is_kept"]) == (False, True)
    for made in (int8, int4):
        assert made["reloaded"] == made["in_memory"] != found["original"]["reloaded"]
        assert made["size"] < found["original"]["size"]
        assert made["parameters"] == found["original"]["parameters"]
        assert min(made["tokens_per_second"], made["peak_bytes"]) > 0
    assert int4["size"] == (out / "int4/model.safetensors").stat().st_size
    assert "int8: worse than --at_most_loss +0.08 % allows, and left out" in capsys.readouterr().out


def test_wanda_reads_what_the_run_was_trained_on(
    train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another text gives other masks; both are of half the weights, and what was pruned is written so."""
    run = tmp_path / "run"
    assert train_tiny(run, "--max_steps", "1") == 0
    (tmp_path / "text.txt").write_text(TEXT)
    asked = [str(run), "--prune", "2:4 wanda", "--out", str(tmp_path / "out")]
    [recipe] = recipes_of(flag_parser().parse_args(asked))
    assert (recipe.name, recipe.library, recipe.reads_text) == ("2of4-wanda", "", True)
    gptq = ["--quantize", "int4-gptq,int4", "--group_size", "8"]
    both = recipes_of(flag_parser().parse_args([str(run), *gptq, "--out", "out"]))
    assert [each.reads_text for each in both] == [True, False]
    made = []
    for more in ([], ["--calibrate", str(tmp_path / "text.txt")]):
        trained = open_trained(str(run))
        recipe.check(trained.model)
        batches = calibration(trained, flag_parser().parse_args([*asked, *more]))
        assert set(batches[0]) <= {"input_ids", "attention_mask"}
        trained.model.save_pretrained(tmp_path / "plain")
        (out := tmp_path / f"out{len(more)}").mkdir()
        recipe.make(tmp_path / "plain", out, batches)
        made.append(dict(load(out).named_parameters())["model.layers.0.mlp.up_proj.weight"])
        assert (made[-1].reshape(-1, 4).count_nonzero(1) == 2).all()
    assert not torch.equal(*made)


def result(name: str, figure: float) -> Result:
    return Result(name, 1 << 20, 1000, 0.5, figure, figure, {"text": {"loss": figure}}, 1234.5, 1 << 21)


def test_figures_that_are_no_numbers_are_told_and_never_good_enough(tmp_path: Path) -> None:
    worse = result("a|b $x$", float("nan"))
    results = Results("m", "loss", False, None, {"sslm": "0"}, "cpu", result("original", 2.0), [worse])
    assert table(results)[1][1][5:8] == ["nan", "nan", "+nan%"]
    write_report(results, tmp_path)
    assert json.loads((tmp_path / "compress.json").read_text())["smaller"][0]["reloaded"] is None
    assert "a\\|b $x$" in (tmp_path / "compress.md").read_text()
    assert (tmp_path / "compress.png").stat().st_size
    assert not MostLoss(1.0, True).allows(2.0, float("nan"), False)


@pytest.mark.parametrize(
    ("given", "said"), [("+2%", "2 %"), ("10 %", "10 %"), (".5%", "0.5 %"), ("0.01", "0.01"), ("0%", "0 %")]
)
def test_an_amount_is_told_as_it_was_typed(given: str, said: str) -> None:
    most = flag_parser().parse_args(["m", "--out", "o", "--at_most_loss", given]).at_most_loss
    assert str(most) == said
