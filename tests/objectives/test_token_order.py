"""Token order: what is chosen, how it is permuted, what is scored; and the text comes back from input and labels."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sslm.data.stream.recipe import IGNORED, Arrays, Examples
from sslm.data.stream.vocabulary import Vocabulary
from sslm.objectives.token_order import LAYOUTS, TokenOrderRecipe
from sslm.system.errors import UserError

PAD, END, CLS, SEP, MASK = range(5)
FIRST, SIZE = 10, 2000
"""Ids of text; those below are the vocabulary's own."""
STOPS = (13, 15, 1990)
"""Text that ends a sentence."""

VOCABULARY = Vocabulary(
    end=END,
    prefix=np.array([CLS]),
    suffix=np.array([SEP]),
    mask=MASK,
    pad=PAD,
    sentinels=np.zeros(0, np.int64),
    special=np.arange(SIZE) < FIRST,
    begins_word=np.ones(SIZE, bool),
    first_kind=np.zeros(SIZE, np.uint8),
    last_kind=np.zeros(SIZE, np.uint8),
    ends_sentence=np.isin(np.arange(SIZE), STOPS),
)
BARE = replace(VOCABULARY, prefix=np.zeros(0, np.int64), suffix=np.zeros(0, np.int64))

Ids = NDArray[np.int64]
few = settings(max_examples=40, deadline=None)
kinds = [(unit, mark, layout) for layout in LAYOUTS for unit, mark in (("token", 0), ("token", 1), ("sentence", 0))]
recipes = st.builds(
    lambda kind, ratio: TokenOrderRecipe(ratio, kind[0], bool(kind[1]), kind[2]),
    st.sampled_from(kinds),
    st.floats(0.01, 1),
)


def examples_of(
    tokens: Ids, lengths: Ids | None = None, documents: NDArray[np.int32] | None = None, epoch: int = 0, first: int = 0
) -> Examples:
    n = len(tokens)
    return Examples(tokens, first + np.arange(n), np.full(n, epoch), np.zeros(n, np.int64), lengths, documents)


def a_text(
    n: int, length: int, padded: bool = False, apart: bool = False, seed: int = 0, special: float = 0.1
) -> Examples:
    """Make rows in which some tokens end a document, some a sentence; with padding some are short and one is empty."""
    rng = np.random.default_rng(seed)
    tokens = np.where(rng.random((n, length)) < 0.2, STOPS[-1], rng.integers(FIRST, SIZE, (n, length)))
    tokens = np.where(rng.random((n, length)) < special, END, tokens)
    lengths = np.append(rng.integers(1, length + 1, n - 1), 0) if padded else None
    past = np.arange(length) >= (np.full(n, length) if lengths is None else lengths)[:, None]
    tokens[past] = 0
    documents = np.cumsum(np.roll(tokens == END, 1, axis=1) & (np.arange(length) > 0), axis=1, dtype=np.int32)
    documents[past] = -1
    return examples_of(tokens, lengths, documents if apart else None, first=100 * seed)


def real_of(batch: Arrays) -> NDArray[np.bool_]:
    """Which places of the input hold a token."""
    mask: NDArray[np.bool_] = batch.get("attention_mask", np.ones_like(batch["input_ids"])) == 1
    return batch["segment_ids"] >= 0 if "segment_ids" in batch else mask


def permuted_of(batch: Arrays) -> list[list[int]]:
    """The permuted text of each row that an encoder reads, without marks and what stands around it."""
    pairs = zip(batch["input_ids"], real_of(batch), strict=True)
    return [[token for token in ids[real][1:-1].tolist() if token != MASK] for ids, real in pairs]


def restored(batch: Arrays, layout: str) -> list[list[int]]:
    """The text that each row was made of."""
    if layout == "encoder_decoder":
        return [row[row != IGNORED][1:-1].tolist() for row in batch["labels"]]
    if layout == "decoder":
        return [row[row != IGNORED].tolist() for row in batch["labels"]]
    texts = np.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])
    return [[t for t in row[real][1:-1].tolist() if t != MASK] for row, real in zip(texts, real_of(batch), strict=True)]


def windows(examples: Examples) -> list[list[int]]:
    lengths = np.full(len(examples.tokens), examples.tokens.shape[1]) if examples.lengths is None else examples.lengths
    return [row[:length].tolist() for row, length in zip(examples.tokens, lengths, strict=True)]


def chi_square(counts: list[int]) -> float:
    """About the number of cells less one, where all are equally likely."""
    expected = sum(counts) / len(counts)
    return sum((count - expected) ** 2 / expected for count in counts)


# ------------------------------------------------------------------------------------------------ the examples


def the_example(first: int, vocabulary: Vocabulary = VOCABULARY, **how: object) -> dict[str, list[list[int]]]:
    recipe = TokenOrderRecipe(**{"ratio": 0.5} | how)  # type: ignore[arg-type]
    batch = recipe.make_batch(examples_of(np.arange(11, 17)[None], first=first), vocabulary, 0)
    return {name: values.tolist() for name, values in batch.items()}


def test_the_docstrings_example_for_encoders() -> None:
    batch = the_example(164)
    assert batch["input_ids"] == [[2, 11, 16, 13, 12, 15, 14, 3]]
    assert batch["labels"] == [[-100, -100, 12, -100, 14, -100, 16, -100]]
    assert batch.keys() == {"input_ids", "labels"}
    assert TokenOrderRecipe().window_len(8, VOCABULARY) == 6


def test_the_docstrings_example_with_marks() -> None:
    batch = the_example(164, mark=True)
    assert batch["input_ids"] == [[2, 11, 4, 16, 13, 4, 12, 15, 4, 14, 3]]
    assert batch["labels"] == [[-100, -100, -100, 12, -100, -100, 14, -100, -100, 16, -100]]
    assert batch["attention_mask"] == [[1] * 11]
    assert TokenOrderRecipe(ratio=0.5, mark=True).window_len(11, VOCABULARY) == 6


def test_the_docstrings_example_for_encoders_with_a_decoder() -> None:
    batch = the_example(164, layout="encoder_decoder")
    assert batch["input_ids"] == [[2, 11, 16, 13, 12, 15, 14, 3]]
    assert batch["labels"] == [[2, 11, 12, 13, 14, 15, 16, 3]]


def test_the_docstrings_example_for_decoders() -> None:
    batch = the_example(164, layout="decoder")
    assert batch["input_ids"] == [[11, 16, 13, 12, 15, 14, 1, 11, 12, 13, 14, 15]]
    assert batch["labels"] == [[-100] * 6 + [11, 12, 13, 14, 15, 16]]


def test_the_docstrings_example_of_sentences() -> None:
    batch = the_example(10, unit="sentence")
    assert batch["input_ids"] == [[2, 14, 15, 11, 12, 13, 16, 3]]
    assert batch["labels"] == [[-100, 11, 12, 13, 14, 15, -100, -100]]


# ------------------------------------------------------------------------------------------------ lengths


@few
@given(recipe=recipes, seq_len=st.integers(8, 300), wrapped=st.booleans())
def test_windows_are_as_long_as_the_input_allows(recipe: TokenOrderRecipe, seq_len: int, wrapped: bool) -> None:
    vocabulary = VOCABULARY if wrapped else BARE
    length = recipe.window_len(seq_len, vocabulary)
    batches = [recipe.make_batch(a_text(2, length + more, special=0), vocabulary, 0) for more in (0, 1)]
    this, longer = (batch["input_ids"].shape[1] for batch in batches)
    assert this <= seq_len < longer
    assert seq_len - this <= recipe.mark + (recipe.layout == "decoder")
    most = recipe.max_scored(seq_len, vocabulary)
    if recipe.layout != "encoder_decoder":
        assert batches[0]["labels"].shape == batches[0]["input_ids"].shape
    if most is not None:
        assert ((batches[0]["labels"] != IGNORED).sum(axis=1) == most).all()


def test_what_a_decoder_beside_an_encoder_writes_has_an_end() -> None:
    recipe = TokenOrderRecipe(layout="encoder_decoder")
    assert recipe.window_len(512, BARE) == 511
    batch = recipe.make_batch(a_text(3, 511, padded=True), BARE, 0)
    for name in ("input_ids", "labels"):
        num = (batch["labels"] != IGNORED).sum(axis=1)
        assert (batch[name][np.arange(3), num - 1] == END).all()


@pytest.mark.parametrize(("unit", "mark", "layout"), kinds)
def test_widths_depend_on_no_text(unit: str, mark: int, layout: str) -> None:
    recipe = TokenOrderRecipe(unit=unit, mark=bool(mark), layout=layout)  # type: ignore[arg-type]
    texts = [
        a_text(4, 60, padded, apart, seed, special)
        for padded in (False, True)
        for apart in (False, True)
        for seed, special in ((1, 0.0), (2, 0.3))
    ]
    batches = [recipe.make_batch(text, VOCABULARY, 0) for text in texts]
    for name in ("input_ids", "labels"):
        assert len({batch[name].shape for batch in batches}) == 1
        assert {batch[name].dtype for batch in batches} == {np.dtype(np.int64)}
    for batch in batches:
        masks = batch.keys() & {"attention_mask", "segment_ids"}
        assert all(batch[name].shape == batch["input_ids"].shape for name in masks)
        assert all(batch[name].dtype == np.int64 for name in batch)


# ------------------------------------------------------------------------------------------------ what is chosen


@few
@given(ratio=st.floats(0.01, 1), length=st.integers(2, 100), padded=st.booleans(), mark=st.booleans())
def test_exactly_the_ratio_is_chosen_and_two_where_there_are_two(
    ratio: float, length: int, padded: bool, mark: bool
) -> None:
    examples = a_text(8, length, padded)
    batch = TokenOrderRecipe(ratio, mark=mark).make_batch(examples, VOCABULARY, 0)
    for labels, ids, text in zip(batch["labels"], batch["input_ids"], windows(examples), strict=True):
        eligible = sum(token >= FIRST for token in text)
        num = min(max(round(ratio * eligible), 2), eligible)
        assert (labels != IGNORED).sum() == num
        assert (ids == MASK).sum() == num * mark


def test_all_places_are_chosen_equally_often() -> None:
    examples = examples_of(np.tile(np.arange(FIRST, FIRST + 20), (20_000, 1)))
    batch = TokenOrderRecipe().make_batch(examples, BARE, 0)
    counts = (batch["labels"] != IGNORED).sum(axis=0)
    assert counts.sum() == 20_000 * 3
    assert chi_square(counts.tolist()) < 44  # 19 degrees of freedom: one in a thousand


@pytest.mark.parametrize("k", [2, 3, 4])
def test_all_orders_of_the_chosen_are_equally_likely(k: int) -> None:
    n = 24_000
    examples = examples_of(np.tile(np.arange(FIRST, FIRST + 10), (n, 1)))
    batch = TokenOrderRecipe(ratio=k / 10).make_batch(examples, BARE, 0)
    chosen = batch["labels"] != IGNORED
    was, now = batch["labels"][chosen].reshape(n, k), batch["input_ids"][chosen].reshape(n, k)
    orders = Counter(map(tuple, np.argsort(np.argsort(now, axis=1), axis=1).tolist()))
    assert set(orders) == set(itertools.permutations(range(k)))
    assert (np.sort(now, axis=1) == was).all()
    assert chi_square(list(orders.values())) < {2: 10.9, 3: 20.6, 4: 49.8}[k]  # one in a thousand


def test_all_orders_of_sentences_are_equally_likely() -> None:
    stop = STOPS[-1]
    text = np.array([20, stop, 21, 22, stop, stop, 23, 24])  # four sentences, the last cut off
    sentences = [(20, stop), (21, 22, stop), (stop,), (23, 24)]
    expected = {tuple(itertools.chain(*order)) for order in itertools.permutations(sentences)}
    batch = TokenOrderRecipe(unit="sentence").make_batch(examples_of(np.tile(text, (24_000, 1))), BARE, 0)
    orders = Counter(map(tuple, batch["input_ids"].tolist()))
    assert set(orders) == expected
    assert chi_square(list(orders.values())) < 49.8


@few
@given(seed=st.integers(0, 99), padded=st.booleans(), apart=st.booleans())
def test_what_is_not_chosen_stays(seed: int, padded: bool, apart: bool) -> None:
    examples = a_text(6, 50, padded, apart, seed)
    for unit in ("token", "sentence"):
        batch = TokenOrderRecipe(unit=unit).make_batch(examples, BARE, 0)
        unscored = batch["labels"] == IGNORED
        assert (batch["input_ids"] == examples.tokens)[unscored].all()
        assert (batch["labels"] == examples.tokens)[~unscored].all()
        assert not VOCABULARY.special[batch["labels"][~unscored]].any()
        assert not VOCABULARY.special[batch["input_ids"][~unscored]].any()


# ------------------------------------------------------------------------------------------------ inverse


@settings(max_examples=150, deadline=None)
@given(
    recipe=recipes,
    length=st.integers(2, 60),
    seed=st.integers(0, 999),
    padded=st.booleans(),
    apart=st.booleans(),
    special=st.sampled_from([0, 0.1, 0.5]),
)
def test_the_text_comes_back(
    recipe: TokenOrderRecipe, length: int, seed: int, padded: bool, apart: bool, special: float
) -> None:
    examples = a_text(5, length, padded, apart, seed, special)
    batch = recipe.make_batch(examples, VOCABULARY, seed)
    texts = windows(examples)
    assert restored(batch, recipe.layout) == texts
    if recipe.layout != "decoder":
        assert [Counter(row) for row in permuted_of(batch)] == list(map(Counter, texts))


@few
@given(seed=st.integers(0, 99), padded=st.booleans(), mark=st.booleans(), unit=st.sampled_from(["token", "sentence"]))
def test_all_layouts_permute_alike(seed: int, padded: bool, mark: bool, unit: str) -> None:
    examples = a_text(5, 40, padded, seed=seed)
    made = {
        layout: TokenOrderRecipe(0.3, unit, mark and unit == "token", layout).make_batch(examples, VOCABULARY, 0)  # type: ignore[arg-type]
        for layout in LAYOUTS
    }
    encoder, both, decoder = made.values()
    assert (encoder["input_ids"] == both["input_ids"]).all()
    width = encoder["input_ids"].shape[1] - 2
    assert decoder["input_ids"].shape[1] == width + 40
    for row, length in enumerate(map(len, windows(examples))):
        num = real_of(encoder)[row].sum() - 2
        assert decoder["input_ids"][row, :num].tolist() == encoder["input_ids"][row, 1 : num + 1].tolist()
        assert (decoder["input_ids"][row, num:width] == PAD).all()
        written = decoder["input_ids"][row, width : width + length].tolist()
        assert written == [END, *windows(examples)[row][:-1]][:length]
        if padded:
            assert real_of(decoder)[row].sum() == num + length


# ------------------------------------------------------------------------------------------------ marks


@few
@given(seed=st.integers(0, 99), padded=st.booleans(), apart=st.booleans(), ratio=st.floats(0.01, 1))
def test_marks_are_all_that_is_added(seed: int, padded: bool, apart: bool, ratio: float) -> None:
    examples = a_text(6, 50, padded, apart, seed)
    plain, marked = (TokenOrderRecipe(ratio, mark=mark).make_batch(examples, VOCABULARY, 0) for mark in (False, True))
    for row in range(6):
        ids, labels = marked["input_ids"][row], marked["labels"][row]
        real, is_mark = real_of(marked)[row], marked["input_ids"][row] == MASK
        assert ((labels[1:] != IGNORED) == is_mark[:-1]).all()  # a mark before each chosen place, and nowhere else
        assert real[is_mark].all()
        assert (ids[~real] == PAD).all()
        before = real_of(plain)[row]
        assert ids[real & ~is_mark].tolist() == plain["input_ids"][row][before].tolist()
        assert labels[real & ~is_mark].tolist() == plain["labels"][row][before].tolist()
        if apart:
            segments = marked["segment_ids"][row]
            assert segments[real & ~is_mark].tolist() == plain["segment_ids"][row][before].tolist()
            assert (segments[:-1] == segments[1:])[is_mark[:-1]].all()


# ------------------------------------------------------------------------------------------------ documents, padding


def by_document(values: NDArray[np.int64], documents: NDArray[np.int64]) -> dict[int, list[int]]:
    return {number: values[documents == number].tolist() for number in range(documents.max(initial=-1) + 1)}


@pytest.mark.parametrize(("unit", "mark", "layout"), kinds)
@pytest.mark.parametrize("padded", [False, True])
def test_no_token_leaves_its_document(unit: str, mark: int, layout: str, padded: bool) -> None:
    examples = a_text(20, 60, padded, apart=True)
    batch = TokenOrderRecipe(0.5, unit, bool(mark), layout).make_batch(examples, BARE, 0)  # type: ignore[arg-type]
    assert "attention_mask" not in batch
    for row, documents in enumerate(examples.documents):  # type: ignore[arg-type]
        texts = by_document(examples.tokens[row], documents)
        ids, segments, labels = (batch[name][row] for name in ("input_ids", "segment_ids", "labels"))
        assert (np.diff(segments[segments >= 0]) >= 0).all()  # each in one piece
        assert (np.diff((segments >= 0).astype(int)) <= 0).all()  # and padding last
        read, written = (
            by_document(ids, segments),
            by_document(labels, batch.get("decoder_segment_ids", batch["segment_ids"])[row]),
        )
        if layout == "encoder_decoder":  # of a bare row the end is the last document's
            last = max(len(texts) - 1, 0)
            assert [read[last].pop(), written[last].pop()] == [END, END]
            assert written == (texts or {0: []})
        for number, text in texts.items():
            if layout == "decoder":
                num = len(read[number]) - len(text)
                assert read[number][num:] == [END, *text[:-1]]
                assert written[number] == [IGNORED] * num + text
                del read[number][num:]
            assert Counter(token for token in read[number] if token != MASK) == Counter(text)


def test_all_orders_inside_of_each_document_are_equally_likely() -> None:
    n = 36_000
    documents = np.tile(np.repeat([0, 1], 3).astype(np.int32), (n, 1))
    examples = examples_of(np.tile(np.arange(20, 26), (n, 1)), documents=documents)
    batch = TokenOrderRecipe(ratio=1).make_batch(examples, BARE, 0)
    orders = Counter(map(tuple, batch["input_ids"].tolist()))
    each = [list(itertools.permutations(text)) for text in ((20, 21, 22), (23, 24, 25))]
    assert set(orders) == {(*one, *other) for one, other in itertools.product(*each)}
    assert chi_square(list(orders.values())) < 66.7  # 35 degrees of freedom: one in a thousand


def test_what_stands_around_belongs_to_the_first_and_last_document() -> None:
    documents = np.array([[0, 0, 1, 1, 1, -1], [0, 1, 2, 2, 2, 2]], np.int32)
    examples = examples_of(np.tile(np.arange(20, 26), (2, 1)), np.array([5, 6]), documents)
    segments = [[0, 0, 0, 1, 1, 1, 1, -1], [0, 0, 1, 2, 2, 2, 2, 2]]
    encoder = TokenOrderRecipe().make_batch(examples, VOCABULARY, 0)
    assert encoder["segment_ids"].tolist() == segments
    both = TokenOrderRecipe(layout="encoder_decoder").make_batch(examples, VOCABULARY, 0)
    assert both["segment_ids"].tolist() == both["decoder_segment_ids"].tolist() == segments


def test_documents_are_read_and_written_one_after_the_other() -> None:
    documents = np.array([[0, 0, 1, 1, 1, -1]], np.int32)
    examples = examples_of(np.array([[20, 21, 22, 23, 24, 0]]), np.array([5]), documents)
    for position in range(20):
        batch = TokenOrderRecipe(1, layout="decoder").make_batch(
            examples._replace(positions=np.array([position])), VOCABULARY, 0
        )
        [ids], [labels] = batch["input_ids"].tolist(), batch["labels"].tolist()
        assert (set(ids[:2]), ids[2:4]) == ({20, 21}, [END, 20])
        assert (set(ids[4:7]), ids[7:10]) == ({22, 23, 24}, [END, 22, 23])
        assert ids[10:] == [PAD, PAD]
        assert labels == [-100, -100, 20, 21, -100, -100, -100, 22, 23, 24, -100, -100]
        assert batch["segment_ids"].tolist() == [[0] * 4 + [1] * 6 + [-1] * 2]


def test_sentences_do_not_cross_what_is_special() -> None:
    stop = STOPS[-1]
    text = np.array([20, stop, 21, END, 22, stop, 23, stop, 24])
    batch = TokenOrderRecipe(unit="sentence").make_batch(examples_of(np.tile(text, (200, 1))), BARE, 0)
    orders = set(map(tuple, batch["input_ids"].tolist()))
    firsts = [(20, stop, 21), (21, 20, stop)]
    seconds = [tuple(itertools.chain(*order)) for order in itertools.permutations([(22, stop), (23, stop), (24,)])]
    assert orders == {(*first, END, *second) for first in firsts for second in seconds}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_is_masked_and_not_scored(layout: str) -> None:
    examples = examples_of(np.array([[20, 21, 22, 0, 0], [30, 31, 32, 33, 34]]), np.array([3, 5]))
    batch = TokenOrderRecipe(layout=layout).make_batch(examples, VOCABULARY, 0)  # type: ignore[arg-type]
    mask = {
        "encoder": [[1, 1, 1, 1, 1, 0, 0], [1] * 7],
        "encoder_decoder": [[1, 1, 1, 1, 1, 0, 0], [1] * 7],
        "decoder": [[1, 1, 1, 0, 0, 1, 1, 1, 0, 0], [1] * 10],
    }[layout]
    assert batch["attention_mask"].tolist() == mask
    hidden = batch["attention_mask"] == 0
    assert (batch["input_ids"][hidden] == PAD).all()
    assert (batch["labels"][hidden] == IGNORED).all()


@pytest.mark.parametrize(("unit", "mark", "layout"), kinds)
def test_a_full_row_among_padded_ones_is_made_like_others(unit: str, mark: int, layout: str) -> None:
    recipe = TokenOrderRecipe(0.15, unit, bool(mark), layout)  # type: ignore[arg-type]
    examples = a_text(5, 50)
    plain, padded = (
        recipe.make_batch(some, VOCABULARY, 0) for some in (examples, examples._replace(lengths=np.full(5, 50)))
    )
    for name, values in plain.items():
        assert (values == padded[name]).all()


# ------------------------------------------------------------------------------------------------ stateless noise


@pytest.mark.parametrize(("unit", "mark", "layout"), kinds)
@pytest.mark.parametrize(("padded", "apart"), [*itertools.product([False, True], repeat=2)])
def test_a_row_depends_on_no_other(unit: str, mark: int, layout: str, padded: bool, apart: bool) -> None:
    recipe = TokenOrderRecipe(0.15, unit, bool(mark), layout)  # type: ignore[arg-type]
    examples = a_text(7, 50, padded, apart, seed=3)
    together = recipe.make_batch(examples, VOCABULARY, 3)
    for some in (*(slice(i, i + 1) for i in range(7)), slice(2, 5), slice(None, None, -1)):
        separate = recipe.make_batch(examples.rows(some), VOCABULARY, 3)
        assert separate.keys() == together.keys()
        for name, values in separate.items():
            assert np.array_equal(values, together[name][some])


@pytest.mark.parametrize("unit", ["token", "sentence"])
def test_another_seed_epoch_or_position_gives_another_order(unit: str) -> None:
    text = a_text(1, 200, special=0).tokens.repeat(2, axis=0)
    recipe = TokenOrderRecipe(unit=unit)  # type: ignore[arg-type]
    rows = [
        recipe.make_batch(examples_of(text, epoch=epoch), BARE, seed)["input_ids"]
        for seed, epoch in ((0, 0), (1, 0), (0, 1))
    ]
    assert len({tuple(row) for row in np.concatenate(rows).tolist()}) == 6
    assert (recipe.make_batch(examples_of(text), BARE, 0)["input_ids"] == rows[0]).all()


@pytest.mark.parametrize(("unit", "mark", "layout"), kinds)
def test_tokens_are_left_as_they_were(unit: str, mark: int, layout: str) -> None:
    examples = a_text(3, 50, padded=True, apart=True)
    tokens, documents = examples.tokens.copy(), examples.documents.copy()  # type: ignore[union-attr]
    batch = TokenOrderRecipe(0.15, unit, bool(mark), layout).make_batch(examples, VOCABULARY, 0)  # type: ignore[arg-type]
    for values in batch.values():
        values[:] = 7
    assert np.array_equal(examples.tokens, tokens)
    assert np.array_equal(examples.documents, documents)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ settings


def test_what_is_needed_of_the_tokenizer() -> None:
    assert TokenOrderRecipe().special_tokens(64) == (False, True, 0)
    assert TokenOrderRecipe(mark=True).special_tokens(64).mask
    assert TokenOrderRecipe(layout="encoder_decoder").special_tokens(64).pad


@pytest.mark.parametrize("ratio", [0, 2, -0.1, float("nan")])
def test_a_ratio_that_is_no_share_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match=rf"--objective.ratio {ratio}: .* type --objective.ratio 0.15"):
        TokenOrderRecipe(ratio)


def test_unknown_units_and_layouts_are_refused() -> None:
    with pytest.raises(UserError, match=r"--objective.unit word: expected one of token, sentence"):
        TokenOrderRecipe(unit="word")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--objective.layout gpt: expected one of encoder, encoder_decoder, decoder"):
        TokenOrderRecipe(layout="gpt")  # type: ignore[arg-type]


def test_marked_sentences_are_refused() -> None:
    with pytest.raises(UserError, match=r"--objective.mark true: .* type --objective.unit token"):
        TokenOrderRecipe(unit="sentence", mark=True)


@pytest.mark.parametrize(("layout", "least"), [("encoder", 4), ("encoder_decoder", 4), ("decoder", 4)])
def test_a_seq_len_without_room_for_two_tokens_is_refused(layout: str, least: int) -> None:
    recipe = TokenOrderRecipe(layout=layout)  # type: ignore[arg-type]
    assert recipe.window_len(least, VOCABULARY) == 2
    for seq_len in (least - 1, 1):
        with pytest.raises(UserError, match=f"--seq_len {seq_len}: token_order needs room for two tokens"):
            recipe.window_len(seq_len, VOCABULARY)
