"""`sslm evaluate --tasks`: files of lm-evaluation-harness with data here, and the harness beside it."""

import json
import signal
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from sslm.cli.evaluate import main
from tests.support.processes import Ranks
from tests.support.tasks import CHOICE, ROWS, write_tasks
from tests.support.trained import byte_level, save_model, word_piece

needs_harness = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-evaluation-harness is not here: pip install 'sslm[eval]'"
)
quietly = pytest.mark.filterwarnings("ignore")  # the harness's own
TEXT = "the cat sat on a mat. a dog sat on the mat. the dogs sat."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder / "tasks")
    return folder


@pytest.fixture(autouse=True)
def cached(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")


def by_task(out: Path) -> dict[str, Any]:
    (model,) = json.loads(out.read_text())["models"]
    return {
        scores["data"]: {name: (figure["value"], figure["stderr"]) for name, figure in scores["figures"].items()}
        for scores in model["scores"]
    }


@needs_harness
@quietly
@pytest.mark.parametrize("model_type", ["llama", "t5"])
def test_scores_are_those_of_the_harness_itself(
    folder: Path, tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    model = save_model(folder / model_type, model_type, byte_level(TEXT, 280), positions=64)
    flags = ["--tasks", str(folder / "tasks"), "--num_fewshot", "1", "--limit", "8", "--device", "cpu"]
    assert main([str(model), *flags, "--out", str(tmp_path / "out.json")]) == 0
    monkeypatch.chdir(folder / "tasks")  # the harness finds data from where it is typed
    theirs = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        tasks=[str(folder / "tasks/sitting.yaml"), str(folder / "tasks/writing.yaml")],
        num_fewshot=1,
        limit=8,
        device="cpu",
        task_manager=TaskManager(include_defaults=False),
    )["results"]
    ours = by_task(tmp_path / "out.json")
    for name in ("acc", "acc_norm"):
        expected = theirs["sitting"][f"{name},none"], theirs["sitting"][f"{name}_stderr,none"]
        assert ours["sitting"][name] == pytest.approx(expected)
    assert ours["writing"]["exact_match"][0] == theirs["writing"]["exact_match,none"]


@needs_harness
@quietly
def test_a_masked_model_answers_by_hiding_each_token_of_an_answer(folder: Path, tmp_path: Path) -> None:
    place = save_model(folder / "bert", "bert", word_piece(), positions=32)
    out = tmp_path / "out.json"
    assert (
        main([str(place), "--tasks", str(folder / "tasks/sitting.yaml"), "--out", str(out), "--batch_size", "3"]) == 0
    )
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    right = 0
    for row in ROWS:
        sums = []
        for choice in row["choices"]:
            ids = torch.tensor(tokenizer(f"{row['question']} {choice}").input_ids)
            first = len(tokenizer(row["question"]).input_ids) - 1
            total = 0.0
            for at in range(first, len(ids) - 1):
                hidden = ids.clone()
                hidden[at] = tokenizer.mask_token_id
                with torch.no_grad():
                    total += model(hidden[None]).logits[0, at].log_softmax(-1)[ids[at]].item()
            sums.append(total)
        right += sums.index(max(sums)) == row["gold"]
    assert by_task(out)["sitting"]["acc"][0] == pytest.approx(right / len(ROWS))


@needs_harness
@quietly
def test_killed_it_goes_on_with_what_is_finished(folder: Path, tmp_path: Path) -> None:
    """A text, then a task: it is killed as soon as the text is finished."""
    model = save_model(folder / "killed", "bert", word_piece(), positions=32)
    (tmp_path / "a.txt").write_text(TEXT)
    out, journal = tmp_path / "out.json", tmp_path / ".out.json.journal"
    flags = [str(model), "--data", str(tmp_path / "a.txt"), "--tasks", str(folder / "tasks/sitting.yaml")]
    arguments = [*flags, "--out", str(out), "--batch_size", "1"]
    ranks = Ranks(arguments, tmp_path / "log", verb=main)
    end = time.monotonic() + 60
    while not (journal.is_file() and journal.read_bytes()) and ranks.is_alive():
        assert time.monotonic() < end
        time.sleep(0.002)
    ranks.signal(signal.SIGKILL)
    ranks.wait()
    assert not out.exists()
    (entry,) = map(json.loads, journal.read_text().splitlines())
    entry["scores"]["seconds"] = -1.0
    journal.write_text(json.dumps(entry) + "\n")
    assert main(arguments) == 0
    text, task = json.loads(out.read_text())["models"][0]["scores"]
    assert text["seconds"] == -1.0
    assert task["counts"] == {"examples": len(ROWS)}
    assert not journal.exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (CHOICE + "process_docs: !function utils.evil\n", "no code from outside is run"),
        (CHOICE.replace("{metric: acc},", "{metric: rouge, hf_evaluate: true},"), "asks for code (metric rouge)"),
        (CHOICE + "class: os.system\n", "asks for code (class)"),
        (CHOICE + "include: other.yaml\n", "other.yaml: can't be read"),
        (CHOICE + "include: task.yaml\n", "go round in a circle"),
        (CHOICE, "its data file sitting.jsonl is neither here nor beside it"),
        ("group: some\ntask: [a, b]\n", "no task (task: NAME); of a group name the files"),
        ("- a\n- b\n", "expected keys and values"),
        ("task: [", "line 1"),
        (None, "there is no such file or folder"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(
    content: str | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "task.yaml"
    if content is not None:
        file.write_text(content)
    assert main(["/no/such/model", "--tasks", str(file)]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert len(said.splitlines()) == 1


@needs_harness
@quietly
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (CHOICE.replace("acc_norm", "my_metric"), "the harness has no metric my_metric"),
        (
            CHOICE.replace("{{question}}", "{{ cycler.__init__.__globals__.os.system('touch hacked') }}"),
            "SecurityError",
        ),
        (CHOICE.replace("test_split: test", "test_split: nowhere"), "nowhere"),
        pytest.param(None, "no_such_task", marks=pytest.mark.slow),  # the harness reads all of its own tasks first
    ],
)
def test_what_the_harness_refuses_is_one_sentence(
    content: str | None,
    sentence: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = save_model(tmp_path / "model", "llama", byte_level(TEXT, 280))
    (tmp_path / "task.yaml").write_text(content or "")
    (tmp_path / "sitting.jsonl").write_text((folder / "tasks/sitting.jsonl").read_text())
    capsys.readouterr()
    assert main([str(model), "--tasks", "task.yaml" if content else "no_such_task"]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "hacked").exists()


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="the harness is here")
def test_without_the_harness_it_says_what_to_install(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["/no/such/model", "--tasks", str(folder / "tasks")]) == 2
    assert "type: pip install 'sslm[eval]'" in capsys.readouterr().err
