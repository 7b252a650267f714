"""The DataModule: what a held-out token is worth in bytes, and text in which there is nothing to learn."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from sslm.config import DataConfig
from sslm.data.corpus.tokenizer_training import train_bpe
from sslm.data.module import DataModule
from sslm.data.stream.recipe import Recipe
from sslm.data.stream.vocabulary import vocabulary_of
from sslm.objectives.causal_lm import CausalLMRecipe
from sslm.objectives.masked_lm import MaskedLMRecipe
from sslm.system.errors import UserError
from tests.support.runs import TrainTiny, rows_of

CHARACTERS = "天地玄黄宇宙洪荒日月盈昃辰宿列张"
CHINESE = "".join(CHARACTERS[n * n % 31 % 16] + "，。"[n % 2] * (n % 5 == 0) for n in range(4000))
ENGLISH = "".join(f"Ünder the {'ROSE' if n % 3 else 'ink-pot'},  number {n}\n" for n in range(800))


def byte_level() -> PreTrainedTokenizerFast:
    return train_bpe([(CHINESE + ENGLISH, True)], 300)  # most Chinese characters are three tokens


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's kind: lower case, no accents, no white space; here many words are unknown."""
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]", "[SEP]", "[MASK]"], limit_alphabet=24)
    backend.train_from_iterator([ENGLISH], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", sep_token="[SEP]", mask_token="[MASK]")


def byte_fallback() -> PreTrainedTokenizerFast:
    """Llama 2's kind: ▁ for a space, and a token for each byte of an unknown character."""
    tokens = ["<unk>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", *"abcdefghijklmnopqrstuvwxyz天地"]
    backend = Backend(models.BPE({t: n for n, t in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def module_of(tmp_path: Path, recipe: Recipe, **data: Any) -> DataModule:
    module = DataModule(DataConfig(cache_dir=str(tmp_path / "cache"), **data), recipe, seq_len=16, batch_size=2)
    module.setup()
    return module


@pytest.mark.parametrize("make", [byte_level, wordpiece, byte_fallback])
@pytest.mark.parametrize("text", [CHINESE, ENGLISH + CHINESE[:500]], ids=["Chinese", "English and Chinese"])
def test_scored_tokens_stand_for_the_bytes_of_the_text(tmp_path: Path, make: Any, text: str) -> None:
    make().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "a.txt").write_text(text)
    file, tokenizer = str(tmp_path / "a.txt"), str(tmp_path / "tokenizer")
    module = module_of(tmp_path, CausalLMRecipe(), train=file, val=file, tokenizer=tokenizer, val_sequences=10**6)
    [source] = module.held_out.stream.sources
    scored, all_tokens = int(module.held_out.counts.sum()), source.corpus.num_tokens
    assert all_tokens - 17 <= scored < all_tokens  # but the first, and what fills no window
    assert module.held_out.bytes_per_target is not None
    said = module.held_out.bytes_per_target * scored
    assert said == pytest.approx(len(text.encode()), abs=17 * 6)  # so many bytes those may have
    if make is byte_level:  # exact in any window, too
        tokens = np.concatenate([source.corpus.tokens(shard) for shard in source.corpus.shards])[1 : scored + 1]
        letters = module.tokenizer.convert_ids_to_tokens(tokens)  # type: ignore[union-attr]
        assert said == pytest.approx(sum(len(letter) for letter in letters if letter != "<|endoftext|>"))


def test_bits_per_byte_are_of_these_bytes(train_tiny: TrainTiny, tmp_path: Path) -> None:
    assert train_tiny(tmp_path / "r", "--max_steps", "1") == 0
    [row] = [row for row in rows_of(tmp_path / "r") if row.get("step") == 1 and "val/loss" in row]
    nats_per_byte = row["val/bits_per_byte"] * math.log(2)
    assert 1.5 < row["val/loss"] / nats_per_byte < 4  # bytes a token


@pytest.mark.parametrize("which", ["held-out", "first training"])
def test_documents_of_one_token_are_refused_if_they_are_kept_apart(tmp_path: Path, which: str) -> None:
    one, many = [[7]] * 2000, [[7, 8, 9]] * 2000
    for name, rows in (("train", one if which == "first training" else many), ("val", one)):
        pyarrow.parquet.write_table(pyarrow.table({"input_ids": rows}), tmp_path / f"{name}.parquet")
    train = {"train": str(tmp_path / "train.parquet"), "document_mask": True}
    val = {"val": str(tmp_path / "val.parquet")} if which == "held-out" else {"val": str(tmp_path / "many.parquet")}
    pyarrow.parquet.write_table(pyarrow.table({"input_ids": many}), tmp_path / "many.parquet")
    with pytest.raises(UserError, match=f"finds nothing to predict in the {which} sequences"):
        module_of(tmp_path, CausalLMRecipe(), **train, **val)


def test_words_that_nothing_divides_are_refused_or_told_of(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(CHINESE.replace("，", "").replace("。", ""))
    text = {"train": str(tmp_path / "a.txt"), "tokenizer": "bpe:300"}
    with pytest.raises(UserError, match=r"longer than what it may hide .* --objective\.unit token"):
        module_of(tmp_path, MaskedLMRecipe(unit="word"), **text)
    assert module_of(tmp_path, MaskedLMRecipe(unit="span"), **text).held_out.unspaced_share > 0.8
    (tmp_path / "a.txt").write_text(ENGLISH)
    assert module_of(tmp_path, MaskedLMRecipe(unit="word"), **text).held_out.unspaced_share == 0


def test_batch_without_targets_is_on_record(train_tiny: TrainTiny, tmp_path: Path) -> None:
    rows = [[7, 8, 9] * 4, *[[7]] * 80] * 60  # every seventh batch or so has documents of one token alone
    for name, some in (("a", rows), ("val", [[7, 8, 9] * 4] * 60)):
        pyarrow.parquet.write_table(pyarrow.table({"input_ids": some}), tmp_path / f"{name}.parquet")
    flags = ["--data.document_mask", "true", "--batch_size", "1", "--seq_len", "8", "--max_steps", "60"]
    ids = ["--data.train", str(tmp_path / "a.parquet"), "--data.val", str(tmp_path / "val.parquet")]
    assert train_tiny(tmp_path / "r", *flags, *ids, "--data.tokenizer", "null", "--log_every", "7") == 0
    without = [row for row in rows_of(tmp_path / "r") if row.get("without_targets")]
    assert without
    assert all(math.isfinite(row.get("train/loss", 0)) for row in without), json.dumps(without)


def test_sentences_end_in_other_scripts_too() -> None:
    marks = "。！？｡؟।…"
    tokenizer = train_bpe([(f"a{mark} " * 50, True) for mark in marks], 300)
    known = vocabulary_of(tokenizer).ends_sentence
    assert all(known[tokenizer(mark).input_ids[-1]] for mark in marks)
    assert not known[tokenizer("a").input_ids[-1]]
