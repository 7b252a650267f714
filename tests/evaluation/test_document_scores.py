"""What models think of documents, as steps of a clean: beside plain transformers, document by document."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from sslm.data.cleaning.document import Document
from sslm.data.cleaning.tally import Tally
from sslm.evaluation.document_scores import Perplexity, Quality, opened
from sslm.models.build import build
from sslm.system.errors import UserError
from tests.support.trained import byte_level, save_model, word_piece

TEXTS = ["the cat sat on a mat", "dog", "a mat. the dog sat on the cat. the dog sat.", "cats sitting on doggy mats"]


def documents() -> list[Document]:
    return [Document(text, {"file": "a", "row": number}) for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("classifier"), word_piece()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    names = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}, "pad_token_id": 0}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=16, initializer_range=0.5, **sizes, **names)
    config.problem_type = "single_label_classification"
    build(config, "AutoModelForSequenceClassification", 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_perplexity_is_that_of_plain_transformers(tmp_path: Path) -> None:
    folder = str(save_model(tmp_path / "model", "llama", byte_level("\n".join(TEXTS)), positions=64))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    expected = []
    for text in TEXTS:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            expected.append(math.exp(model(ids, labels=ids).loss))
    most = sorted(expected)[1] * 1.001
    kept = Perplexity(folder, most=most)(documents(), tally := Tally())
    assert [one.text for one in kept] == [text for text, value in zip(TEXTS, expected, strict=True) if value <= most]
    told = {one.text: float(one.value.split(",")[0]) for one in tally.examples["perplexity: too high"]}
    assert told == pytest.approx(
        {text: value for text, value in zip(TEXTS, expected, strict=True) if value > most}, rel=1e-3
    )
    assert sum(tally.tables["perplexity"].values()) == len(TEXTS)


def test_quality_is_a_labels_probability(classifier: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    with torch.no_grad():
        logits = [
            model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=16)).logits for text in TEXTS
        ]
    expected = [float(one.softmax(-1)[0, 1]) for one in logits]
    least = sorted(expected)[2] - 1e-5
    kept = Quality(str(classifier), least, "good")(documents(), Tally())
    assert [one.text for one in kept] == [text for text, value in zip(TEXTS, expected, strict=True) if value >= least]


def test_a_model_that_cant_be_asked_is_told(classifier: Path) -> None:
    for label, said in (("god", "did you mean good"), (None, "it has bad, good")):
        with pytest.raises(UserError, match=said):
            opened(Quality(str(classifier), 0.5, label))
    with pytest.raises(UserError):
        opened(Perplexity(str(classifier)))


def test_what_a_broken_model_says_is_no_praise(tmp_path: Path, classifier: Path) -> None:
    folder = save_model(tmp_path / "model", "llama", byte_level("\n".join(TEXTS)), positions=64)
    shutil.copytree(classifier, tmp_path / "classifier")
    for broken in (folder, tmp_path / "classifier"):
        weights = load_file(broken / "model.safetensors")
        save_file({name: tensor * math.nan for name, tensor in weights.items()}, broken / "model.safetensors")
    assert Perplexity(str(folder), most=100.0)(documents(), Tally()) == []
    assert Quality(str(tmp_path / "classifier"), 0.5, "good")(documents(), Tally()) == []


def test_another_model_under_the_same_name_is_another_step(tmp_path: Path) -> None:
    tokenizer, seen = byte_level("\n".join(TEXTS)), []
    for model_type in ("llama", "sslm_lstm"):
        folder = save_model(tmp_path / model_type, model_type, tokenizer, positions=64)
        step = opened(Perplexity(str(folder)))
        seen.append(replace(step, model="same"))
        assert step == opened(Perplexity(str(folder)))
    assert seen[0].written() != seen[1].written()
