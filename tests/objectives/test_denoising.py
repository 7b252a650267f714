"""Denoising: the five noises each for itself, infilling against fairseq's by loops, and what none of them may do."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sslm.data.stream.recipe import IGNORED, Arrays, Examples
from sslm.data.stream.vocabulary import SpecialTokens, Vocabulary, extended, vocabulary_of
from sslm.objectives.denoising import DenoisingRecipe
from sslm.system.errors import UserError

Row = list[int]

BEGIN, PAD, END, MASK, SIZE = 0, 1, 2, 4, 4000
FIRST = 10
"""The first id of text: those below are the vocabulary's own."""
STOP_EVERY, CONTINUES_EVERY = 7, 3
"""Ids that end a sentence, and that go on with a word: multiples of these."""

IDS = np.arange(SIZE)
IS_END = np.isin(IDS, END)
VOCABULARY = Vocabulary(
    end=END,
    prefix=np.array([BEGIN]),
    suffix=np.array([END]),
    mask=MASK,
    pad=PAD,
    sentinels=np.array([], np.int64),
    special=IDS < FIRST,
    begins_word=IDS % CONTINUES_EVERY != 0,
    first_kind=np.zeros(SIZE, np.uint8),
    last_kind=np.zeros(SIZE, np.uint8),
    ends_sentence=(IDS % STOP_EVERY == 0) & (IDS >= FIRST),
)
SINGLE = replace(VOCABULARY, begins_word=np.ones(SIZE, bool), ends_sentence=np.zeros(SIZE, bool))
"""Every token is a word, and there are no sentences."""

CLEAN = DenoisingRecipe(infill=0, permute_sentences=0)
INFILLING = DenoisingRecipe(permute_sentences=0)
PERMUTING = DenoisingRecipe(infill=0)
EVERYTHING = DenoisingRecipe(0.3, 2, 0.6, token_mask=0.1, token_delete=0.1, rotate=0.5)

shares = st.floats(0, 1 / 3)
recipes = st.builds(
    DenoisingRecipe,
    infill=shares,
    token_mask=shares,
    token_delete=shares,
    permute_sentences=st.floats(0, 1),
    rotate=st.sampled_from([0.0, 0.5, 1.0]),
    poisson_lambda=st.floats(0.05, 8),
)


def examples_of(
    tokens: NDArray[np.int64],
    lengths: NDArray[np.int64] | None = None,
    documents: NDArray[np.int32] | None = None,
    epoch: int = 0,
    first: int = 0,
) -> Examples:
    n = len(tokens)
    return Examples(tokens, first + np.arange(n), np.full(n, epoch), np.zeros(n, np.int64), lengths, documents)


def a_text(
    n: int, length: int, lengths: NDArray[np.int64] | None = None, ends: float = 0.1, apart: bool = False, **others: int
) -> Examples:
    """Rows of text, in each of which no token comes twice but the ends of documents, which may be kept apart."""
    rng = np.random.default_rng(n + length)
    tokens = np.array([rng.permutation(IDS[FIRST:])[:length] for _ in range(n)])
    is_end = rng.random((n, length)) < ends
    tokens[is_end] = END
    documents = None
    if apart:  # with a border now and then that no end tells, as where pieces of documents are packed
        borders = is_end | (rng.random((n, length)) < ends / 2)
        documents = np.cumsum(borders, axis=1, dtype=np.int32) - borders
    if lengths is not None:
        tokens[np.arange(length) >= lengths[:, None]] = 0
        if documents is not None:
            documents[np.arange(length) >= lengths[:, None]] = -1
    return examples_of(tokens, lengths, documents, **others)


def pairs(batch: Arrays) -> Iterator[tuple[Row, Row]]:
    """Each row's input and its text, without what stands around them."""
    real = batch["attention_mask"] == 1 if "attention_mask" in batch else batch["segment_ids"] >= 0
    for inputs, mask, labels in zip(batch["input_ids"], real, batch["labels"], strict=True):
        noised, text = inputs[mask].tolist(), labels[labels != IGNORED].tolist()
        assert [noised[0], noised[-1], text[0], text[-1]] == [BEGIN, END, BEGIN, END]
        yield noised[1:-1], text[1:-1]


def noised(
    recipe: DenoisingRecipe, examples: Examples, vocabulary: Vocabulary = VOCABULARY, seed: int = 0
) -> list[Row]:
    """Each row's input, where its labels are its text."""
    rows = []
    lengths = examples.lengths if examples.lengths is not None else [examples.tokens.shape[1]] * len(examples.tokens)
    found = pairs(recipe.make_batch(examples, vocabulary, seed))
    for (row, text), tokens, length in zip(found, examples.tokens, lengths, strict=True):
        assert text == tokens[:length].tolist()
        rows.append(row)
    return rows


def split_after(row: Row, ends: NDArray[np.bool_]) -> list[Row]:
    """Its pieces, each of which ends with a token that `ends` tells."""
    pieces: list[Row] = [[]]
    for token in row:
        pieces[-1].append(token)
        if ends[token]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def split_before(row: Row, begins: NDArray[np.bool_]) -> list[Row]:
    return [piece[::-1] for piece in split_after(row[::-1], begins)][::-1]


def words_of(row: Row, vocabulary: Vocabulary = VOCABULARY) -> list[Row]:
    """A word begins at the row's beginning and after a special token too."""
    pieces = (split_before(piece, vocabulary.special) for piece in split_after(row, vocabulary.special))
    return [word for piece in itertools.chain(*pieces) for word in split_before(piece, vocabulary.begins_word)]


def holes_of(row: Row, text: Row) -> list[tuple[Row, int]]:
    """Before, between and after the tokens that infilling left: what is missing there, and how many masks there are."""
    holes: list[tuple[Row, int]] = []
    rest = iter(text)
    masks = 0
    for token in [*row, None]:
        if token == MASK:
            masks += 1
        else:
            holes.append((list(itertools.takewhile(lambda other, kept=token: other != kept, rest)), masks))  # type: ignore[misc]
            masks = 0
    return holes


def published_infilling(words: list[Row], ratio: float, mean: float, rng: random.Random) -> Row:
    """fairseq's `add_whole_word_mask` by loops, for spans that are Poisson and become one mask."""

    def poisson() -> int:
        k, product = 0, rng.random()
        while product > math.exp(-mean):
            k, product = k + 1, product * rng.random()
        return k

    budget = math.ceil(len(words) * ratio)
    lengths: list[int] = []
    while sum(lengths) < budget:
        lengths.append(min(poisson(), budget - sum(lengths)))
    spans = [length for length in lengths if length]
    starts = rng.sample(range(len(words)), len(spans))
    pieces = [[MASK] if n in starts else word for n, word in enumerate(words)]
    for start, length in zip(starts, spans, strict=True):
        for n in range(start + 1, min(start + length, len(words))):
            pieces[n] = []
    result = list(itertools.chain(*pieces))
    num_inserted = len(lengths) - len(spans)
    places = rng.sample(range(len(result) + num_inserted), num_inserted)
    for place in sorted(places):
        result.insert(place, MASK)
    return result


def chi_square(one: Counter[Any], other: Counter[Any]) -> float:
    """By how many standard deviations two samples lie further apart than samples of one distribution do.

    Cells with few are one.
    """
    common = [name for name, count in (one + other).items() if count >= 20]
    a, b = (
        np.array([*(c[name] for name in common), c.total() - sum(c[name] for name in common)]) for c in (one, other)
    )
    a, b = a[a + b > 0], b[a + b > 0]
    scale = (b.sum() / a.sum()) ** 0.5
    freedom = len(a) - 1
    return float((((a * scale - b / scale) ** 2 / (a + b)).sum() - freedom) / (2 * freedom) ** 0.5)


# ---------------------------------------------------------------------------------------------- the example, the layout


def test_the_docstrings_example() -> None:
    is_in = np.isin(IDS, [13, 16, 20])
    vocabulary = replace(VOCABULARY, ends_sentence=is_in, begins_word=~np.isin(IDS, [15, 20, 22]))
    recipe = DenoisingRecipe()
    assert recipe.window_len(14, vocabulary) == recipe.stride(14, vocabulary) == 12
    batch = recipe.make_batch(examples_of(np.arange(11, 23)[None], first=171), vocabulary, 0)
    assert batch["input_ids"].tolist() == [[0, 17, 4, 18, 19, 20, 11, 4, 13, 14, 15, 4, 2, 1]]
    assert batch["labels"].tolist() == [[0, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 2]]
    assert batch["attention_mask"].tolist() == [[1] * 13 + [0]]
    assert batch.keys() == {"input_ids", "labels", "attention_mask"}
    assert recipe.max_scored(14, vocabulary) is None


def test_settings_are_those_of_barts_large_models() -> None:
    assert DenoisingRecipe() == DenoisingRecipe(
        infill=0.3, poisson_lambda=3, permute_sentences=1, token_mask=0, token_delete=0, rotate=0
    )
    assert DenoisingRecipe().special_tokens(512) == SpecialTokens(mask=True, pad=True)


def test_what_a_decoder_writes_has_an_end_though_the_tokenizer_puts_none() -> None:
    bare = replace(VOCABULARY, prefix=np.array([], np.int64), suffix=np.array([], np.int64))
    assert CLEAN.window_len(14, bare) == 13
    batch = CLEAN.make_batch(examples_of(np.arange(11, 24)[None]), bare, 0)
    assert batch["input_ids"].tolist() == batch["labels"].tolist() == [[*range(11, 24), END]]


def test_without_noise_the_input_is_the_text() -> None:
    for examples in (a_text(3, 40), a_text(3, 40, np.array([0, 7, 40])), a_text(3, 40, apart=True)):
        assert noised(CLEAN, examples) == [text for _, text in pairs(CLEAN.make_batch(examples, VOCABULARY, 0))]


def test_a_plain_tokenizer_gets_what_is_needed() -> None:
    words = {"</s>": 0, "<unk>": 1} | {f"w{i}": 2 + i for i in range(20)}
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), eos_token="</s>", unk_token="<unk>"
    )
    recipe = DenoisingRecipe()
    tokenizer = extended(plain, recipe.special_tokens(16))
    vocabulary = vocabulary_of(tokenizer)
    window = np.arange(2, 2 + recipe.window_len(16, vocabulary))[None]
    row = recipe.make_batch(examples_of(window), vocabulary, 0)["input_ids"][0].tolist()
    names = tokenizer.convert_ids_to_tokens(row)
    assert names.count("<mask>") >= 1
    assert names.count("<pad>") == len(row) - 1 - names.index("</s>") > 0


# ------------------------------------------------------------------------------------------------ infilling


@settings(max_examples=60)
@given(
    infill=st.floats(0.01, 1),
    mean=st.floats(0.05, 10),
    length=st.integers(2, 90),
    ends=st.sampled_from([0, 0.1, 1]),
    seed=st.integers(0, 9),
)
def test_text_comes_back_when_masks_are_filled(infill: float, mean: float, length: int, ends: float, seed: int) -> None:
    recipe = DenoisingRecipe(infill, mean, permute_sentences=0)
    examples = a_text(4, length, ends=ends)
    for row, tokens in zip(noised(recipe, examples, seed=seed), examples.tokens, strict=True):
        text = tokens.tolist()
        kept = iter(text)
        assert all(token in kept for token in row if token != MASK)  # in their order
        if ends:
            continue  # where a hole is can't be told
        words = words_of(text)
        holes = holes_of(row, text)
        hidden = [word for word in words if word[0] not in row]
        assert all(masks for missing, masks in holes if missing)
        assert sorted(itertools.chain(*hidden)) == sorted(itertools.chain(*(missing for missing, _ in holes)))
        assert 1 <= len(hidden) <= math.ceil(infill * len(words))


def test_spans_that_do_not_meet_hide_exactly_the_budget() -> None:
    recipe = DenoisingRecipe(0.004, 4, permute_sentences=0)  # 2 words of 500: one span, or two
    exact = 0
    for row, text in pairs(recipe.make_batch(a_text(200, 500, ends=0), SINGLE, 0)):
        hidden = len(text) - sum(token != MASK for token in row)
        assert hidden <= 2
        exact += hidden == 2
    assert exact > 190  # but where the last word begins a span of two


@pytest.mark.parametrize(("ratio", "mean"), [(0.3, 3), (0.3, 1.5), (0.6, 3), (0.15, 6)])
def test_infilling_is_distributed_as_published(ratio: float, mean: float) -> None:
    rng = random.Random(0)
    recipe = DenoisingRecipe(ratio, mean, permute_sentences=0)
    examples = a_text(1200, 100, ends=0)
    texts = examples.tokens.tolist()
    ours = noised(recipe, examples)
    theirs = [published_infilling(words_of(text), ratio, mean, rng) for text in texts]
    for what in (
        lambda row, text: [("masks", row.count(MASK))],
        lambda row, text: [("tokens", len(row))],
        lambda row, text: [(len(missing), masks) for missing, masks in holes_of(row, text)],
        lambda row, text: [n for n, token in enumerate(text) if token not in row],
        lambda row, text: [n for n, token in enumerate(row) if token == MASK],
    ):
        samples: list[Counter[Any]] = [Counter(), Counter()]
        for sample, rows in zip(samples, (ours, theirs), strict=True):
            for row, text in zip(rows, texts, strict=True):
                sample.update(what(row, text))
        assert chi_square(*samples) < 4


def test_a_poisson_share_of_the_spans_is_empty() -> None:
    recipe = DenoisingRecipe(0.02, 3, permute_sentences=0)
    rows = noised(recipe, examples := a_text(300, 2000, ends=0), SINGLE)
    holes = Counter(
        len(missing)
        for row, tokens in zip(rows, examples.tokens.tolist(), strict=True)
        for missing, masks in holes_of(row, tokens)
        if masks == 1
    )
    share = holes[0] / holes.total()
    deviation = (math.exp(-3) * (1 - math.exp(-3)) / holes.total()) ** 0.5
    assert abs(share - math.exp(-3)) < 4 * deviation + 0.0005  # spans that run into each other count as one
    assert holes.total() > 3500


@given(mean=st.floats(0.01, 1), length=st.integers(2, 60))
def test_no_row_becomes_longer_than_its_text(mean: float, length: int) -> None:
    recipe = DenoisingRecipe(0.3, mean, permute_sentences=0)
    for lengths in (None, np.array([length, length // 2, 1, 0])):
        examples = a_text(4, length, lengths)
        for row, text in pairs(recipe.make_batch(examples, VOCABULARY, 0)):
            assert len(row) <= len(text)
    recipe = DenoisingRecipe(0.3, 0.01, permute_sentences=0)  # a hundred empty spans to each other one
    for row, text in pairs(recipe.make_batch(a_text(4, 60, ends=0), VOCABULARY, 0)):
        assert len(row) == len(text)


# ------------------------------------------------------------------------------------------------ the other noises


def sentences_of(text: Row) -> list[list[Row]]:
    """Of each document, and of each end: of stops in a row the first ends a sentence."""
    stops = VOCABULARY.ends_sentence
    documents = [
        list(part) for _, part in itertools.groupby(text, key=lambda token: token == END)
    ]  # ends in a row are one
    result = []
    for part in documents:
        sentences: list[Row] = [[]]
        for before, token in zip([END, *part], part, strict=False):
            sentences[-1].append(token)
            if stops[token] and not stops[before]:
                sentences.append([])
        result.append([sentence for sentence in sentences if sentence])
    return result


@given(share=st.floats(0, 1), length=st.integers(2, 120), seed=st.integers(0, 9))
def test_permutation_alone_moves_whole_sentences_within_their_document(share: float, length: int, seed: int) -> None:
    recipe = DenoisingRecipe(infill=0, permute_sentences=share)
    examples = a_text(4, length, ends=0.03)
    for row, tokens in zip(noised(recipe, examples, seed=seed), examples.tokens, strict=True):
        start = 0
        for sentences in sentences_of(tokens.tolist()):
            part = row[start : start + sum(map(len, sentences))]
            start += len(part)
            if part[0] == END:
                assert part == list(itertools.chain(*sentences))
                continue
            order = []
            while part:
                [found] = [n for n, sentence in enumerate(sentences) if sentence == part[: len(sentence)]]
                order.append(found)
                part = part[len(sentences[found]) :]
            assert sorted(order) == list(range(len(sentences)))
            moved = sum(n != found for n, found in enumerate(order))
            assert moved <= math.ceil(share * len(sentences))


@pytest.mark.parametrize(("share", "num_orders"), [(1, 24), (0.4, 7), (0.75, 15), (0.25, 1), (0, 1)])
def test_all_permutations_of_the_chosen_sentences_are_equally_likely(share: float, num_orders: int) -> None:
    text, n = (
        [11, 14, 12, 13, 28, 21, 16, 17],
        6000,
    )  # 28 and 21 are stops in a row: of four sentences one begins with a stop
    sentences = [[11, 14], [12, 13, 28], [21, 16, 17]]
    text, sentences = [*text, 42, 18], [*sentences[:2], [*sentences[2], 42], [18]]
    rows = noised(DenoisingRecipe(infill=0, permute_sentences=share), examples_of(np.tile(text, (n, 1))))
    ours = Counter(map(tuple, rows))
    rng = random.Random(0)
    theirs: Counter[tuple[int, ...]] = Counter()
    for _ in range(n):
        chosen = rng.sample(range(4), math.ceil(4 * share))
        order = dict(zip(chosen, rng.sample(chosen, len(chosen)), strict=True))
        theirs[tuple(itertools.chain(*(sentences[order.get(place, place)] for place in range(4))))] += 1
    assert ours.keys() == theirs.keys()
    assert len(ours) == num_orders
    if num_orders > 1:
        assert chi_square(ours, theirs) < 4


def test_a_sentence_that_begins_within_a_word_begins_one_of_its_own() -> None:
    pieces = replace(VOCABULARY, begins_word=np.zeros(SIZE, bool), ends_sentence=IDS % 2 == 1)
    one_word = DenoisingRecipe(0.001, 9)
    text = np.arange(FIRST, FIRST + 10)
    for row in noised(one_word, examples_of(np.tile(text, (20, 1))), pieces):
        assert [token for token in row if token != MASK] != []
        assert len(row) == 9
    for row in noised(replace(one_word, permute_sentences=0), examples_of(np.tile(text, (20, 1))), pieces):
        assert row == [MASK]


def test_rotation_alone_is_undone_by_turning_back() -> None:
    lengths = np.arange(2000) % 60
    examples = a_text(2000, 59, lengths, ends=0)
    first: list[float] = []
    for row, tokens in zip(noised(DenoisingRecipe(0, 3, 0, rotate=1), examples), examples.tokens, strict=True):
        if row:
            place = tokens.tolist().index(row[0])
            assert [*row[len(row) - place :], *row[: len(row) - place]] == tokens[: len(row)].tolist()
            first.append((place + 0.5) / len(row))
    assert abs(np.mean(first) - 0.5) < 4 / (12 * len(first)) ** 0.5
    assert max(np.histogram(first, 10, (0, 1))[0]) < 1.3 * len(first) / 10


def test_any_token_may_come_first_and_so_many_rows_are_rotated() -> None:
    examples = a_text(6000, 10, ends=0)
    for rotate in (1.0, 0.3):
        rows = noised(DenoisingRecipe(0, 3, 0, rotate=rotate), examples)
        first = Counter(tokens.index(row[0]) for row, tokens in zip(rows, examples.tokens.tolist(), strict=True))
        for place in range(10):
            share = rotate / 10 + (1 - rotate if place == 0 else 0)
            assert abs(first[place] - 6000 * share) < 4 * (6000 * share * (1 - share)) ** 0.5


@given(mask=st.floats(0, 0.5), delete=st.floats(0, 0.5), length=st.integers(2, 80), seed=st.integers(0, 9))
def test_so_many_tokens_are_masked_and_deleted_exactly(mask: float, delete: float, length: int, seed: int) -> None:
    recipe = replace(CLEAN, token_mask=mask, token_delete=delete)
    lengths = np.array([length, length // 2, 1, 0])
    examples = a_text(4, length, lengths)
    for row, tokens, size in zip(noised(recipe, examples, seed=seed), examples.tokens, lengths.tolist(), strict=True):
        text = tokens[:size].tolist()
        num = sum(token != END for token in text)
        masked = math.ceil(mask * num)
        assert row.count(MASK) == masked
        assert len(row) == size - min(math.ceil(delete * num), num - masked)
        assert row.count(END) == text.count(END)
        kept = iter(text)
        assert all(token in kept for token in row if token != MASK)
        if not delete:
            assert all(token in (other, MASK) for token, other in zip(row, text, strict=True))


def test_tokens_are_masked_and_deleted_everywhere_alike() -> None:
    examples = a_text(4000, 20, ends=0)
    masked = replace(CLEAN, token_mask=0.15)
    deleted = replace(CLEAN, token_delete=0.15)
    deviation = (0.15 * 0.85 / 4000) ** 0.5
    for recipe in (masked, deleted):
        rows = noised(recipe, examples)
        gone = np.mean([[t not in row for t in text] for row, text in zip(rows, examples.tokens, strict=True)], axis=0)
        assert (abs(gone - 0.15) < 4 * deviation).all()


def test_shares_are_of_the_whole_text_and_take_what_infilling_left() -> None:
    recipe = DenoisingRecipe(0.3, 3, 0, token_mask=0.2, token_delete=0.5)
    for row, text in pairs(recipe.make_batch(a_text(200, 100, ends=0), SINGLE, 0)):
        infilled = 80 - sum(token != MASK for token in row) - 50
        assert len(text) == 100
        assert 0 < infilled <= 30
        assert row.count(MASK) > 20


# ------------------------------------------------------------------------------------------------ ends of documents


@settings(max_examples=60)
@given(recipe=recipes, length=st.integers(2, 90), seed=st.integers(0, 9), apart=st.booleans(), padded=st.booleans())
def test_ends_of_documents_stay_and_what_is_between_them_too(
    recipe: DenoisingRecipe, length: int, seed: int, apart: bool, padded: bool
) -> None:
    examples = a_text(4, length, np.array([length, length // 2, 1, 0]) if padded else None, apart=apart)
    recipe = replace(recipe, rotate=0)
    for row, tokens, size in zip(
        noised(recipe, examples, seed=seed),
        examples.tokens.tolist(),
        examples.lengths if padded else [length] * 4,
        strict=True,  # type: ignore[arg-type]
    ):
        text = tokens[:size]
        assert row.count(END) == text.count(END)
        for part, whole in zip(split_after(row, IS_END), split_after(text, IS_END), strict=False):
            assert Counter(token for token in part if token != MASK) <= Counter(whole)


def test_no_span_goes_across_the_end_of_a_document() -> None:
    recipe = DenoisingRecipe(0.3, 8, permute_sentences=0)
    examples = a_text(400, 60)
    for row, tokens in zip(noised(recipe, examples), examples.tokens.tolist(), strict=True):
        for part, whole in zip(split_after(row, IS_END), split_after(tokens, IS_END), strict=False):
            assert set(whole) <= set(part) or MASK in part  # where something is hidden, there its mask is


def test_a_row_of_ends_is_left_alone() -> None:
    text = np.full((2, 12), END)
    assert noised(EVERYTHING, examples_of(text)) == text.tolist()


@settings(max_examples=60)
@given(recipe=recipes, length=st.integers(2, 60), padded=st.booleans(), delete_all=st.booleans())
def test_documents_that_are_kept_apart_are_noised_apart(
    recipe: DenoisingRecipe, length: int, padded: bool, delete_all: bool
) -> None:
    if delete_all:
        recipe = replace(recipe, infill=0, token_mask=0, token_delete=1)
    examples = a_text(4, length, np.array([length, length // 2, 1, 0]) if padded else None, apart=True)
    batch = recipe.make_batch(examples, VOCABULARY, 0)
    assert batch.keys() == {"input_ids", "labels", "segment_ids", "decoder_segment_ids"}
    assert all(array.shape == (4, length + 2) and array.dtype == np.int64 for array in batch.values())
    for inputs, labels, segments, targets in zip(
        batch["input_ids"], batch["labels"], batch["segment_ids"], batch["decoder_segment_ids"], strict=True
    ):
        assert ((targets >= 0) == (labels != IGNORED)).all()
        assert set(segments.tolist()) - {-1} == set(targets.tolist()) - {-1}  # every target has a source
        for row in (segments, targets):
            real = row[row >= 0]
            assert (np.diff(real) >= 0).all()
            assert (row[len(real) :] == -1).all()
        assert (inputs[segments < 0] == PAD).all()
        own = Counter(zip(labels.tolist(), targets.tolist(), strict=True))
        seen = Counter(zip(inputs.tolist(), segments.tolist(), strict=True))
        assert all(count <= own[pair] for pair, count in seen.items() if pair[0] not in (MASK, PAD))
    for targets, documents in zip(batch["decoder_segment_ids"], examples.documents, strict=True):  # type: ignore[arg-type]
        assert targets[1:-1].tolist()[: (documents >= 0).sum()] == documents[documents >= 0].tolist()


def test_documents_that_are_kept_apart_are_rotated_each_for_itself() -> None:
    documents = np.repeat(np.arange(3, dtype=np.int32), [5, 6, 7])
    text = np.arange(FIRST, FIRST + 18)
    examples = examples_of(np.tile(text, (500, 1)), None, np.tile(documents, (500, 1)))
    seen: Counter[tuple[int, ...]] = Counter()
    for row in noised(DenoisingRecipe(0, 3, 0, rotate=1), examples):
        offsets = []
        for part, whole in zip(np.split(row, [5, 11]), np.split(text, [5, 11]), strict=True):
            offsets.append(int(part[0] - whole[0]))
            assert (np.roll(part, offsets[-1]) == whole).all()
        seen[tuple(offsets)] += 1
    assert len(seen) > 150  # of 5 · 6 · 7


# --------------------------------------------------------------------------------------------- padding, stateless noise


@given(recipe=recipes, lengths=st.lists(st.integers(0, 50), min_size=1, max_size=5))
def test_padded_rows(recipe: DenoisingRecipe, lengths: Row) -> None:
    batch = recipe.make_batch(a_text(len(lengths), 50, np.array(lengths)), VOCABULARY, 0)
    inputs, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
    assert all(array.shape == (len(lengths), 52) and array.dtype == np.int64 for array in batch.values())
    assert (np.diff(mask, axis=1) <= 0).all()
    assert (inputs[mask == 0] == PAD).all()
    assert (inputs[mask == 1] != PAD).all()
    assert (labels != IGNORED).sum(axis=1).tolist() == [length + 2 for length in lengths]
    assert (mask.sum(axis=1) <= np.array(lengths) + 2).all()


def test_padded_and_full_rows_of_one_text_are_noised_alike() -> None:
    full = a_text(4, 60)
    padded = full._replace(lengths=np.full(4, 60))
    one_document = full._replace(documents=np.zeros((4, 60), np.int32))
    recipe = replace(EVERYTHING, token_delete=0)
    assert noised(recipe, full) == noised(recipe, padded) == noised(recipe, one_document)


@pytest.mark.parametrize("lengths", [None, np.array([60, 0, 3, 37, 1, 30, 60])], ids=["full", "padded"])
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("recipe", [DenoisingRecipe(), EVERYTHING], ids=["default", "everything"])
def test_a_row_depends_on_no_other(recipe: DenoisingRecipe, lengths: NDArray[np.int64] | None, apart: bool) -> None:
    examples = a_text(7, 60, lengths, apart=apart, first=1000)
    together = recipe.make_batch(examples, VOCABULARY, 3)
    for some in (*(slice(i, i + 1) for i in range(7)), slice(2, 5), slice(None, None, -1)):
        alone = recipe.make_batch(examples.rows(some), VOCABULARY, 3)
        assert alone.keys() == together.keys()
        for name, array in alone.items():
            assert (array == together[name][some]).all()


@pytest.mark.parametrize(
    "recipe",
    [INFILLING, PERMUTING, replace(CLEAN, token_mask=0.3), replace(CLEAN, token_delete=0.3), replace(CLEAN, rotate=1)],
    ids=["infill", "permute_sentences", "token_mask", "token_delete", "rotate"],
)
def test_another_seed_epoch_or_position_gives_another_noise(recipe: DenoisingRecipe) -> None:
    text = np.tile(np.arange(FIRST, FIRST + 800), (2, 1))
    rows = [noised(recipe, examples_of(text, epoch=epoch), seed=seed) for seed, epoch in ((0, 0), (1, 0), (0, 1))]
    assert len({tuple(row) for row in itertools.chain(*rows)}) == 6
    assert noised(recipe, examples_of(text)) == rows[0]


def test_no_rows_give_no_rows() -> None:
    batch = EVERYTHING.make_batch(a_text(2, 30).rows(slice(0, 0)), VOCABULARY, 0)
    assert {array.shape for array in batch.values()} == {(0, 32)}


def test_tokens_are_left_as_they_were() -> None:
    examples = a_text(3, 60)
    before = examples.tokens.copy()
    EVERYTHING.make_batch(examples, VOCABULARY, 0)
    assert (examples.tokens == before).all()


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("name", ["infill", "permute_sentences", "token_mask", "token_delete", "rotate"])
@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_shares_outside_0_to_1_are_refused(name: str, share: float) -> None:
    with pytest.raises(
        UserError, match=f"--objective.{name} {share}: expected a number from 0, which is off, to 1; type"
    ):
        DenoisingRecipe(**{name: share})


def test_shares_of_more_than_the_whole_text_are_refused() -> None:
    with pytest.raises(UserError, match=r"--objective.token_mask 0.5 .* --objective.infill 0.3: .* sum to at most 1"):
        DenoisingRecipe(token_mask=0.5, token_delete=0.4)
    DenoisingRecipe(infill=0, token_mask=0.3, token_delete=0.7)


@pytest.mark.parametrize("mean", [0, -1, 101, float("nan"), float("inf")])
def test_a_mean_length_without_spans_is_refused(mean: float) -> None:
    with pytest.raises(UserError, match=rf"--objective.poisson_lambda {mean}: .* type --objective.poisson_lambda 3"):
        DenoisingRecipe(poisson_lambda=mean)


def test_a_seq_len_without_room_is_refused() -> None:
    with pytest.raises(UserError, match="--seq_len 3: denoising needs room for two tokens"):
        DenoisingRecipe().window_len(3, VOCABULARY)
