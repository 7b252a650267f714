"""Noise in the stream: what it does to tokens, words and documents, and that it knows nothing but the position."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase

from sslm.config import DataConfig, SourceConfig
from sslm.config.augment import parse_augment
from sslm.config.batch_sizes import BatchSizes
from sslm.data.module import DataModule
from sslm.data.stream.augmentation.augmenter import Augmenter
from sslm.data.stream.augmentation.documents import joined
from sslm.data.stream.augmentation.making import augmenters_of
from sslm.data.stream.augmentation.words import Spelling, reworded
from sslm.data.stream.batches import Loader, TrainSteps, step_batch, with_tensors
from sslm.data.stream.recipe import Examples
from sslm.data.stream.stream import Stream
from sslm.data.stream.streams import open_streams
from sslm.data.stream.vocabulary import vocabulary_of
from sslm.objectives.causal_lm import CausalLMRecipe
from sslm.objectives.classification import ClassificationRecipe
from sslm.objectives.masked_lm import MaskedLMRecipe
from sslm.system.errors import UserError
from tests.support.streams import make_corpus, make_stream
from tests.support.vocabularies import TEXTS, save_tokenizer

EVERYTHING = "crop 0.3, join 0.3, token_dropout 0.1, token_swap 0.2, token_repeat 0.1, token_insert 0.1"
WORDS = "lowercase 0.3, uppercase 0.2, no_punctuation 0.3, typography 0.3, typos 0.2, ocr 0.2"
END = 1
few = settings(max_examples=30)


def windows_of(folder: Path, augment: str, **other: Any) -> tuple[Examples, Examples]:
    """All windows of 64 tokens of a corpus of documents of 1 to 90, with and without noise."""
    lengths = np.random.default_rng(0).integers(1, 90, 60).tolist()
    corpus = make_corpus(folder, [lengths, lengths[:20]])
    how: dict[str, Any] = {"window_len": 64, "stride": 63, "with_documents": True} | other
    plain, noisy = make_stream(corpus, **how), make_stream(corpus, **how, augment=augment)
    numbers = np.arange(plain.num_windows)
    return plain.at(numbers).rows(slice(None)), noisy.at(numbers).rows(slice(None))


def share_that(which: np.ndarray[Any, Any]) -> float:
    return float(which.mean())


# ------------------------------------------------------------------------------------------------ tokens


def test_dropped_tokens_are_followed_by_the_text_after_the_window(tmp_path: Path) -> None:
    was, now = windows_of(tmp_path / "c", "token_dropout 0.1")
    assert now.lengths is None
    assert now.tokens.shape == was.tokens.shape
    gaps = np.diff(now.tokens)  # tokens count up through the corpus
    assert (gaps > 0).all()
    assert share_that(gaps > 1) == pytest.approx(0.1, abs=0.02)
    assert ((now.tokens[:, 0] - was.tokens[:, 0]) < 5).all()


def test_swapped_tokens_are_neighbours_of_a_document_and_move_once(tmp_path: Path) -> None:
    was, now = windows_of(tmp_path / "c", "token_swap 0.3")
    assert (now.documents == was.documents).all()
    moved = now.tokens - was.tokens
    assert set(np.unique(moved)) == {-1, 0, 1}
    assert (np.sort(now.tokens) == was.tokens).all()
    assert share_that(moved != 0) == pytest.approx(0.3, abs=0.03)
    _, all_moved = windows_of(tmp_path / "d", "token_swap 1")
    pairs = all_moved.tokens[:, :2][was.documents[:, 2] == 0]  # type: ignore[index]
    assert (pairs[:, 0] == pairs[:, 1] + 1).all()


def test_repeated_and_inserted_tokens_lengthen_a_window_which_is_cut(tmp_path: Path) -> None:
    was, now = windows_of(tmp_path / "c", "token_repeat 0.2")
    steps = np.diff(now.tokens)
    assert set(np.unique(steps)) == {0, 1}
    assert share_that(steps == 0) == pytest.approx(1 / 6, abs=0.02)
    was, now = windows_of(tmp_path / "d", "token_insert 0.2")
    inserted = 0
    for row, plain in zip(now.tokens, was.tokens, strict=True):
        assert set(row.tolist()) <= set(range(plain[0], plain[0] + 66))  # of the same window
        expected = int(plain[0])
        for token in row.tolist():
            inserted += token != expected
            expected += token == expected
    assert inserted / now.tokens.size == pytest.approx(1 / 6, abs=0.02)


# ------------------------------------------------------------------------------------------------ documents


def test_a_crop_is_a_run_of_half_a_document_or_more(tmp_path: Path) -> None:
    was, now = windows_of(tmp_path / "c", "crop 1")
    assert was.documents is not None
    assert now.documents is not None
    for tokens, documents in zip(now.tokens, now.documents, strict=True):
        assert (np.diff(documents) >= 0).all()
        for number in range(documents[-1]):  # the last may go on after the window
            inside = tokens[documents == number][:-1]  # its last token is its end, which stays
            assert (np.diff(inside) == 1).all()
    assert share_that(np.diff(now.tokens) > 1) > 0.01
    gone = now.tokens[:, -1] - now.tokens[:, 0] - 63
    assert gone.max() <= 64


def test_joined_documents_are_one_without_the_end_between_them(tmp_path: Path) -> None:
    lengths = [7] * 60
    corpus = make_corpus(tmp_path / "c", [lengths])
    special = np.arange(1 << 17) % 7 == 6  # each document's last
    streams = [make_stream(corpus, window_len=32, stride=31, with_documents=True) for _ in range(2)]
    plain, noisy = streams
    noisy._augmenters[0] = Augmenter(parse_augment("join 0.5"), 0, special, None)
    noisy._num_read = 64
    was, now = (stream.at(np.arange(plain.num_windows - 2)) for stream in streams)
    assert was.documents is not None
    assert now.documents is not None
    edges = np.diff(now.documents) > 0
    ends = special[now.tokens[:, :-1]]
    assert (edges == ends).all()
    assert (np.diff(now.tokens)[~edges] <= 2).all()
    assert 0.3 < edges.sum() / (np.diff(was.documents) > 0).sum() < 0.7


@pytest.mark.parametrize("best_fit", [False, True])
def test_special_tokens_and_the_edges_of_documents_stay(tmp_path: Path, best_fit: bool) -> None:
    noise = EVERYTHING.replace("join 0.3, ", "")
    was, now = windows_of(tmp_path / "c", noise, best_fit=best_fit)
    assert was.documents is not None
    assert now.documents is not None
    assert (now.lengths is not None) == best_fit
    for row in range(len(was.tokens)):
        tokens, documents = (part[row][now.documents[row] >= 0] for part in (now.tokens, now.documents))
        assert now.lengths is None or len(tokens) == now.lengths[row]
        ends = tokens[np.flatnonzero(np.diff(documents))]
        assert set(np.diff(documents)) <= {0, 1}
        plain_ends = was.tokens[row][:-1][(np.diff(was.documents[row]) > 0)]
        assert ends.tolist()[: len(plain_ends)] == plain_ends.tolist()[: len(ends)]


# ------------------------------------------------------------------------------------------------ words


def encoded(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Examples:
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    lengths = np.array([len(row) for row in rows])
    tokens = np.zeros((len(rows), lengths.max()), np.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    documents = np.where(np.arange(tokens.shape[1]) < lengths[:, None], 0, -1).astype(np.int32)
    numbers = np.arange(len(rows))
    return Examples(tokens, numbers, np.zeros_like(numbers), np.zeros_like(numbers), lengths, documents)


def written(tokenizer: PreTrainedTokenizerBase, examples: Examples) -> list[str]:
    assert examples.lengths is not None
    return [
        tokenizer.decode(row[:length], clean_up_tokenization_spaces=False).replace(" ##", "")
        for row, length in zip(examples.tokens.tolist(), examples.lengths.tolist(), strict=True)
    ]


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "t5"])
def test_words_are_edited_with_any_tokenizer(tmp_path: Path, kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_tokenizer(kind, tmp_path / kind))
    spelling = Spelling(tokenizer, vocabulary_of(tokenizer), len(tokenizer))
    plain = encoded(tokenizer, TEXTS[:4])
    texts = written(tokenizer, plain)

    def noisy(**shares: float) -> list[str]:
        return written(tokenizer, reworded(plain, shares, spelling, 0))

    assert noisy(lowercase=1.0) == [text.lower() for text in texts]
    assert noisy(no_punctuation=1.0) != texts
    assert not set(',.;!"') & set("".join(noisy(no_punctuation=1.0)))
    misspelt = noisy(typos=1.0)
    for text, other in zip(texts, misspelt, strict=True):
        same = [a == b for a, b in zip(text.split(), other.split(), strict=False)]
        assert sum(same) < len(same) / 2
        assert abs(len(text) - len(other)) <= len(text.split())
    few_words = [
        sum(a != b for a, b in zip(text.split(), other.split(), strict=False))
        for text, other in zip(texts, noisy(typos=0.1), strict=True)
    ]
    assert 0 < sum(few_words) < 12


def test_edited_text_has_the_tokens_that_it_would_have_as_a_whole(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_tokenizer("gpt2", tmp_path / "gpt2"))
    spelling = Spelling(tokenizer, vocabulary_of(tokenizer), len(tokenizer))
    plain = encoded(tokenizer, TEXTS * 4)
    for shares in ({"typos": 0.5}, {"uppercase": 1.0}, {"ocr": 1.0}, {"typography": 1.0, "lowercase": 0.5}):
        now = reworded(plain, shares, spelling, 1)
        again = encoded(tokenizer, written(tokenizer, now))
        same = [a.tolist() == b[: len(a)].tolist() for a, b in zip(again.tokens, now.tokens, strict=False)]
        assert written(tokenizer, now) != written(tokenizer, plain)
        assert np.mean(same) > 0.8, shares


def test_a_character_cut_at_an_edge_stays_as_it_is(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_tokenizer("gpt2", tmp_path / "gpt2"))
    spelling = Spelling(tokenizer, vocabulary_of(tokenizer), len(tokenizer))
    whole = encoded(tokenizer, ["🙂"])
    half = whole._replace(tokens=whole.tokens[:, 1:], lengths=whole.lengths - 1, documents=whole.documents[:, 1:])  # type: ignore[operator, index]
    assert (reworded(half, {"uppercase": 1.0}, spelling, 0).tokens == half.tokens).all()
    assert spelling.text(tuple(half.tokens[0].tolist())) is None


# ------------------------------------------------------------------------------------------------ purity


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    """Two sources, noise in the first."""
    folder = tmp_path_factory.mktemp("mixed")
    chance = np.random.default_rng(0)
    corpora = [
        make_corpus(folder / name, [chance.integers(1, 30, 20).tolist() for _ in range(3)], first)
        for name, first in (("a", 0), ("b", 50_000))
    ]
    return make_stream(*corpora, weights=((0, (3, 1)),), with_documents=True, augment=EVERYTHING)


@given(rows=st.lists(st.integers(0, 400), min_size=1, max_size=12))
@few
def test_a_row_is_the_same_alone_and_among_any_others(mixed: Stream, rows: list[int]) -> None:
    together = mixed.at(np.array(rows))
    assert together.documents is not None
    for number, row in enumerate(rows):
        alone = mixed.at(np.array([row]))
        assert alone.documents is not None
        assert (alone.tokens[0] == together.tokens[number]).all()
        assert (alone.documents[0] == together.documents[number]).all()


def test_a_row_with_more_documents_takes_no_end_from_another() -> None:
    tokens, documents = np.array([[5, END, 6, END], [5, 6, 7, 8]]), np.array([[0, 0, 1, 1], [0, 1, 2, 3]], np.int32)
    zeros, special = np.zeros(2, np.int64), np.arange(9) == END
    for position in range(20):
        both = Examples(tokens, np.full(2, position), zeros, zeros, np.full(2, 4), documents)
        together, alone = (joined(some, 0.5, special[some.tokens], 0) for some in (both, both.rows(slice(1))))
        assert together.tokens[0, : alone.tokens.shape[1]].tolist() == alone.tokens[0].tolist()
        assert together.tokens[0, together.lengths[0] - 1] == END  # type: ignore[index]


def test_noise_is_another_in_each_epoch_and_for_each_seed(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", [[40] * 10])
    streams = [make_stream(corpus, augment="token_dropout 0.2", window_len=33, stride=32, seed=n) for n in (0, 0, 1)]
    num = streams[0].num_windows
    first, again, other = (
        {int(row[0]): row.tolist() for row in stream.at(np.arange(num)).tokens} for stream in streams
    )
    second = {int(row[0]): row.tolist() for row in streams[0].at(np.arange(num, 2 * num)).tokens}
    assert first == again
    assert all(first[start] != second[start] for start in first.keys() & second.keys())
    assert first != other


def test_ranks_loader_processes_and_batches_of_another_size_share_noisy_text(mixed: Stream) -> None:
    def digest(made: Any) -> int:
        return step_batch(made, 2, with_digest=True)["digest"]

    def digests(size: int, world: int, steps: int) -> list[int]:
        ranks = [TrainSteps(mixed, CausalLMRecipe(), BatchSizes.even(size), 0, rank, world) for rank in range(world)]
        return [sum(digest(with_tensors(rank[step])) for rank in ranks) % 2**64 for step in range(steps)]

    whole = digests(8, 1, 6)
    halves = digests(4, 1, 12)
    assert digests(8, 4, 6) == whole
    assert [(a + b) % 2**64 for a, b in zip(halves[::2], halves[1::2], strict=True)] == whole
    loader = Loader(TrainSteps(mixed, CausalLMRecipe(), BatchSizes.even(8), 0), 2, 6, num_workers=2)
    assert [digest(batch) for batch in loader] == whole[2:]


def opened(text: Path, cache: Path, augment: str | None, **other: Any) -> Any:
    data = DataConfig(train=str(text), tokenizer="bpe:512", cache_dir=str(cache), augment=augment, **other)
    return open_streams(data, CausalLMRecipe(), seq_len=32, batch_size=4)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_noise_in_words_is_the_positions_alone_and_never_in_held_out_text(
    text: Path, cache: Path, packing: str
) -> None:
    plain, noisy = (opened(text, cache, augment, packing=packing) for augment in (None, f"{WORDS}, {EVERYTHING}"))
    positions = np.arange(200)
    rows = noisy.train.at(positions)
    assert (rows.tokens == pickle.loads(pickle.dumps(noisy.train)).at(positions).tokens).all()
    for row in range(0, 200, 9):
        assert (rows.tokens[row] == noisy.train.at(positions[row : row + 1]).tokens[0]).all()
    assert share_that((rows.tokens == plain.train.at(positions).tokens).all(axis=1)) < 0.1
    held_out = noisy.val.places_of(0, np.arange(noisy.val.num_windows))
    assert (noisy.val.read(held_out).tokens == plain.val.read(held_out).tokens).all()
    assert "augment" not in str(noisy.val.fingerprint())
    assert noisy.train.fingerprint()["sources"][""]["augment"].startswith("crop 0.3")


def test_the_last_window_of_a_region_stays_as_it_is(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", [[1 + 8 * 8]])  # nothing follows its last window
    plain, noisy = (make_stream(corpus, augment=augment) for augment in (None, "token_dropout 0.5"))
    last = plain.places_of(0, np.array([7]))
    assert (plain.read(last).tokens == noisy.read(last).tokens).all()
    others = plain.places_of(0, np.arange(4))
    assert (plain.read(others).tokens != noisy.read(others).tokens).any()


def test_each_source_of_a_mixture_has_its_own_noise(text: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(text.read_text())
    paths = {"one": text, "two": tmp_path / "other.txt"}
    sources = [SourceConfig(str(path), name=name) for name, path in paths.items()]
    sources[1] = SourceConfig(sources[1].path, name="two", augment="none")
    how = {"tokenizer": "bpe:512", "cache_dir": str(cache)}
    streams = [
        open_streams(DataConfig(sources=sources, augment=augment, **how), CausalLMRecipe(), 32, 4).train  # type: ignore[arg-type]
        for augment in (None, "typos 0.5, token_dropout 0.1")
    ]
    plain, noisy = (stream.at(np.arange(100)) for stream in streams)
    same = (plain.tokens == noisy.tokens).all(axis=1)
    assert same[plain.sources == 1].all()
    assert not same[plain.sources == 0].any()


@pytest.mark.parametrize("recipe", [CausalLMRecipe(), MaskedLMRecipe()])
@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_batches_of_every_shape_are_made_of_noisy_windows(text: Path, cache: Path, recipe: Any, packing: str) -> None:
    data = DataConfig(
        train=str(text),
        tokenizer="bpe:512",
        cache_dir=str(cache),
        augment=f"{WORDS}, {EVERYTHING}",
        packing=packing,
        document_mask=True,  # type: ignore[arg-type]
    )
    lengths = 32 if packing == "best_fit" else "8, 32 from 500 tokens"
    module = DataModule(data, recipe, seq_len=lengths, batch_size=4, total_steps=30)
    module.setup()
    batches = [batch["tensors"] for batch in module.train_dataloader()]
    assert len(batches) == 30
    assert batches[-1]["input_ids"].shape == (4, 32)
    assert all(int(batch["input_ids"].max()) < module.vocab_size for batch in batches)


# ------------------------------------------------------------------------------------------------ refused


def test_noise_in_words_needs_a_tokenizer_and_noise_in_tokens_none(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(20_000, dtype=np.uint16) % 1000)
    data = {"train": str(tmp_path / "ids.npy"), "cache_dir": str(tmp_path / "cache"), "end_id": 999}
    with pytest.raises(
        UserError, match=r"typos edits text, and the corpus is ids without a tokenizer; give --data.tokenizer"
    ):
        open_streams(DataConfig(**data, augment="typos 0.1"), CausalLMRecipe(), 32, 4)  # type: ignore[arg-type]
    stream = open_streams(DataConfig(**data, augment="token_dropout 0.1"), CausalLMRecipe(), 32, 4).train  # type: ignore[arg-type]
    tokens = stream.at(np.arange(200)).tokens.astype(int)
    assert (np.diff(tokens) % 1000 < 6).all()
    before = tokens[:, :-1][np.diff(tokens) < 0]
    assert (before == 999).all()  # ends of documents stay


def test_typing_errors_need_a_tokenizer_that_tells_words_apart(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path / "bytes")
    corpora = [make_corpus(tmp_path / "c", [[80]])]
    with pytest.raises(UserError, match=r"--data.augment typos 0.1: .* don't say where words begin"):
        augmenters_of(DataConfig(augment="typos 0.1"), corpora, str(tmp_path / "bytes"), 0)
    assert augmenters_of(DataConfig(augment="lowercase 0.1"), corpora, str(tmp_path / "bytes"), 0) != [None]


def test_labelled_rows_have_no_noise(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "some text,yes\nother text,no\n" * 50)
    with pytest.raises(
        UserError, match=r"--data.augment typos 0.1: is for running text, and labelled rows are read as they are"
    ):
        open_streams(DataConfig(train=str(tmp_path / "a.csv"), augment="typos 0.1"), ClassificationRecipe(), 32, 4)
