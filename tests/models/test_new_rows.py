"""New tokens of a trained model: they begin as the mean of their pieces, and no other logit changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoTokenizer

from sslm.cli.tokenizer import main
from sslm.data.corpus.new_tokens import with_tokens
from sslm.data.corpus.tokenizer import load
from sslm.data.corpus.tokenizer_design import Design
from sslm.models.new_rows import add_rows
from sslm.runs.trained import open_trained
from sslm.system.errors import UserError
from tests.support.trained import AUTO, byte_level, save_model, word_piece

TEXT = "the cat sat on the mat and the dog too. " * 20
NEW = ["catmat", "dogcat", "<|im_start|>"]
MODELS = [("llama", True), ("llama", False), ("bert", True), ("bert", False), ("t5", True), ("t5", False)]


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    inputs = {"input_ids": torch.tensor([ids])}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits[0]
    return found


@pytest.mark.parametrize(("kind", "tied"), MODELS)
def test_saved_rows_are_the_mean_of_the_pieces_and_other_logits_are_as_before(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    tokenizer = word_piece() if kind == "bert" else byte_level(TEXT)
    before = save_model(tmp_path / "before", kind, tokenizer, tie_word_embeddings=tied)
    assert main(["extend", str(before), "--tokens", *NEW, "--model", "--out", str(tmp_path / "after")]) == 0
    auto = getattr(transformers, AUTO.get(kind, "AutoModelForCausalLM"))
    old, new = (auto.from_pretrained(tmp_path / name) for name in ("before", "after"))
    theirs, ours = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("before", "after"))
    ids = theirs("the cat sat on the mat").input_ids
    assert ours("the cat sat on the mat").input_ids == ids
    assert torch.equal(logits(new, ids)[:, : len(theirs)], logits(old, ids)[:, : len(theirs)])
    for token in NEW:
        [number] = ours(token, add_special_tokens=False).input_ids
        pieces = theirs(token, add_special_tokens=False).input_ids
        for model in ("get_input_embeddings", "get_output_embeddings"):
            rows, from_rows = getattr(new, model)().weight, getattr(old, model)().weight
            torch.testing.assert_close(rows[number], from_rows[pieces].mean(0))
    head, kept = new.get_output_embeddings(), old.get_output_embeddings().weight is old.get_input_embeddings().weight
    assert (head.weight is new.get_input_embeddings().weight) == kept
    assert len(head.weight) == new.config.vocab_size == len(ours)


def test_a_bias_of_the_head_begins_as_the_mean_too(tmp_path: Path) -> None:
    model = open_trained(str(save_model(tmp_path / "m", "bert", word_piece()))).model
    bias: Any = model.get_output_embeddings()
    with torch.no_grad():
        bias.bias.copy_(torch.arange(len(bias.bias)))
    add_rows(model, {17: [3, 6]})
    bias = model.get_output_embeddings()
    assert bias.bias[17] == 4.5


def test_a_model_with_rows_to_spare_keeps_its_size(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", "llama", byte_level(TEXT))
    model = open_trained(str(folder)).model
    model.resize_token_embeddings(512)
    size = len(load(folder))
    add_rows(model, {size: [1, 2]})
    table: Any = model.get_input_embeddings()
    assert len(table.weight) == model.config.vocab_size == 512
    torch.testing.assert_close(table.weight[size], table.weight[[1, 2]].mean(0))


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    model = open_trained(str(save_model(tmp_path / "m", "llama", byte_level(TEXT)))).model
    with pytest.raises(UserError, match="an entry 999, but the model only 278 rows: it is another model's"):
        add_rows(model, {1000: [999]})


def test_new_tokens_are_found_whole_in_a_text() -> None:
    tokenizer = byte_level(TEXT)
    extended = with_tokens(tokenizer, ["kubectl", "kubectl", "the", "ทดสอบ"])
    assert extended.known == ["the"]
    ids = extended.tokenizer("a kubectl ทดสอบx").input_ids
    assert {*extended.pieces} <= {*ids}
    assert extended.tokenizer.decode(ids) == "a kubectl ทดสอบx"
    assert len(tokenizer) == 278  # the one given is as it was


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([" "], "empty or white space"),
        (["a"], "there is no new token: the tokenizer has all"),
        (["x\udcff"], r"--tokens 'x\\udcff': is no Unicode text"),
    ],
)
def test_tokens_that_cant_be_are_refused(tokens: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_tokens(byte_level(TEXT), tokens)


def test_a_token_that_the_tokenizer_takes_for_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"--tokens '\\u200b': this tokenizer takes it for no text at all"):
        with_tokens(Design("wordpiece", 99, "none", "bert").assembled(word_piece().backend_tokenizer.model), ["\u200b"])
