"""The main job: text in, a trained model out that transformers alone loads."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sslm.config import DataConfig
from sslm.data.module import DataModule
from sslm.objectives.causal_lm import CausalLMRecipe
from sslm.runs.checkpoints.folder import newest_first
from sslm.runs.folder import RunFolder
from sslm.train import main
from tests.support.processes import run_command
from tests.support.runs import SMALL_RUN, TINY, TrainTiny, losses_of, rows_of, tensors_of, val_of, without_model


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    """A finished run with dropout."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main([*tiny, "--run_dir", str(run), "--model.attention_dropout", "0.1"]) == 0
    return run


def test_run_folder_holds_what_its_contract_says(finished: Path) -> None:
    for name in (
        "config.yaml",
        "status.json",
        "metrics.jsonl",
        "curves.png",
        "export/model.safetensors",
        "export/README.md",
    ):
        assert (finished / name).stat().st_size > 0, name
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    status = json.loads((finished / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["step"]) == ("done", 0, 8)
    assert (finished / "checkpoints/latest").read_text().strip() == "step-000008"
    assert sorted(p.name for p in (finished / "checkpoints").glob("step-*")) == ["step-000004", "step-000008"]


def test_rows_are_one_per_logged_step_and_validation(finished: Path) -> None:
    rows = rows_of(finished)
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 9))
    assert list(val_of(finished)) == [0, 4, 8]
    train = next(row for row in rows if "train/loss" in row)
    assert {"step", "tokens", "lr", "grad_norm", "tokens_per_second", "mfu", "data_wait", "batch_digest"} <= set(train)
    assert 0.1 < train["host_memory_gib"] < 100
    last = [row for row in rows if "flops" in row][-1]
    assert last["flops"] / train["flops"] == pytest.approx(last["tokens"] / train["tokens"])
    val = next(row for row in rows if "val/loss" in row)
    assert val["val/perplexity"] == pytest.approx(math.exp(val["val/loss"]), rel=1e-5)
    assert all(">>" in sample for sample in val["samples"])


def test_model_learns(train_tiny: TrainTiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_tiny(run, "--max_steps", "100", "--val_every", "100", "--optim.lr", "1e-2", "--log_every", "20") == 0
    first, last = val_of(run).values()
    assert first == pytest.approx(math.log(512), abs=0.2)
    assert last < first - 0.7


EVALUATE = """
import json, sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
assert not any(name.startswith("sslm") for name in sys.modules)
folder, windows = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
assert tokenizer.decode(tokenizer("Hello there")["input_ids"]) == "Hello there"
model = AutoModelForCausalLM.from_pretrained(folder)
assert model.dtype == torch.float32
long = tokenizer("Hello there " * 100, truncation=True, return_tensors="pt")
assert long.input_ids.shape[1] == tokenizer.model_max_length == model.config.max_position_embeddings == 32
model(**long)
ids = torch.tensor(json.load(open(windows)))
with torch.no_grad():
    print(model(ids, labels=ids).loss.item())
"""


def test_export_gives_the_reported_loss_in_transformers_without_sslm(
    finished: Path, text: Path, cache: Path, tmp_path: Path
) -> None:
    source = DataConfig(
        train=str(text), document_separator="\n-----\n", tokenizer="bpe:512", cache_dir=str(cache), val_sequences=12
    )
    data = DataModule(source, CausalLMRecipe(), seq_len=32, batch_size=4)
    data.setup()
    (tmp_path / "windows.json").write_text(json.dumps([row.tolist() for row in data.held_out.tokens]))
    shutil.copytree(finished / "export", tmp_path / "export")
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    done = run_command(["-I", str(tmp_path / "evaluate.py"), str(tmp_path / "export"), str(tmp_path / "windows.json")])
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(val_of(finished)[8], abs=1e-5)


def test_another_tokenizer_than_the_pretrained_weights_is_warned_of(
    finished: Path, train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained = ["--model.pretrained", str(finished), "--dry_run"]
    assert train_tiny(tmp_path / "same", *pretrained) == 0
    assert "another tokenizer" not in capsys.readouterr().out
    assert train_tiny(tmp_path / "other", *pretrained, "--data.tokenizer", "bpe:300") == 0
    assert "was trained with another tokenizer: 300 of its 512 entries have" in " ".join(
        capsys.readouterr().out.split()
    )


def test_export_verb_makes_a_folder_of_any_checkpoint(finished: Path, tmp_path: Path) -> None:
    from sslm.cli.export import main as export

    assert export([str(finished), "--out", str(tmp_path / "newest")]) == 0
    assert export([str(finished / "checkpoints/step-000004"), "--out", str(tmp_path / "older")]) == 0
    final = (finished / "export/model.safetensors").read_bytes()
    assert (tmp_path / "newest/model.safetensors").read_bytes() == final
    assert (tmp_path / "older/model.safetensors").read_bytes() != final
    assert f"loss: {val_of(finished)[4]:.4f}" in (tmp_path / "older/README.md").read_text()
    assert export([str(finished), "--out", str(tmp_path / "newest")]) == 2
    assert export([str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()


def test_same_command_again_says_that_the_run_is_done(
    finished: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "--run_dir", str(finished), "--model.attention_dropout", "0.1"]) == 0
    assert "This run is done: 8 of 8 steps" in capsys.readouterr().out
    for last in ([], ["--dry_run"]):
        flags = ["--run_dir", str(finished), "--model.attention_dropout", "0.1", "--max_steps", "5"]
        assert main([*tiny, *flags, *last]) == 0
        said = capsys.readouterr().out
        assert "This run is done: it has 8 steps already, this command asks for 5" in said
        assert said.count("--max_steps 16") == (not last)
        assert "--max_steps 10" not in said


def test_stopped_and_resumed_is_bitwise_the_uninterrupted_run(
    finished: Path, train_tiny: TrainTiny, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = ["--model.attention_dropout", "0.1"]
    assert train_tiny(run, *flags, "--stop_after", "3steps") == 75
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 4, "train/loss": 0.0}\n{"step": 5, "tra')  # what a killed process may leave
    assert train_tiny(run, *flags, "--stop_after", "3steps") == 75
    assert train_tiny(run, *flags) == 0
    assert losses_of(run) == losses_of(finished)
    assert val_of(run) == val_of(finished)
    assert (run / "export/model.safetensors").read_bytes() == (finished / "export/model.safetensors").read_bytes()
    digests = [[row.get("batch_digest") for row in rows_of(r)] for r in (run, finished)]
    assert digests[0] == digests[1]


def test_layers_that_were_dropped_so_far_go_on_too(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "--model.hidden_size 32 --model.ffn_dim 64 --model.num_hidden_layers 4 --model.num_attention_heads 2"
    opt = ["--model.model_type", "opt", *sizes.split(), "--model.layerdrop", "0.9", "--micro_batch_size", "4"]
    flags = [*without_model(tiny), *opt]
    assert main([*flags, "--run_dir", str(tmp_path / "straight")]) == 0
    run = [*flags, "--run_dir", str(tmp_path / "run")]
    assert main([*run, "--stop_after", "1steps"]) == 75
    saved = tensors_of(next((tmp_path / "run/checkpoints").glob("step-*")))
    moments = [value for name, value in saved.items() if name.endswith("exp_avg_sq")]
    assert 0 < sum(not value.any() for value in moments) < len(moments), "some weights have had no gradient"
    assert main([*run, "--stop_after", "2steps"]) == 75
    assert main(run) == 0
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "straight")
    last = [tensors_of(tmp_path / name / "checkpoints/step-000008") for name in ("run", "straight")]
    assert all(torch.equal(last[0][name], value) for name, value in last[1].items())
    capsys.readouterr()
    assert main([*flags, "--run_dir", str(tmp_path / "two"), "--devices", "2", "--micro_batch_size", "2"]) == 2
    assert "--model.layerdrop 0.9: each process would drop other layers" in capsys.readouterr().err


def test_dropout_is_a_function_of_position_whatever_the_batch_was_split_into(
    train_tiny: TrainTiny, tmp_path: Path
) -> None:
    assert train_tiny(tmp_path / "a", "--max_steps", "3") == 0
    assert train_tiny(tmp_path / "b", "--max_steps", "3", "--micro_batch_size", "1") == 0
    assert losses_of(tmp_path / "a") == pytest.approx(losses_of(tmp_path / "b"), abs=1e-6)


def test_longer_run_goes_on_from_a_finished_one(train_tiny: TrainTiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_tiny(run, "--max_steps", "3", "--optim.schedule", "constant") == 0
    assert train_tiny(run, "--max_steps", "6", "--optim.schedule", "constant") == 0
    assert train_tiny(tmp_path / "straight", "--max_steps", "6", "--optim.schedule", "constant") == 0
    assert losses_of(run) == losses_of(tmp_path / "straight")


def test_resume_refuses_other_settings_and_names_them(
    finished: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "--run_dir", str(finished), "--optim.lr", "5e-4", "--model.attention_dropout", "0.1"]) == 2
    message = capsys.readouterr().err
    assert "optim.lr" in message
    assert "attention_dropout" not in message
    assert main([*tiny, "--run_dir", str(finished), "--model.attention_dropout", "0.1", "--resume", "never"]) == 2


def test_resume_refuses_changed_text(
    tiny: list[str], tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.txt"
    own.write_text(text.read_text())
    flags = [*tiny, "--data.train", str(own), "--run_dir", str(tmp_path / "run"), "--max_steps", "2"]
    assert main(flags) == 0
    own.write_text(text.read_text() + "one more sentence")
    assert main([*flags, "--max_steps", "4"]) == 2
    assert "the data has changed" in capsys.readouterr().err


def test_damaged_newest_checkpoint_is_passed_over(
    train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train_tiny(run) == 0
    straight = losses_of(run)
    [shard] = (run / "checkpoints/step-000008").glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[-10] ^= 1
    shard.write_bytes(content)
    assert train_tiny(run) == 0
    assert "is damaged" in capsys.readouterr().out
    assert losses_of(run) == straight


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bf16_trains_near_fp32_and_exports(
    train_tiny: TrainTiny, finished: Path, tmp_path: Path, precision: str
) -> None:
    run = tmp_path / "run"
    assert train_tiny(run, "--precision", precision) == 0
    assert losses_of(run) == pytest.approx(losses_of(finished), abs=0.05)
    assert any(loss * 32 % 1 for loss in losses_of(run)), "losses were rounded to bfloat16"
    assert {t.dtype for t in load_file(run / "export/model.safetensors").values()} == {torch.float32}


def test_resume_path_begins_a_run_and_the_same_command_goes_on_with_it(train_tiny: TrainTiny, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train_tiny(first, "--checkpoint.keep_last", "null") == 0
    flags = ["--resume", str(first / "checkpoints/step-000004"), "--checkpoint.keep_last", "1"]
    assert train_tiny(second, *flags, "--stop_after", "2steps") == 75
    assert [p.name for p in newest_first(second / "checkpoints")] == ["step-000006"]
    assert train_tiny(second, *flags) == 0
    assert losses_of(second) == losses_of(first)[4:]
    assert train_tiny(tmp_path / "third", *flags, "--optim.lr", "1e-3") == 2


def test_only_the_newest_checkpoints_are_kept(train_tiny: TrainTiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints/.step-000003.tmp").mkdir(parents=True)
    (run / "checkpoints/step-000001.bak").mkdir()
    assert train_tiny(run, "--checkpoint.every_steps", "2", "--checkpoint.keep_last", "3") == 0
    assert [p.name for p in newest_first(run / "checkpoints")] == ["step-000008", "step-000006", "step-000004"]
    assert not (run / "checkpoints/.step-000003.tmp").exists()


def test_checkpoints_by_the_clock_and_a_schedule_that_ends_in_decay(train_tiny: TrainTiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    by_time = [
        "--checkpoint.every_steps",
        "null",
        "--checkpoint.every_minutes",
        "1e-6",
        "--checkpoint.keep_last",
        "null",
    ]
    wsd = [
        "--optim.schedule",
        "wsd",
        "--optim.decay_fraction",
        "0.5",
        "--optim.min_lr_ratio",
        "0",
        "--optim.lr",
        "1e-3",
    ]
    assert train_tiny(run, *by_time, *wsd) == 0
    assert len(newest_first(run / "checkpoints")) == 8
    rates = [row["lr"] for row in rows_of(run) if "lr" in row]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_run_killed_before_its_export_makes_it_when_asked_again(train_tiny: TrainTiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_tiny(run, "--max_steps", "2") == 0
    shutil.rmtree(run / "export")
    assert train_tiny(run, "--max_steps", "2") == 0
    assert (run / "export/model.safetensors").is_file()


def test_folder_of_a_run_that_failed_before_its_first_checkpoint_is_free(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    xlnet = [
        "--model.model_type",
        "xlnet",
        "--model.d_model",
        "32",
        "--model.n_layer",
        "2",
        "--model.n_head",
        "2",
        "--model.d_inner",
        "64",
    ]
    shared = [*SMALL_RUN, *tiny[len(TINY) :]]
    assert main([*shared, "--run_dir", str(run), *xlnet]) == 2
    assert "is not causal" in capsys.readouterr().err
    assert json.loads((run / "status.json").read_text())["exit_code"] == 2
    assert main([*tiny, "--run_dir", str(run), "--max_steps", "1"]) == 0


def test_model_type_and_any_key_of_its_config(text: Path, cache: Path, train_tiny: TrainTiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    gpt2 = [
        "--model.model_type",
        "gpt2",
        "--model.n_layer",
        "1",
        "--model.n_embd",
        "32",
        "--model.n_head",
        "2",
        "--max_steps",
        "2",
    ]
    assert train_tiny(run, *gpt2) == 2  # TINY has keys of Llama that GPT-2 has not
    data = ["--data.train", str(text), "--data.cache_dir", str(cache), "--run_dir", str(run)]
    assert main([*SMALL_RUN, *gpt2, *data, "--dry_run"]) == 0
    assert not run.exists()
    assert main([*SMALL_RUN, *gpt2, *data]) == 0
    config = json.loads((run / "export/config.json").read_text())
    assert (config["model_type"], config["n_layer"], config["n_positions"], config["vocab_size"]) == (
        "gpt2",
        1,
        32,
        512,
    )


def test_run_continues_from_another_runs_weights(
    finished: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (tmp_path / "other.txt").write_text("The same kind of English. " * 2000)
    flags = f"""--run_dir {run} --model.pretrained {finished} --data.train {tmp_path}/other.txt --data.cache_dir {cache}
        --seq_len 32 --batch_size 4 --max_steps 4 --optim.lr 1e-9 --optim.warmup_steps 0 --accelerator cpu"""
    assert main(flags.split()) == 0
    assert "new: none" in capsys.readouterr().out
    assert rows_of(run)[0]["step"] == 0
    before, after = (load_file(r / "export/model.safetensors") for r in (finished, run))
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_second_process_in_the_same_run_folder_is_refused(
    train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (
        "from sslm.runs.folder import RunFolder; from pathlib import Path\n"
        f"with RunFolder(Path({str(tmp_path / 'run')!r})).locked(): pass"
    )
    with RunFolder(tmp_path / "run").locked():
        done = run_command(["-c", code])
    assert "another process is training" in done.stderr
    assert not (tmp_path / "run").exists()


def test_in_a_pod_a_former_process_is_waited_for_and_is_no_mistake(
    train_tiny: TrainTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pod before this one may still run on a lost node: exit code 2 would end the job for good."""
    with RunFolder(tmp_path / "run").locked():
        assert train_tiny(tmp_path / "run") == 2
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        assert train_tiny(tmp_path / "run", "--start_timeout_seconds", "0.1") == 1


def test_the_id_at_wandb_comes_back_with_the_checkpoint(train_tiny: TrainTiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "wandb_id").write_text("1a2b3c4d")
    assert train_tiny(run, "--stop_after", "2steps") == 75
    (run / "wandb_id").unlink()
    assert train_tiny(run) == 0
    assert (run / "wandb_id").read_text() == "1a2b3c4d"
