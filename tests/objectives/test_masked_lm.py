"""BERT's objective: exact shares, units that are never cut, noise that depends on (seed, epoch, position) alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sslm.data.stream.noise import uniform, words, words_at
from sslm.data.stream.recipe import IGNORED, Examples
from sslm.data.stream.vocabulary import SpecialTokens, extended, vocabulary_of
from sslm.objectives.masked_lm import GEOMETRIC, MaskedLMRecipe
from sslm.system.errors import UserError
from tests.support.vocabularies import bare

UNITS = ("token", "word", "ngram", "span")


def examples(tokens: np.ndarray, first: int = 0, epoch: int = 0, **more: np.ndarray) -> Examples:
    n = len(tokens)
    return Examples(tokens, np.arange(first, first + n), np.full(n, epoch), np.zeros(n, np.int64), **more)


def some(n: int, length: int, seed: int = 0, low: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, 200, (n, length))


def test_the_docstrings_example() -> None:
    recipe, tokens = MaskedLMRecipe(ratio=0.4), np.array([[7, 9, 5, 8, 6]])
    assert recipe.window_len(7, bare()) == 5
    batches = [recipe.make_batch(examples(tokens, position), bare(), 0) for position in range(200)]
    found = next(
        batch
        for batch in batches
        if batch["labels"].tolist() == [[-100, -100, 9, -100, -100, 6, -100]]
        and batch["input_ids"][0, 2] == 4
        and batch["input_ids"][0, 5] == 6
    )
    assert found["input_ids"].tolist() == [[2, 7, 4, 5, 8, 6, 3]]


@pytest.mark.parametrize("unit", UNITS)
def test_inputs_and_labels_give_the_text_back_and_the_count_is_exact(unit: str) -> None:
    recipe, tokens = MaskedLMRecipe(unit=unit), some(64, 126)
    tokens[:, 50] = 1  # a document ends
    batch = recipe.make_batch(examples(tokens), bare(), 0)
    inputs, labels = batch["input_ids"][:, 1:-1], batch["labels"][:, 1:-1]
    assert np.array_equal(np.where(labels == IGNORED, inputs, labels), tokens)
    counts = (labels != IGNORED).sum(axis=1)
    assert counts.max() == recipe.max_scored(128, bare()) == 19
    if unit != "word":
        assert (counts == 19).all()
    assert (counts >= 17).all()
    assert (batch["input_ids"][:, [0, -1]] == [2, 3]).all()
    assert (batch["labels"][:, [0, -1]] == IGNORED).all()
    assert (inputs[:, 50] == 1).all()
    assert (labels[:, 50] == IGNORED).all()


@pytest.mark.parametrize("unit", UNITS)
def test_eight_in_ten_become_the_mask_one_another_token_one_stays(unit: str) -> None:
    tokens = some(2000, 128)
    batch = MaskedLMRecipe(unit=unit).make_batch(examples(tokens), bare(prefix=(), suffix=()), 0)
    scored = batch["labels"] != IGNORED
    inputs, originals = batch["input_ids"][scored], tokens[scored]
    n, random = scored.sum(), inputs[(inputs != 4) & (inputs != originals)]
    assert (inputs == 4).sum() / n == pytest.approx(0.8, abs=0.02 if unit == "span" else 0.006)
    assert len(random) / n == pytest.approx(0.1 * 194 / 195, abs=0.015 if unit == "span" else 0.005)
    assert random.min() >= 5
    expected = len(random) / 195
    assert ((np.bincount(random, minlength=200)[5:] - expected) ** 2 / expected).sum() < 195 + 5 * np.sqrt(2 * 195)


def test_every_token_is_chosen_as_often_as_any_other() -> None:
    batch = MaskedLMRecipe().make_batch(examples(some(20000, 20)), bare(prefix=(), suffix=()), 0)
    counts, expected = (batch["labels"] != IGNORED).sum(axis=0), 20000 * 3 / 20
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("unit", ["word", "ngram"])
def test_words_are_chosen_whole(unit: str) -> None:
    tokens = some(500, 128, seed=1)
    batch = MaskedLMRecipe(unit=unit).make_batch(examples(tokens), bare(prefix=(), suffix=()), 0)
    scored = batch["labels"] != IGNORED
    inside = tokens[:, 1:] >= 100
    cut = (inside & (scored[:, 1:] != scored[:, :-1])).sum(axis=1)
    assert cut.max() <= (0 if unit == "word" else 1)  # the last run of words is cut where the count is reached


@pytest.mark.parametrize(("unit", "lengths"), [("ngram", 3), ("span", 10)])
def test_lengths_of_runs_follow_the_papers(unit: str, lengths: int) -> None:
    recipe, vocabulary = MaskedLMRecipe(unit=unit), bare(prefix=(), suffix=())
    tokens = some(400, 512) % 95 + 5  # every token a word
    units = recipe._units(examples(tokens), vocabulary, 0)
    found = Counter(n for row in units for n in np.bincount(row)[:-1].tolist())  # the last is cut by the row's end
    n = np.arange(1, lengths + 1)
    share = 1 / n if unit == "ngram" else (1 - GEOMETRIC) ** (n - 1)
    expected = share / share.sum() * found.total()
    got = np.array([found[int(k)] for k in n])
    assert set(found) == set(n.tolist())
    assert np.abs(got - expected).max() < 6 * np.sqrt(expected.max())
    if unit == "span":
        assert (got * n).sum() / got.sum() == pytest.approx(3.8, abs=0.05)  # SpanBERT, section 3.1


def test_a_span_is_replaced_alike_and_never_goes_across_a_documents_end() -> None:
    tokens = some(300, 128) % 95 + 5
    tokens[:, 40] = 1
    recipe, vocabulary = MaskedLMRecipe(unit="span"), bare(prefix=(), suffix=())
    units = recipe._units(examples(tokens), vocabulary, 0)
    assert (units[:, 40] != units[:, 39]).all()
    assert (units[:, 40] != units[:, 41]).all()
    batch = recipe.make_batch(examples(tokens), vocabulary, 0)
    scored, masked = batch["labels"] != IGNORED, batch["input_ids"] == 4
    both = scored[:, 1:] & scored[:, :-1] & (units[:, 1:] == units[:, :-1])
    assert (masked[:, 1:] == masked[:, :-1])[both].all()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), unit=st.sampled_from(UNITS), ratio=st.floats(0.01, 0.99))
def test_rows_of_any_length_depend_on_nothing_but_themselves(data: st.DataObject, unit: str, ratio: float) -> None:
    length = data.draw(st.integers(2, 40))
    n = data.draw(st.integers(1, 6))
    tokens = some(n, length, data.draw(st.integers(0, 99)), low=0)
    lengths = np.array(data.draw(st.lists(st.integers(0, length), min_size=n, max_size=n)))
    recipe, vocabulary = MaskedLMRecipe(ratio=ratio, unit=unit), bare()
    all_rows = examples(tokens, lengths=lengths)
    batch = recipe.make_batch(all_rows, vocabulary, 7)
    for row in range(n):
        alone = recipe.make_batch(all_rows.rows(slice(row, row + 1)), vocabulary, 7)
        assert all(np.array_equal(alone[name][0], batch[name][row]) for name in batch)
        end, special = lengths[row], vocabulary.special[tokens[row]]
        inputs, labels = batch["input_ids"][row], batch["labels"][row]
        assert batch["attention_mask"][row].tolist() == [1] * (end + 2) + [0] * (length - end)
        assert inputs[0] == 2
        assert inputs[1 + end] == 3
        assert (inputs[2 + end :] == 0).all()
        restored = np.where(labels == IGNORED, inputs, labels)[1 : 1 + end]
        assert np.array_equal(restored, tokens[row, :end])
        assert (labels[1 : 1 + end][special[:end]] == IGNORED).all()
        assert (labels[1 + end :] == IGNORED).all()
        assert (labels != IGNORED).sum() <= recipe.max_scored(length + 2, vocabulary)


def test_another_epoch_or_seed_gives_another_corruption_and_the_same_gives_the_same() -> None:
    tokens, recipe = some(8, 128), MaskedLMRecipe()
    labels = [
        recipe.make_batch(examples(tokens, 3, epoch), bare(), seed)["labels"].tolist()
        for epoch, seed in ((0, 0), (1, 0), (0, 1), (0, 0))
    ]
    assert labels[0] == labels[3]
    assert labels[0] != labels[1]
    assert labels[0] != labels[2]


def test_documents_reach_the_batch() -> None:
    tokens, documents = np.array([[7, 8, 1, 9, 6, 5]]), np.array([[0, 0, 0, 1, 1, -1]], np.int32)
    given = examples(tokens, lengths=np.array([5]), documents=documents)
    batch = MaskedLMRecipe().make_batch(given, bare(), 0)
    assert batch["segment_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, -1]]
    assert "attention_mask" not in batch


def test_noise_at_some_places_is_the_same_as_everywhere() -> None:
    given = examples(some(3, 9), 5)
    everywhere = words(given, 9, 1, "a")
    assert words_at(given, np.array([0, 2]), np.array([8, 3]), 1, "a").tolist() == [everywhere[0, 8], everywhere[2, 3]]
    assert not (everywhere == words(given, 9, 1, "b")).any()
    means = uniform(examples(some(2000, 2)), 50, 0, "c").mean(axis=0)
    assert np.abs(means - 0.5).max() < 5 / np.sqrt(12 * 2000)


@pytest.mark.parametrize(
    "wrong", [{"ratio": 0.0}, {"ratio": 1.0}, {"unit": "letter"}, {"masked": 0.9, "random": 0.2}, {"random": -0.1}]
)
def test_wrong_settings_get_a_sentence(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"--objective.{next(iter(wrong))} .*expected"):
        MaskedLMRecipe(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--seq_len 3: masked_lm needs room for two tokens"):
        MaskedLMRecipe().window_len(3, bare())


# --------------------------------------------------------------------------------------------- words of real tokenizers

TEXT = (
    "Don't panic: 42 unbelievable words,\nsome at a line's begin!\n\n  And  spaces… déjà vu 東京 can't 3.14 x_y\n\tend."
)


def trained(kind: str) -> PreTrainedTokenizerFast:
    special = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    corpus = [TEXT, "the quick brown fox jumps over the lazy dog. " * 3]
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special)
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="[UNK]")
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]", pad_token="[PAD]")


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bytes"])
def test_words_begin_where_the_tokenizer_says(kind: str) -> None:
    tokenizer = extended(trained(kind), SpecialTokens(mask=True))
    vocabulary = vocabulary_of(tokenizer)
    encoding = tokenizer(TEXT, add_special_tokens=False)
    ids, of_word = np.array(encoding.input_ids), np.array(encoding.word_ids())
    starts = vocabulary.word_starts(ids[None])[0]
    expected = np.concatenate([[True], of_word[1:] != of_word[:-1]])
    if kind == "wordpiece":  # BERT's splitter takes punctuation off a word without a mark in the ids
        expected = np.array([not token.startswith("##") for token in tokenizer.convert_ids_to_tokens(ids)])
    in_bytes = (
        np.array(tokenizer.convert_ids_to_tokens(ids)) == "â"
    )  # of "…", three bytes: none of them says what it is
    wrong = np.flatnonzero((starts != expected) & ~in_bytes)
    assert not len(wrong), [tokenizer.convert_ids_to_tokens(ids[max(0, n - 1) : n + 2].tolist()) for n in wrong]
    assert tokenizer.mask_token_id not in vocabulary.ordinary


def test_what_a_tokenizer_lacks_is_added_to_a_copy_and_taken_ids_are_refused() -> None:
    plain = trained("bytes")
    assert plain.mask_token_id is None
    more = extended(plain, SpecialTokens(mask=True, pad=True, sentinels=3))
    assert len(more) == len(plain) + 4
    assert plain.mask_token_id is None
    assert more.convert_ids_to_tokens([more.mask_token_id, *vocabulary_of(more).sentinels.tolist()]) == [
        "<mask>",
        "<extra_id_0>",
        "<extra_id_1>",
        "<extra_id_2>",
    ]
    assert vocabulary_of(more).special[len(plain) :].all()
    assert len(extended(more, SpecialTokens(mask=True, sentinels=2))) == len(more)
    gaps = Tokenizer(models.WordLevel({"a": 0, "b": 3, "[SEP]": 1}, unk_token="a"))
    with pytest.raises(UserError, match="ids have gaps"):  # the mask would get b's id
        extended(PreTrainedTokenizerFast(tokenizer_object=gaps, eos_token="[SEP]"), SpecialTokens(mask=True))


@pytest.mark.parametrize("kind", ["words", "suffix"])
def test_words_of_simpler_tokenizers(kind: str) -> None:
    if kind == "words":
        tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "[SEP]": 1, "the": 2, "dog": 3}, unk_token="[UNK]"))
    else:
        vocabulary = {"[UNK]": 0, "[SEP]": 1, "t": 2, "he</w>": 3, "dog</w>": 4}
        tokenizer = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>", unk_token="[UNK]"))
    tables = vocabulary_of(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]", unk_token="[UNK]"))
    starts = tables.word_starts(np.array([[2, 3, 2, 3]])).tolist()
    assert starts == ([[True] * 4] if kind == "words" else [[True, False, True, False]])


def test_special_tokens_without_a_name_are_no_text() -> None:
    tokenizer = trained("wordpiece")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|reserved|>"]}, replace_extra_special_tokens=False)
    tokenizer.add_tokens(["<plain>"])
    tables = vocabulary_of(tokenizer)
    assert tables.special[tokenizer.convert_tokens_to_ids("<|reserved|>")]
    assert tables.special[tokenizer.convert_tokens_to_ids("[MASK]")]
    assert not tables.special[tokenizer.convert_tokens_to_ids("<plain>")]
