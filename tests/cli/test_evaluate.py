"""`sslm evaluate` on small models, beside what is written down here the long way."""

import gzip
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from sslm.cli.evaluate import main
from sslm.cli.prepare import main as prepare
from sslm.evaluation.methods import method_of
from sslm.evaluation.texts import rules_of
from sslm.runs.trained import open_trained
from sslm.train import main as train
from tests.support.runs import TrainTiny
from tests.support.trained import byte_level, save_model, word_piece

TEXTS = [
    "the cat sat on a mat, and then once more on another mat; the dog was not amused",
    "日本語の文章と русский текст",
    '<|endoftext|> is plain text\r\n\ttabs "quotes" and 👍🏽 e\u0301',
    "a",
    "مرحبا بالعالم",
]
Figures = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def documents(folder: Path) -> Path:
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


@pytest.fixture(scope="module")
def llama(folder: Path) -> Path:
    return save_model(folder / "llama", "llama", byte_level(" ".join(TEXTS)))


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., Figures]:
    def run(*arguments: object) -> Figures:
        assert main([*map(str, arguments), "--out", str(tmp_path / "out.json"), "--device", "cpu"]) == 0
        found: Figures = json.loads((tmp_path / "out.json").read_text())
        return found

    return run


def scores_of(found: Figures, model: int = 0, data: int = 0) -> Figures:
    scores: Figures = found["models"][model]["scores"][data]
    return scores


def by_hand(folder: Path, seq_len: int, stride: int) -> tuple[float, int]:
    """Nats and tokens of TEXTS, one forward pass a token."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    nats, num = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text, split_special_tokens=True).input_ids
        whole = [tokenizer.eos_token_id, *ids]
        for place in range(1, len(whole)):
            end = seq_len if place <= seq_len else seq_len + -(-(place - seq_len) // stride) * stride
            start = max(min(end, len(whole) - 1) - seq_len, 0)
            with torch.no_grad():
                logits = model(torch.tensor([whole[start:place]])).logits[0, -1].double()
            nats -= logits.log_softmax(-1)[whole[place]].item()
            num += 1
    return nats, num


def test_perplexity_is_that_of_one_pass_a_token(evaluate: Callable[..., Figures], llama: Path, documents: Path) -> None:
    nats, num = by_hand(llama, 16, 8)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    scores = scores_of(evaluate(llama, "--data", documents))
    assert scores["counts"] == {"documents": len(TEXTS), "tokens": num, "bytes": num_bytes}
    value = {name: figure["value"] for name, figure in scores["figures"].items()}
    assert value["loss"] == pytest.approx(nats / num, rel=1e-5)
    assert value["perplexity"] == pytest.approx(math.exp(nats / num), rel=1e-4)
    assert value["bits_per_byte"] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert all(figure["stderr"] > 0 for figure in scores["figures"].values())


@pytest.mark.parametrize("model_type", ["llama", "sslm_lstm", "bert", "t5"])
def test_no_figure_depends_on_the_batch_size(
    evaluate: Callable[..., Figures], folder: Path, documents: Path, model_type: str
) -> None:
    tokenizer = word_piece() if model_type == "bert" else byte_level(" ".join(TEXTS))
    model = save_model(folder / f"batches-{model_type}", model_type, tokenizer)
    found = [evaluate(model, "--data", documents, "--seq_len", 16, "--batch_size", size) for size in (1, 7)]
    one, seven = (scores_of(some) for some in found)
    assert one["counts"] == seven["counts"]
    for name, figure in one["figures"].items():
        assert seven["figures"][name]["value"] == pytest.approx(figure["value"], rel=1e-6), name


def test_text_and_what_was_prepared_of_it_give_one_figure(
    evaluate: Callable[..., Figures], llama: Path, documents: Path, tmp_path: Path
) -> None:
    """Compressed files, several files of a glob, and a corpus here."""
    corpus = tmp_path / "corpus"
    assert prepare([str(documents), "--out", str(corpus), "--tokenizer", str(llama)]) == 0
    with gzip.open(tmp_path / "texts.jsonl.gz", "wb") as stream:
        stream.write(documents.read_bytes())
    for number, text in enumerate(TEXTS):
        (tmp_path / f"text-{number}.txt").write_bytes(text.encode())
    others = [f"corpus={corpus}", tmp_path / "texts.jsonl.gz", f"glob={tmp_path}/text-*.txt"]
    flags = [flag for path in others for flag in ("--data", path)]
    found = evaluate(llama, "--data", f"plain={documents}", *flags)
    plain, *rest = found["models"][0]["scores"]
    assert [scores["data"] for scores in rest] == ["corpus", "texts", "glob"]
    for scores in rest:
        assert scores["counts"] == plain["counts"]
        assert scores["figures"]["bits_per_byte"] == pytest.approx(plain["figures"]["bits_per_byte"], rel=1e-6)


def test_pseudo_perplexity_is_that_of_one_pass_a_token(
    evaluate: Callable[..., Figures], folder: Path, tmp_path: Path
) -> None:
    model_folder = save_model(folder / "bert", "bert", word_piece())
    text = "The cats sat on a mat. doggy satting"
    (tmp_path / "a.txt").write_text(text)
    scores = scores_of(evaluate(model_folder, "--data", tmp_path / "a.txt"))
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    ids = torch.tensor(tokenizer(text).input_ids)
    names = [*tokenizer.convert_ids_to_tokens(ids), ""]
    assert "##ting" in names
    nats = {False: 0.0, True: 0.0}
    for place in range(1, len(ids) - 1):
        end = next(end for end in range(place + 1, len(names)) if not names[end].startswith("##"))
        for within_word in nats:
            hidden = ids.clone()
            hidden[place : end if within_word else place + 1] = tokenizer.mask_token_id
            with torch.no_grad():
                logits = model(hidden[None]).logits[0, place]
            nats[within_word] -= logits.log_softmax(-1)[ids[place]].item()
    num = len(ids) - 2
    assert scores["counts"]["tokens"] == num
    assert scores["figures"]["pseudo_perplexity"]["value"] == pytest.approx(math.exp(nats[False] / num), rel=1e-4)
    within = scores["figures"]["pseudo_perplexity_within_word"]["value"]
    assert within == pytest.approx(math.exp(nats[True] / num), rel=1e-4)
    assert scores["figures"]["loss"]["stderr"] is None  # of one document


class Document(NamedTuple):
    """A whole one, to make rows of."""

    document: int
    ids: Any
    num_bytes: float
    is_end: bool = True


def spans_of(text: str) -> dict[str, str]:
    """Sentinel -> what stands behind it, in a target or in what was written."""
    parts = re.split(r"(<extra_id_\d+>)", text.partition("<|endoftext|>")[0])
    return dict(zip(parts[-2::-2], parts[:0:-2], strict=True))


@pytest.mark.slow
def test_exact_spans_are_those_that_plain_transformers_writes(evaluate: Callable[..., Figures], tmp_path: Path) -> None:
    """By a T5 that has learned its text: each document has one letter."""
    files = {"train": [60 + n % 7 for n in range(400)], "held": [20 + n % 9 for n in range(40)]}
    texts = {name: [" ".join("abcdefgh"[n % 8] * length) for n, length in enumerate(of)] for name, of in files.items()}
    for name, some in texts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    sizes = "--model.d_model 32 --model.d_kv 16 --model.d_ff 64 --model.num_layers 1 --model.dropout_rate 0"
    flags = f"--objective span_corruption --objective.mean_span 1 --data.tokenizer bpe:280 --seq_len 32 {sizes}".split()
    flags += ["--batch_size", "32", "--max_steps", "60", "--optim.lr", "1e-2", "--optim.warmup_steps", "20"]
    files_of_run = [f"--data.train={tmp_path}/train.jsonl", f"--data.cache_dir={tmp_path}/cache", "--accelerator=cpu"]
    assert train([*flags, *files_of_run, f"--run_dir={tmp_path}/run"]) == 0
    found = scores_of(evaluate(tmp_path / "run", "--data", tmp_path / "held.jsonl"))["figures"]["span_exact_match"]

    trained = open_trained(str(tmp_path / "run"))
    method = method_of(trained, rules_of(trained), None, None)
    export = tmp_path / "run/export"
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(export).eval(), AutoTokenizer.from_pretrained(export)
    documents = [Document(n, tokenizer(text).input_ids, len(text)) for n, text in enumerate(texts["held"])]
    right = number = 0
    for row in method.rows(documents):
        batch = method.collate([row])
        how = {"max_new_tokens": batch["labels"].shape[1], "do_sample": False}
        written = model.generate(input_ids=batch["input_ids"], **how)[0, 1:]
        wanted, said = (spans_of(tokenizer.decode(ids)) for ids in (batch["labels"][0], written))
        right, number = right + sum(said.get(name) == text for name, text in wanted.items()), number + len(wanted)
    assert number > 40
    assert right / number > 0.5
    assert found["value"] == pytest.approx(right / number)


def test_a_run_is_measured_on_what_it_holds_out(
    evaluate: Callable[..., Figures], train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_tiny(tmp_path / "run") == 0
    found = evaluate(tmp_path / "run", tmp_path / "run/checkpoints/step-000004")
    first, second = (scores_of(found, model) for model in (0, 1))
    assert (first["data"], first["counts"]) == ("held out", second["counts"])
    assert first["figures"]["loss"]["value"] < second["figures"]["loss"]["value"]
    assert [model["step"] for model in found["models"]] == [8, 4]
    table = capsys.readouterr().out
    assert "bits per byte" in table
    assert "run/step-000004" in table


def test_models_stand_side_by_side(
    evaluate: Callable[..., Figures], llama: Path, folder: Path, documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lstm = save_model(folder / "lstm", "sslm_lstm", byte_level("another text entirely", 280))
    found = evaluate(llama, lstm, "--data", documents, "--limit", 2)
    assert [model["architecture"] for model in found["models"]] == ["LlamaForCausalLM", "LstmForCausalLM"]
    assert [scores_of(found, model)["counts"]["bytes"] for model in (0, 1)] == [
        sum(len(text.encode()) for text in TEXTS[:2])
    ] * 2
    assert "tokenizers differ: compare bits per byte" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{llama}"], "is no run, so it has no text of its own; give some: --data"),
        (["{llama}", "--data", "nowhere.txt"], "nowhere.txt: there is no such file"),
        (["{llama}", "--data", "{empty}"], "the file is empty"),
        (["{llama}", "--data", "{blank}"], "nothing in it can be scored"),
        (["{llama}", "--data", "{texts}", "--seq_len", "99"], "takes at most 16 tokens; give --seq_len 16"),
        (["{llama}", "--data", "{texts}", "--stride", "17"], "--stride 17: is more than a window of 16"),
        (["{llama}", "--data", "{texts}", "--data", "{texts}"], "two are called texts; give each a name"),
        (["{llama}", "--data", "{texts}", "--out", "no/such/folder.json"], "there is no folder no/such"),
        (["{llama}", "--data", "{texts}", "--out", "."], "--out .: is a folder"),
        (["{llama}", "/no/such/model", "--data", "{texts}"], "/no/such/model: no model could be loaded"),
        (["/no/such/model", "--data", "{texts}"], "/no/such/model: no model could be loaded"),
        (["{bare}", "--data", "{texts}"], "tokenizer"),
        (["{broken}", "--data", "{texts}"], "has numbers that are not finite"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    sentence: str,
    llama: Path,
    documents: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path / "bare")
    model.lm_head.weight.data[0, 0] = math.nan
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path / "broken")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text(" \n\n ")
    names = {"llama": llama, "texts": documents, "bare": tmp_path / "bare", "broken": tmp_path / "broken"}
    names |= {"empty": tmp_path / "empty.txt", "blank": tmp_path / "blank.txt"}
    capsys.readouterr()
    assert main([argument.format(**names) for argument in arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert len(said.splitlines()) == 1


def test_a_corpus_of_another_tokenizer_is_refused(
    llama: Path, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare([str(documents), "--out", str(tmp_path / "corpus"), "--tokenizer", "bpe:280"]) == 0
    assert main([str(llama), "--data", str(tmp_path / "corpus")]) == 2
    assert "was prepared with another tokenizer (bpe:280) than the model's" in capsys.readouterr().err


def test_contamination_by_a_training_text_stands_beside_a_figure(
    evaluate: Callable[..., Figures], llama: Path, documents: Path, tmp_path: Path
) -> None:
    (tmp_path / "training.txt").write_text(f"something else. {TEXTS[0]}. {TEXTS[3]}")
    scores = scores_of(evaluate(llama, "--data", documents, "--against", tmp_path / "training.txt"))
    num = scores["counts"]["with 13 tokens"]
    assert 1 < num < len(TEXTS)
    assert scores["figures"]["contaminated"]["value"] == pytest.approx(1 / num)


def test_held_out_documents_are_told_from_those_a_run_has_seen(
    evaluate: Callable[..., Figures], train_tiny: TrainTiny, text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train_tiny(run, "--max_steps", "1") == 0
    seen = evaluate(run, "--data", text, "--document_separator", "\n-----\n", "--against", run, "--limit", "60")
    assert scores_of(seen)["figures"]["contaminated"]["value"] == 1
