"""Tokenizers of one's own: the same bytes each time, every text given back, and of use to every objective."""

import functools
import string
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from sslm.config import DataConfig
from sslm.data.corpus.documents import open_source
from sslm.data.corpus.embedded import embedded_documents
from sslm.data.corpus.tokenizer import Tokenizer, TokenRules, load, text_encoder
from sslm.data.corpus.tokenizer_design import Design
from sslm.data.corpus.tokenizer_training import _words, beginning_of, train_tokenizer
from sslm.data.fertility import fertility
from sslm.data.module import DataModule
from sslm.data.stream.vocabulary import vocabulary_of
from sslm.objectives import load_objective
from sslm.system.errors import UserError
from tests.support.processes import run_command

ODD = [
    "emoji 🙂 and families 👩‍👩‍👧, e\u0301 with a mark\u0327\u0301",
    "nul \0 and \x1b[31m controls\x7f",
    "今天天气很好。 العربية المشكّلة  ภาษาไทย ไม่มีช่องว่าง",
    "  spaces\t tabs\r\n\r\n lines\u2028\u00a0\u3000",
    "▁ <0x41> ## Ġ Ċ <unk> <|endoftext|> </w> \ufffd \uffff",
    "1234567 ½ ² १२३",
    "x" * 100_000,
    "".join(map(chr, [*range(1, 0x300), 0x10FFFF, 0xE000])),
]
LOSSLESS = [
    Design("bpe", 600, "level", "gpt2"),
    Design("bpe", 600, "level", "gpt4"),
    Design("bpe", 600, "fallback", "digits"),
    Design("unigram", 600, "level", "digits"),
    Design("unigram", 600, "fallback", "gpt4"),
]
LOSSY = [
    Design("bpe", 600, "none", "gpt2"),
    Design("unigram", 600, "none", "gpt2", ("<|im_start|>",)),
    Design("wordpiece", 600, "none", "bert"),
]


def named(design: Design) -> str:
    return f"{design.kind}-{design.spelling}-{design.split}"


each_lossless = pytest.mark.parametrize("design", LOSSLESS, ids=named)
each = pytest.mark.parametrize("design", [*LOSSLESS, *LOSSY], ids=named)


@functools.cache
def trained(design: Design, num: int = 20) -> Tokenizer:
    return train_tokenizer(beginning_of(islice(embedded_documents(), num)), design)


@each_lossless
def test_every_text_is_given_back(design: Design) -> None:
    tokenizer = trained(design)
    encode = text_encoder(tokenizer, TokenRules())
    assert [tokenizer.decode(ids) for ids in encode(ODD)] == ODD


def test_trained_anew_each_is_the_same_whatever_the_number_of_threads() -> None:
    designs = [LOSSLESS[2], LOSSLESS[4], LOSSY[2]]
    code = f"""
from hashlib import sha256
from itertools import islice
from sslm.data.corpus.embedded import embedded_documents
from sslm.data.corpus.tokenizer_design import Design
from sslm.data.corpus.tokenizer_training import beginning_of, train_tokenizer
for design in {designs}:
    tokenizer = train_tokenizer(beginning_of(islice(embedded_documents(), 20)), design)
    print(sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest())
"""
    elsewhere = run_command(["-c", code], env={"TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "1"}).stdout.split()
    here = [sha256(trained(design).backend_tokenizer.to_str().encode()).hexdigest() for design in designs]
    assert elsewhere == here


@each
def test_it_has_the_entries_asked_for_special_tokens_first(design: Design) -> None:
    tokenizer = trained(design)
    first = [*design.usual_tokens, *design.special_tokens]
    assert len(tokenizer) == 600
    assert tokenizer.convert_ids_to_tokens(range(len(first))) == first
    assert {*first} <= {*tokenizer.all_special_tokens, *(t.content for t in tokenizer.added_tokens_decoder.values())}


@pytest.mark.parametrize("design", [LOSSLESS[0], LOSSLESS[4], LOSSY[2]], ids=named)
@pytest.mark.parametrize("objective", ["causal_lm", "masked_lm", "span_corruption"])
def test_objectives_take_it(design: Design, objective: str, text: Path, tmp_path: Path) -> None:
    trained(design).save_pretrained(tmp_path / "tokenizer")
    data = DataModule(
        DataConfig(train=str(text), tokenizer=str(tmp_path / "tokenizer"), cache_dir=str(tmp_path), val_sequences=4),
        load_objective(objective).recipe_class(),
        seq_len=32,
        batch_size=4,
    )
    data.setup()
    assert data.tokenizer is not None
    batch = data.train_dataloader().steps[0]["tensors"]
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    whole = "".join(text.read_text().split())
    if objective == "span_corruption":
        assert data.vocabulary is not None
        assert {*data.vocabulary.sentinels.tolist()} <= {*ids.tolist(), *labels.tolist()}
        ids = labels[1:3]  # of the first span
    elif objective == "masked_lm":
        assert data.tokenizer.mask_token_id in ids
        ids = np.where(labels >= 0, labels, ids)
    assert "".join(data.tokenizer.decode(ids, skip_special_tokens=True).removeprefix("##").split()) in whole


def test_words_are_told_apart_by_byte_fallback_as_by_bytes() -> None:
    sentence = "The cat, which sat: 42 times!"
    words = []
    for design in (LOSSLESS[0], Design("bpe", 600, "fallback", "gpt2")):
        tokenizer = trained(design)
        ids = np.array([tokenizer(sentence, add_special_tokens=False).input_ids])
        [starts] = vocabulary_of(tokenizer).word_starts(ids)
        words.append([tokenizer.decode(part) for part in np.split(ids[0], np.flatnonzero(starts)[1:])])
    assert words[0] == words[1] == ["The", " cat", ",", " which", " sat", ":", " 42", " times", "!"]


def test_digits_stand_alone_and_gpt_4_takes_three() -> None:
    for design, parts in ((LOSSLESS[2], [*"2024"]), (LOSSLESS[1], ["202", "4"])):
        found = design.pre_tokenizer.pre_tokenize_str("in 2024")
        assert "".join(part for part, _ in found[-len(parts) :]) == "2024"
        assert [part for part, _ in found[-len(parts) :]] == parts


def test_rare_characters_leave_room_to_frequent_pieces() -> None:
    """Of 50 characters that come once each, none is an entry; a and b are."""
    rare = "".join(map(chr, range(0x4E00, 0x4E00 + 50)))
    tokenizer = train_tokenizer([("abba " * 20 + "\n") * 2000, rare], Design("bpe", 300, "fallback", "gpt2"))
    vocabulary = tokenizer.get_vocab()
    assert {"a", "b", " abba"} <= {*vocabulary}
    assert not {*rare} & {*vocabulary}
    assert tokenizer.decode(tokenizer(rare[:5]).input_ids) == rare[:5]


def test_words_that_are_held_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslm.data.corpus.tokenizer_training.MOST_WORDS", 50)
    many = (" ".join(["often", *(a + b + c for c in string.ascii_lowercase)]) for a in "abcd" for b in "abcdefgh")
    words = _words(many, LOSSLESS[2])
    assert len(words) <= 50
    assert words["often"] == 32 or words[" often"] == 32


def test_unigram_is_as_good_as_the_librarys(text: Path) -> None:
    """Which no two times is the same; fewer tokens are better."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, trainers

    design, whole = Design("unigram", 1000, "none", "gpt2"), text.read_text()
    texts, other = [whole[: len(whole) // 2]], whole[len(whole) // 2 :]
    theirs = Backend(models.Unigram())
    theirs.pre_tokenizer = design.pre_tokenizer
    theirs.train_from_iterator(
        texts,
        trainers.UnigramTrainer(vocab_size=1000, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
    )
    ours = train_tokenizer(texts, design).backend_tokenizer
    assert len(ours.encode(other).ids) < 1.02 * len(theirs.encode(other).ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "wordpiece"}, r"--bytes level: WordPiece has \[UNK\]"),
        ({"kind": "wordpiece", "spelling": "none"}, "--pre_tokenizer gpt2: with --kind wordpiece give bert or digits"),
        ({"split": "bert"}, "--pre_tokenizer bert: with --kind bpe give gpt2, gpt4 or digits"),
        ({"special_tokens": ("a", "a")}, "--special_tokens 'a': expected names"),
        ({"special_tokens": ("<|endoftext|>",)}, "--special_tokens '<|endoftext|>': expected names"),
        ({"size": 256}, "--size 256: 257 of them are special tokens and bytes; give at least 257"),
    ],
)
def test_what_there_is_not_is_refused(change: dict[str, str], message: str) -> None:
    whole: dict[str, object] = {"kind": "bpe", "size": 600, "spelling": "level", "split": "gpt2", **change}
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        Design(**whole)  # type: ignore[arg-type]


def test_a_text_of_too_many_characters_or_none_is_refused() -> None:
    with pytest.raises(UserError, match="characters of this text alone take 283; give 283 at least, or --bytes level"):
        train_tokenizer([string.ascii_lowercase], Design("bpe", 270, "fallback", "gpt2"))
    with pytest.raises(UserError, match="there is no text to train a tokenizer on"):
        train_tokenizer([], Design("unigram", 500, "fallback", "gpt2"))


def test_fertility_is_what_a_count_by_hand_gives(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc 今日\nabc d")
    tokenizer = train_tokenizer(["abc abc d"] * 50, Design("bpe", 290, "fallback", "gpt2"))
    found = fertility(open_source(str(tmp_path / "a.txt"), "text", None).pieces(), tokenizer, 1000)
    # abc, the space, 6 bytes of 今日, the line's end, abc, " d"
    assert (found.num_words, found.num_chars, found.num_bytes) == (4, 12, 16)
    assert (found.num_tokens, found.num_in_bytes, found.num_unknown) == (11, 7, 0)
    assert found.tokens_per_word == 11 / 4
    assert found.bytes_per_token == 16 / 11


def test_fertility_knows_unknown_tokens_and_scripts_without_spaces() -> None:
    tokenizer = trained(LOSSY[2])
    found = fertility([("今日は日本", True)], tokenizer, 1000)
    assert found.unknown_share == 1
    assert found.tokens_per_word is None
    assert fertility([("the text", True)], trained(LOSSLESS[0]), 1000).in_bytes_share == 0


def test_a_saved_tokenizer_is_the_trained_one(tmp_path: Path) -> None:
    for number, design in enumerate((LOSSLESS[3], LOSSLESS[4], LOSSY[2])):
        tokenizer = trained(design)
        tokenizer.save_pretrained(tmp_path / str(number))
        again = load(tmp_path / str(number))
        assert again(ODD[:4]).input_ids == tokenizer(ODD[:4]).input_ids
        assert again.special_tokens_map == tokenizer.special_tokens_map
