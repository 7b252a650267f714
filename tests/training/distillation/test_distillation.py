"""Distillation end to end: any objective, any number of processes, killed and gone on with, and what is refused."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sslm.__main__ import main as sslm
from tests.support.objectives import BART, ENCODER, NO_DROPOUT, T5
from tests.support.processes import Ranks, train_forked
from tests.support.runs import TrainTiny, losses_of, val_of, wait_for_rows, without_model

OBJECTIVES = {
    "causal_lm": f"--model.model_type llama {ENCODER}",
    "masked_lm": f"--objective masked_lm --model.model_type bert {ENCODER} {NO_DROPOUT['bert']}",
    "span_corruption": f"--objective span_corruption {T5} {NO_DROPOUT['t5']}",
    "denoising": f"--objective denoising {BART} {NO_DROPOUT['bart']}",
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Callable[[str], Path]:
    """A trained model of each objective, wider than its student."""
    folder = tmp_path_factory.mktemp("teachers")

    def of(objective: str) -> Path:
        run = folder / objective
        if not run.exists():
            wide = OBJECTIVES[objective].replace(" 32", " 48").replace("d_model 32", "d_model 48")
            assert train([*without_model(tiny), *shlex.split(wide), "--optim.lr", "1e-2"], run) == 0
        return run

    return of


def train(flags: list[str], run: Path) -> int:
    done = train_forked([*flags, "--run_dir", str(run)], run.with_name(f"{run.name}.log"))
    assert done.returncode in (0, 2), done.stdout
    return done.returncode


LAYERS = "--distill.hidden_weight 1 --distill.attention_weight 0.1"


@pytest.mark.parametrize(
    ("objective", "strategy", "layers"),
    [
        ("causal_lm", "fsdp", LAYERS),
        *(
            pytest.param(*some, marks=pytest.mark.slow)
            for some in (
                ("masked_lm", "ddp", LAYERS),
                ("span_corruption", "fsdp", LAYERS),
                ("denoising", "deepspeed_2", LAYERS),
            )
        ),
    ],
)
def test_several_processes_give_the_losses_of_one(
    objective: str, strategy: str, layers: str, teacher: Callable[[str], Path], tiny: list[str], tmp_path: Path
) -> None:
    flags = [*without_model(tiny), *shlex.split(OBJECTIVES[objective]), "--distill.teacher", str(teacher(objective))]
    one, two = tmp_path / "one", tmp_path / "two"
    flags += ["--distill.temperature", "2", "--max_steps", "5", *shlex.split(layers)]
    assert train(flags, one) == 0
    assert train([*flags, "--strategy", strategy, "--devices", "2", "--micro_batch_size", "1"], two) == 0
    assert losses_of(two) == pytest.approx(losses_of(one), abs=1e-6, rel=2e-7)
    assert list(val_of(two).values()) == pytest.approx(list(val_of(one).values()), abs=1e-6)


def test_a_killed_run_goes_on_as_the_uninterrupted_one(
    teacher: Callable[[str], Path], tiny: list[str], tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = [*tiny, "--model.attention_dropout", "0.1", "--distill.teacher", str(teacher("causal_lm"))]
    flags += shlex.split(LAYERS)
    flags += ["--distill.divergence", "js", "--max_steps", "24", "--checkpoint.every_steps", "2"]
    assert train(flags, whole) == 0
    ranks = Ranks([*flags, "--run_dir", str(parts)], tmp_path / "killed.log")
    wait_for_rows(parts, 8, ranks)  # type: ignore[arg-type]
    ranks.end()
    ranks.wait()
    assert not (parts / "export").exists()
    assert train(flags, parts) == 0
    assert losses_of(parts) == losses_of(whole)
    weights, resumed = (load_file(run / "export/model.safetensors") for run in (whole, parts))
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    [newest] = sorted((parts / "checkpoints").glob("step-*"))[-1:]
    saved = {name for file in newest.glob("*.safetensors") for name in load_file(file)}
    assert not any("teacher" in name for name in saved)
    assert {f"model.layer_states.projections.0.{name}.weight" for name in ("embeddings", "blocks")} <= saved
    assert not any("projections" in name for name in weights)  # the export is the student alone


def test_another_teacher_is_refused_and_so_is_none(
    teacher: Callable[[str], Path],
    tiny: list[str],
    train_tiny: TrainTiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    first = ["--max_steps", "4"]
    assert train_tiny(run, *first, "--distill.teacher", str(teacher("causal_lm"))) == 0
    for other in ([], ["--distill.teacher", str(run)]):
        assert train_tiny(run, "--max_steps", "8", *other) == 2
        assert "was trained with another teacher; give that one" in capsys.readouterr().err
    moved.symlink_to(teacher("causal_lm") / "export")  # where it lies is no matter
    assert train_tiny(run, "--max_steps", "8", "--distill.teacher", str(moved)) == 0


def test_a_student_begins_with_the_teachers_layers(
    teacher: Callable[[str], Path], tiny: list[str], tmp_path: Path
) -> None:
    run, of = tmp_path / "run", teacher("causal_lm")
    flags = [*without_model(tiny), "--distill.teacher", str(of), "--distill.from_layers"]
    assert train([*flags, "every 1"], run) == 0
    assert val_of(run)[0] == pytest.approx(list(val_of(of).values())[-1], abs=1e-5)
    assert train([*flags, "0", "--max_steps", "2"], tmp_path / "less") == 0
    assert json.loads((tmp_path / "less/export/config.json").read_text())["num_hidden_layers"] == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--data.tokenizer bpe:400", "was trained with another tokenizer, so its probabilities are of other tokens"),
        ("--objective masked_lm", "is CausalLM, and the student MaskedLM; give a teacher"),
        ("--distill.teacher /nowhere", "/nowhere"),
        ("--distill.weight 1.5", "--distill.weight 1.5: expected a share from 0 to 1"),
        ("--distill.temperature 0", "--distill.temperature 0.0: expected a number from 0.01 to 1000"),
        ("--distill.divergence kl", "forward_kl"),
        ("--strategy tp --devices 2", "--distill.teacher: not under --strategy tp; give --strategy fsdp"),
        ("--distill.temperature 1e9", "--distill.temperature 1000000000.0: expected a number from 0.01 to 1000"),
        ("--distill.from_layers 0", "the student is as the teacher is; leave --model.hidden_size out"),
        ("--robust.adversarial fgm", "--distill.teacher: not with --robust.adversarial"),
        ("--distill.layer_map 0:0", "--distill.layer_map 0:0: of what? give --distill.hidden_weight 1"),
        ("--distill.hidden_weight -1", "--distill.hidden_weight -1.0: expected a number of 0 or more"),
        ("--distill.hidden_weight 1 --distill.layer_map 3:0", "has layers 0 (embeddings) to"),
        ("--distill.attention_weight 1 --attention flex", "scores are those of sdpa, not of --attention flex"),
        ("--distill.hidden_weight 1 --compile block", "has not been tried with --compile block"),
        ("--seq_len 64", "takes at most 32 tokens, sequences have 64; give a smaller --seq_len"),
    ],
)
def test_what_cant_be_taught_is_refused_before_anything_is_written(
    flags: str,
    says: str,
    teacher: Callable[[str], Path],
    tiny: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    asked = ["train", *tiny, "--run_dir", str(run), "--distill.teacher", str(teacher("causal_lm"))]
    assert sslm([*asked, *shlex.split(flags)]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not run.exists()


def test_settings_of_a_teacher_without_one_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = str(tmp_path / "run"), str(tmp_path / "cache")
    assert sslm(["train", "--run_dir", run, "--distill.weight", "0.9"]) == 2
    assert "--distill.weight 0.9: of which teacher? give --distill.teacher" in capsys.readouterr().err
    made = ["distill-cache", "--distill.teacher", run, "--out", out]
    for given, says in (
        (["--distill.cache", "there"], "is for students"),
        (["--top_k", "٣"], "expected a whole number"),
    ):
        assert sslm([*made, *given]) == 2
        assert says in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_student_of_a_task_learns_from_a_teacher_of_the_same_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": f"the {colour} house", "label": colour} for colour in ("red", "green", "blue")] * 20
    files = {name: tmp_path / f"{name}.jsonl" for name in ("train", "val")}
    for file in files.values():
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = f"--objective classification --model.model_type bert {ENCODER} --seq_len 16 --batch_size 8 --max_steps 12"
    flags += f" --data.train {files['train']} --data.val {files['val']} --data.cache_dir {tmp_path}/cache"
    flags += " --accelerator cpu --optim.lr 1e-2 --optim.warmup_steps 2"
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    assert train([*shlex.split(flags), "--data.tokenizer", "bpe:300"], teacher) == 0
    taught = [*shlex.split(flags), "--distill.teacher", str(teacher), "--distill.weight", "0.9"]
    assert train([*taught, "--model.num_hidden_layers", "1"], student) == 0
    assert json.loads((student / "status.json").read_text())["state"] == "done"
    files["train"].write_text("".join(json.dumps({**row, "label": f"{row['label']}ish"}) + "\n" for row in rows))
    files["val"].write_text(files["train"].read_text())
    assert sslm(["train", *taught, "--run_dir", str(tmp_path / "other")]) == 2
    assert "its labels are blue, green, red, the data's blueish, greenish, redish" in capsys.readouterr().err
