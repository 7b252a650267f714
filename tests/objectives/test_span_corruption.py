"""Span corruption: lengths, spans and sentinels as T5 has them; and the text comes back from input and labels."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from sslm.data.stream.recipe import IGNORED, Arrays, Examples
from sslm.data.stream.vocabulary import Vocabulary, extended, vocabulary_of
from sslm.objectives.span_corruption import SpanCorruptionRecipe
from sslm.system.errors import UserError

T5 = SpanCorruptionRecipe()
PAD, END, SIZE = 0, 1, 2000
SENTINELS = np.arange(99, 1, -1)
FIRST = 100
"""The first id of text: those below are the vocabulary's own."""

VOCABULARY = Vocabulary(
    end=END,
    prefix=np.array([], np.int64),
    suffix=np.array([END]),
    mask=None,
    pad=PAD,
    sentinels=SENTINELS,
    special=np.arange(SIZE) < FIRST,
    begins_word=np.ones(SIZE, bool),
    first_kind=np.zeros(SIZE, np.uint8),
    last_kind=np.zeros(SIZE, np.uint8),
    ends_sentence=np.zeros(SIZE, bool),
)

recipes = st.builds(SpanCorruptionRecipe, ratio=st.floats(0.01, 0.95), mean_span=st.floats(1, 12))


def examples_of(
    tokens: NDArray[np.int64], lengths: NDArray[np.int64] | None = None, epoch: int = 0, first: int = 0
) -> Examples:
    n = len(tokens)
    return Examples(tokens, first + np.arange(n), np.full(n, epoch), np.zeros(n, np.int64), lengths)


def a_text(n: int, length: int, lengths: NDArray[np.int64] | None = None, **others: int) -> Examples:
    """Rows of text; one token in ten ends a document."""
    rng = np.random.default_rng(n + length)
    tokens = np.where(rng.random((n, length)) < 0.1, END, rng.integers(FIRST, SIZE, (n, length)))
    if lengths is not None:
        tokens[np.arange(length) >= lengths[:, None]] = 0
    return examples_of(tokens, lengths, **others)


def spans_of(row: list[int]) -> list[list[int]]:
    """What stands after each sentinel; the first sentinel comes first, the next next."""
    spans: list[list[int]] = []
    for token in row:
        if token == SENTINELS[len(spans)]:
            spans.append([])
        else:
            spans[-1].append(token)
    return spans


def restored(batch: Arrays) -> list[list[int]]:
    """The text that each row was made of."""
    texts = []
    mask = batch.get("attention_mask", np.ones_like(batch["input_ids"])) == 1
    for inputs, real, labels in zip(batch["input_ids"], mask, batch["labels"], strict=True):
        *kept, end = inputs[real].tolist()
        *taken, target_end = labels[labels != IGNORED].tolist() or [END]
        assert end == target_end == END
        spans = iter(spans_of(taken))
        texts.append([t for token in kept for t in (next(spans) if token in SENTINELS else [token])])
        assert next(spans, None) is None
    return texts


def noise_of(batch: Arrays) -> list[tuple[bool, ...]]:
    """Which tokens of each row were taken out."""
    masks = []
    for inputs, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        lengths = iter([len(span) for span in spans_of(labels[:-1])])
        pieces = [[True] * next(lengths) if token in SENTINELS else [False] for token in inputs[:-1]]
        masks.append(tuple(itertools.chain(*pieces)))
    return masks


def published_noise(length: int, ratio: float, mean_span: float, rng: random.Random) -> tuple[bool, ...]:
    """T5's `random_spans_noise_mask`, by loops."""
    num_noise = min(max(round(length * ratio), 1), length - 1)
    num_spans = max(round(num_noise / mean_span), 1)

    def segments(num_items: int) -> list[int]:
        begins = [gap < num_spans - 1 for gap in range(num_items - 1)]
        rng.shuffle(begins)
        lengths = [1]
        for begin in begins:
            if begin:
                lengths.append(1)
            else:
                lengths[-1] += 1
        return lengths

    mask: list[bool] = []
    for text, noise in zip(segments(length - num_noise), segments(num_noise), strict=True):
        mask += [False] * text + [True] * noise
    return tuple(mask)


def span_lengths(masks: list[tuple[bool, ...]], noise: bool) -> Counter[int]:
    return Counter(len(list(run)) for mask in masks for kind, run in itertools.groupby(mask) if kind == noise)


def chi_square(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Compare two samples' counts in the same cells: about the number of cells less one if they are alike."""
    scale = (other.sum() / one.sum()) ** 0.5
    return float(((one * scale - other / scale) ** 2 / (one + other)).sum())


# --------------------------------------------------------------------------------------------- the example, the lengths


def test_the_docstrings_example() -> None:
    recipe = SpanCorruptionRecipe(ratio=0.3, mean_span=2)
    assert recipe.window_len(10, VOCABULARY) == 10
    batch = recipe.make_batch(examples_of(np.arange(11, 21)[None], first=10), VOCABULARY, 0)
    assert batch["input_ids"].tolist() == [[11, 12, 13, 99, 16, 17, 18, 19, 98, 1]]
    assert batch["labels"].tolist() == [[99, 14, 15, 98, 20, 1]]
    assert batch.keys() == {"input_ids", "labels"}


@pytest.mark.parametrize(
    ("seq_len", "window_len", "target_len", "num_spans"),
    [(128, 141, 29, 7), (512, 568, 114, 28), (1024, 1137, 229, 57)],
)
def test_lengths_are_t5s(seq_len: int, window_len: int, target_len: int, num_spans: int) -> None:
    assert T5.window_len(seq_len, VOCABULARY) == T5.stride(seq_len, VOCABULARY) == window_len
    assert T5.widths(window_len) == (seq_len, target_len)
    assert T5.special_tokens(seq_len).sentinels == num_spans
    assert T5.special_tokens(seq_len).pad
    batch = T5.make_batch(a_text(2, window_len), VOCABULARY, 0)
    assert batch["input_ids"].shape == (2, seq_len)
    assert batch["labels"].shape == (2, target_len)
    assert (batch["labels"] != IGNORED).all()


@pytest.mark.parametrize("recipe", [T5, SpanCorruptionRecipe(0.5, 3), SpanCorruptionRecipe(0.15, 8)], ids=str)
def test_every_input_has_seq_len_tokens_and_the_next_longer_window_has_too_many(recipe: SpanCorruptionRecipe) -> None:
    for seq_len in range(3, 1500):
        window_len = recipe.window_len(seq_len, VOCABULARY)
        assert recipe.widths(window_len)[0] == seq_len < recipe.widths(window_len + 1)[0]


@given(recipe=recipes, seq_len=st.integers(3, 4000))
def test_no_setting_makes_an_input_too_long_or_much_too_short(recipe: SpanCorruptionRecipe, seq_len: int) -> None:
    window_len = recipe.window_len(seq_len, VOCABULARY)
    assert recipe.widths(window_len)[0] <= seq_len < recipe.widths(window_len + 1)[0]
    spare = seq_len - recipe.widths(window_len)[0]
    assert spare == 0 or (spare == 1 and recipe.ratio > 0.9 * recipe.mean_span / (recipe.mean_span + 1))


# ------------------------------------------------------------------------------------------------ the spans


@given(recipe=recipes, length=st.integers(2, 3000))
def test_noise_is_the_ratio_and_spans_are_of_the_mean_length(recipe: SpanCorruptionRecipe, length: int) -> None:
    num_noise, spans = map(int, recipe.num_noise_and_spans(np.array(length)))
    assert num_noise == min(max(round(length * recipe.ratio), 1), length - 1)
    assert spans == min(max(round(num_noise / recipe.mean_span), 1), length - num_noise)


def test_text_comes_first_noise_last_and_every_row_has_exactly_its_share() -> None:
    masks = np.array(noise_of(T5.make_batch(a_text(300, 568), VOCABULARY, 0)))
    assert masks.shape == (300, 568)
    assert (masks.sum(axis=1) == 85).all()
    assert ((masks[:, 1:] & ~masks[:, :-1]).sum(axis=1) == 28).all()
    assert not masks[:, 0].any()
    assert masks[:, -1].all()


def test_all_ways_to_lay_the_spans_are_equally_likely() -> None:
    recipe, num_rows = SpanCorruptionRecipe(ratio=0.3, mean_span=2), 12000
    seen = Counter(noise_of(recipe.make_batch(a_text(num_rows, 10), VOCABULARY, 5)))
    rng = random.Random(0)
    assert seen.keys() == {published_noise(10, 0.3, 2, rng) for _ in range(2000)}
    assert len(seen) == 2 * 6  # 3 tokens of noise in two, times 7 of text in two
    expected = num_rows / len(seen)
    assert sum((count - expected) ** 2 / expected for count in seen.values()) < 31.3  # 99.9 % of chi-square, 11 degrees


def test_span_lengths_are_distributed_as_published() -> None:
    rng = random.Random(1)
    ours = noise_of(T5.make_batch(a_text(1500, 568), VOCABULARY, 2))
    theirs = [published_noise(568, 0.15, 3, rng) for _ in ours]
    for noise, longest in ((True, 11), (False, 60)):
        cells = np.zeros((2, longest + 1))
        for row, masks in zip(cells, (ours, theirs), strict=True):
            for length, count in span_lengths(masks, noise).items():
                row[min(length, longest)] += count  # the last cell is the tail
        assert cells.sum(axis=1).tolist() == [1500 * 28] * 2
        assert chi_square(*cells[:, 1:]) < longest + 4 * (2 * longest) ** 0.5


def test_noise_is_where_the_published_noise_is() -> None:
    rng = random.Random(2)
    ours = np.mean(noise_of(T5.make_batch(a_text(3000, 141), VOCABULARY, 3)), axis=0)
    theirs = np.mean([published_noise(141, 0.15, 3, rng) for _ in range(3000)], axis=0)
    deviation = np.sqrt((ours * (1 - ours) + theirs * (1 - theirs)) / 3000)
    assert (abs(ours - theirs) <= 4 * deviation).all()


# ------------------------------------------------------------------------------------------------ input and labels


def test_first_span_is_extra_id_0() -> None:
    words = {"</s>": 0, "<unk>": 1} | {f"w{i}": 2 + i for i in range(20)}
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), eos_token="</s>", unk_token="<unk>"
    )
    tokenizer = extended(plain, T5.special_tokens(32))
    vocabulary = vocabulary_of(tokenizer)
    window = np.arange(2, 2 + 20).repeat(2)[None, : T5.window_len(32, vocabulary)]
    batch = T5.make_batch(examples_of(window), vocabulary, 0)
    names = [n for n in tokenizer.convert_ids_to_tokens(batch["labels"][0].tolist()) if not n.startswith("w")]
    assert names == ["<extra_id_0>", "<extra_id_1>", "</s>"]
    assert [n for n in tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist()) if n[0] != "w"] == names


@settings(max_examples=60)
@given(recipe=recipes, seq_len=st.integers(3, 90), n=st.integers(1, 5), seed=st.integers(0, 9), data=st.data())
def test_text_comes_back(recipe: SpanCorruptionRecipe, seq_len: int, n: int, seed: int, data: st.DataObject) -> None:
    window_len = recipe.window_len(seq_len, VOCABULARY)
    lengths = data.draw(st.none() | st.lists(st.integers(0, window_len), min_size=n, max_size=n).map(np.array))
    examples = a_text(n, window_len, lengths)
    batch = recipe.make_batch(examples, VOCABULARY, seed)
    assert (batch["input_ids"].shape[1], batch["labels"].shape[1]) == recipe.widths(window_len)
    assert all(array.dtype == np.int64 for array in batch.values())
    real = np.full(n, window_len) if lengths is None else lengths
    assert restored(batch) == [row[:length].tolist() for row, length in zip(examples.tokens, real, strict=True)]


def test_padded_rows_have_counts_of_their_own() -> None:
    lengths = np.array([0, 1, 2, 20, 140, 141])
    batch = T5.make_batch(a_text(6, 141, lengths), VOCABULARY, 0)
    inputs, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
    assert mask.sum(axis=1).tolist() == [1, 2, 3, 19, 127, 128]
    assert (np.diff(mask, axis=1) <= 0).all()
    assert (inputs[mask == 0] == PAD).all()
    assert (labels != IGNORED).sum(axis=1).tolist() == [0, 0, 3, 5, 29, 29]
    assert inputs[0, 0] == inputs[1, 1] == END
    for length, row in zip(lengths[2:].tolist(), restored(batch)[2:], strict=True):
        assert len(row) == length
    full = T5.make_batch(a_text(6, 141), VOCABULARY, 0)
    assert "attention_mask" not in full


def test_padded_and_full_rows_of_one_text_are_corrupted_alike() -> None:
    full = a_text(4, 141)
    padded = full._replace(lengths=np.full(4, 141))
    ours, theirs = (T5.make_batch(some, VOCABULARY, 0) for some in (full, padded))
    assert (ours["input_ids"] == theirs["input_ids"]).all()
    assert (ours["labels"] == theirs["labels"]).all()


# ------------------------------------------------------------------------------------------------ stateless noise


@pytest.mark.parametrize("lengths", [None, np.array([141, 0, 3, 77, 1, 30, 141])], ids=["full", "padded"])
def test_a_row_depends_on_no_other(lengths: NDArray[np.int64] | None) -> None:
    examples = a_text(7, 141, lengths, first=1000)
    together = T5.make_batch(examples, VOCABULARY, 3)
    for some in (*(slice(i, i + 1) for i in range(7)), slice(2, 5), slice(None, None, -1)):
        apart = T5.make_batch(examples.rows(some), VOCABULARY, 3)
        assert apart.keys() == together.keys()
        for name, array in apart.items():
            assert (array == together[name][some]).all()


def test_another_seed_epoch_or_position_gives_other_spans() -> None:
    text = np.tile(np.arange(FIRST, FIRST + 141), (2, 1))
    rows = [
        T5.make_batch(examples_of(text, epoch=epoch), VOCABULARY, seed)["labels"]
        for seed, epoch in ((0, 0), (1, 0), (0, 1))
    ]
    assert len({tuple(row) for row in np.concatenate(rows).tolist()}) == 6
    assert (T5.make_batch(examples_of(text), VOCABULARY, 0)["labels"] == rows[0]).all()


def test_tokens_are_left_as_they_were() -> None:
    examples = a_text(3, 141)
    before = examples.tokens.copy()
    T5.make_batch(examples, VOCABULARY, 0)
    assert (examples.tokens == before).all()


# ------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("ratio", [0, 1, 2, -0.1, float("nan")])
def test_a_ratio_that_leaves_nothing_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match=rf"--objective.ratio {ratio}: .* type --objective.ratio 0.15"):
        SpanCorruptionRecipe(ratio=ratio)


@pytest.mark.parametrize("mean_span", [0, 0.5, -3, float("nan")])
def test_spans_shorter_than_a_token_are_refused(mean_span: float) -> None:
    with pytest.raises(UserError, match=rf"--objective.mean_span {mean_span}: .* type --objective.mean_span 3"):
        SpanCorruptionRecipe(mean_span=mean_span)


def test_a_seq_len_without_room_for_a_span_is_refused() -> None:
    with pytest.raises(UserError, match="--seq_len 2: span_corruption needs 3 or more"):
        T5.window_len(2, VOCABULARY)
