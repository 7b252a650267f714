"""The stream: windows, packing and documents against slow and obvious versions; ranks, workers and resumption."""

import copy
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sslm.config import DataConfig
from sslm.config.batch_sizes import BatchSizes
from sslm.config.ramp import parse_lengths, parse_ramp
from sslm.data.corpus.shards import BadShard, Corpus, Shard
from sslm.data.module import DataModule
from sslm.data.stream import batches, packing
from sslm.data.stream.amendments import Amendment
from sslm.data.stream.batches import Batch, Loader, TrainSteps, ValSteps, step_batch, with_tensors
from sslm.data.stream.packing import best_fit, pieces_of
from sslm.data.stream.recipe import Examples
from sslm.data.stream.stream import Stream
from sslm.data.stream.windows import split
from sslm.objectives.causal_lm import CausalLMRecipe
from sslm.system.errors import UserError
from tests.support.processes import run_command
from tests.support.streams import make_corpus, make_stream

DOCUMENTS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12), min_size=1, max_size=4)
few = settings(max_examples=30)


def a_folder(tmp_path: Path) -> Path:
    return tmp_path / str(len(list(tmp_path.iterdir())))


# ------------------------------------------------------------------------------------------------ windows


@given(length=st.integers(40, 3000), batch_tokens=st.integers(1, 39))
def test_no_training_window_touches_held_out_text(length: int, batch_tokens: int) -> None:
    corpus = Corpus(Path("."), "uint16", 9, "", "", (Shard("train-00000.bin", "train", length, 1, length, ""),))
    [training], [held_out] = split(corpus, batch_tokens)
    assert (training.start, held_out.end) == (0, length)
    assert training.end == held_out.start
    assert held_out.end - held_out.start == max(length // 100, batch_tokens)


def test_windows_are_the_shards_text_cut_at_the_stride(tmp_path: Path) -> None:
    stream = make_stream(make_corpus(tmp_path / "c", [[25], [3], [40]]))
    tokens = stream.read(stream.places_of(0, np.arange(stream.num_windows))).tokens.astype(int)
    assert stream.num_windows == 3 + 0 + 4
    assert tokens[:, 0].tolist() == [0, 8, 16, 28, 36, 44, 52]
    assert (np.diff(tokens, axis=1) == 1).all()
    assert stream.sources[0].windows.num_unread == 0 + 3 + 7  # type: ignore[union-attr]


@few
@given(shards=DOCUMENTS, documents=st.booleans())
def test_rows_from_one_shard_and_from_many_are_read_alike(
    tmp_path: Path, shards: list[list[int]], documents: bool
) -> None:
    stream = make_stream(make_corpus(a_folder(tmp_path), shards), window_len=5, stride=4, with_documents=documents)
    if not stream.num_windows:
        return
    together = stream.at(np.arange(2 * stream.num_windows))
    for row in range(len(together.tokens)):
        alone = stream.at(np.array([row]))
        assert (alone.tokens == together.tokens[row]).all()
        if documents:
            assert (alone.documents == together.documents[row]).all()  # type: ignore[index]


@few
@given(shards=DOCUMENTS)
def test_documents_in_a_window_are_those_of_its_tokens(tmp_path: Path, shards: list[list[int]]) -> None:
    lengths = [n for shard in shards for n in shard]
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    stream = make_stream(make_corpus(a_folder(tmp_path), shards), window_len=7, stride=6, with_documents=True)
    if not stream.num_windows:
        return
    examples = stream.at(np.arange(stream.num_windows))
    assert examples.documents is not None
    true = document_of[examples.tokens]
    assert (examples.documents == true - true[:, :1]).all()


# ------------------------------------------------------------------------------------------------ packing


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60), spare=st.integers(0, 9))
def test_best_fit_is_the_textbooks(lengths: list[int], spare: int) -> None:
    capacity = max(lengths) + spare
    room: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [(left, i) for i, left in enumerate(room) if left >= length]
        if fitting:
            room[min(fitting)[1]] -= length
        else:
            room.append(capacity - length)
    bins = best_fit(np.array(lengths), capacity)
    filled = np.bincount(bins, lengths)
    assert filled.max() <= capacity
    assert sorted(filled.tolist()) == sorted(capacity - left for left in room)


@few
@given(shards=DOCUMENTS, window_len=st.integers(2, 12), at_once=st.integers(1, 5), overlap=st.integers(0, 1))
def test_packed_windows_hold_every_token_and_whole_documents_where_they_fit(
    tmp_path: Path, shards: list[list[int]], window_len: int, at_once: int, overlap: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "DOCUMENTS_AT_ONCE", at_once)
        corpus = make_corpus(a_folder(tmp_path), shards)
        stream = make_stream(
            corpus, window_len=window_len, stride=window_len - overlap, best_fit=True, with_documents=True
        )
    examples = stream.at(np.arange(stream.num_windows))
    documents = examples.documents
    assert documents is not None
    is_token = examples.is_token if examples.is_token is not None else np.ones(examples.tokens.shape, bool)
    assert ((documents >= 0) == is_token).all()
    assert set(examples.tokens[is_token].tolist()) == set(range(corpus.num_tokens))
    if not overlap:
        assert is_token.sum() == corpus.num_tokens
    lengths = [n for shard in shards for n in shard]
    start = 0
    for length in lengths:
        if length <= window_len:  # whole: in one row, in order, under one number
            row, column = np.argwhere((examples.tokens == start) & is_token)[0]
            assert examples.tokens[row, column : column + length].tolist() == list(range(start, start + length))
            assert len(set(documents[row, column : column + length].tolist())) == 1
        start += length


def test_packing_plan_is_made_once_and_beside_the_shards(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", [[5, 6, 7]])
    make_stream(corpus, best_fit=True)
    [plan] = (corpus.folder / "packing").iterdir()
    before = (plan / "plan.json").stat().st_mtime_ns
    make_stream(corpus, best_fit=True)
    assert (plan / "plan.json").stat().st_mtime_ns == before
    make_stream(corpus, best_fit=True, window_len=5, stride=4)
    assert len(list((corpus.folder / "packing").iterdir())) == 2


def test_tiny_and_empty_documents_pack() -> None:
    starts, lengths = pieces_of(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2]), 8, 7)
    assert (starts.tolist(), lengths.tolist()) == ([0, 1], [1, 1])


# ------------------------------------------------------------------------------------------------ ranks and resumption


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    """Two sources of several shards, packed, with stages; epochs of both end within a few steps."""
    folder = tmp_path_factory.mktemp("mixed")
    chance = np.random.default_rng(0)
    corpora = [
        make_corpus(folder / name, [chance.integers(1, 30, 20).tolist() for _ in range(3)], first)
        for name, first in (("a", 0), ("b", 50_000))
    ]
    return make_stream(*corpora, weights=((0, (3, 1)), (50, (1, 2))), best_fit=True, with_documents=True)


GROWING = BatchSizes.of(parse_ramp("batch_size", "24, 48 from 240 tokens, 72 from 960 tokens"), parse_lengths(1))


@given(world=st.sampled_from([1, 2, 3, 4, 8]), step=st.integers(0, 60))
@few
def test_ranks_share_each_batch_in_order_whatever_their_number(mixed: Stream, world: int, step: int) -> None:
    def batch(rank: int, world: int) -> dict[str, object]:
        made = with_tensors(TrainSteps(mixed, CausalLMRecipe(), GROWING, 0, rank, world)[step])
        return step_batch(made, 2, with_digest=True) | {"positions": made["positions"]}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "PLACES_AT_ONCE", 48)
        whole, shares = batch(0, 1), [batch(rank, world) for rank in range(world)]
    for name in ("input_ids", "labels", "segment_ids"):
        joined = np.concatenate([share["tensors"][name] for share in shares])  # type: ignore[index]
        assert (joined == whole["tensors"][name].numpy()).all()  # type: ignore[index]
    assert sum(share["digest"] for share in shares) % 2**64 == whole["digest"]  # type: ignore[misc]
    assert np.sum([share["scored"] for share in shares], axis=0).tolist() == whole["scored"]
    positions = np.concatenate([share["positions"] for share in shares]).tolist()  # type: ignore[misc]
    assert positions == list(range(GROWING.position_at(step), GROWING.position_at(step + 1)))


@pytest.mark.parametrize("world", [1, 2])
def test_validation_scores_each_window_once(tmp_path: Path, world: int) -> None:
    stream = make_stream(make_corpus(tmp_path / "c", [[9 + 8 * 10]]))
    labels = []
    for rank in range(world):
        steps = ValSteps(
            stream, CausalLMRecipe(), BatchSizes.even(4), 0, rank, world, places=stream.places_of(0, np.arange(11))
        )
        labels += [steps[step]["tensors"]["labels"] for step in range(steps.num_steps)]
    scored = np.concatenate(labels).ravel()
    assert sorted(scored[scored >= 0]) == list(range(1, 89))


def test_loader_processes_give_the_same_batches(text: Path, cache: Path) -> None:
    def digests(workers: int) -> list[int]:
        data = DataModule(
            DataConfig(train=str(text), tokenizer="bpe:512", cache_dir=str(cache), num_workers=workers),
            CausalLMRecipe(),
            seq_len=32,
            batch_size=4,
            total_steps=6,
        )
        data.setup()
        data.first_step = 2
        return [step_batch(batch, 1, with_digest=True)["digest"] for batch in data.train_dataloader()]

    assert digests(0) == digests(2)
    assert len(digests(0)) == 4


def test_a_batch_made_ahead_is_the_one_that_comes_and_goes_when_the_stream_is_amended(mixed: Stream) -> None:
    def digest(steps: TrainSteps, step: int) -> int:
        return step_batch(with_tensors(steps[step]), 2, with_digest=True)["digest"]

    ahead, plain = (TrainSteps(mixed, CausalLMRecipe(), BatchSizes.even(4), 0) for _ in range(2))
    for step in (0, 1, 2, 7, 3):
        ahead.make_ahead(step)
        made = ahead._ahead[step]
        assert ahead[step] is made
        assert digest(ahead, step) == digest(plain, step)
    ahead.make_ahead(4)
    ahead.forget()
    assert not ahead._ahead


def test_an_error_met_ahead_of_a_step_is_raised_in_its_turn(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus", [[400], [400]])
    steps = TrainSteps(make_stream(corpus), CausalLMRecipe(), BatchSizes.even(2), seed=0)
    for file in (tmp_path / "corpus").iterdir():
        file.unlink()
    steps.make_ahead(0)
    with pytest.raises(BadShard):
        steps[0]


def test_loader_processes_read_packed_mixtures_and_batches_that_grow_alike(mixed: Stream) -> None:
    def steps() -> TrainSteps:
        return TrainSteps(mixed, CausalLMRecipe(), GROWING, 0)

    def digests(made: Iterable[Batch]) -> list[int]:
        return [step_batch(batch, 2, with_digest=True)["digest"] for batch in made]

    loader = Loader(steps(), 3, 30)
    assert len(loader) == 27
    assert digests(loader) == digests(with_tensors(steps()[step]) for step in range(3, 30))
    assert digests(Loader(steps(), 8, 12, num_workers=2)) == digests(loader)[5:9]


def test_causal_lm_batch_is_the_docstrings_example() -> None:
    tokens, zero = np.array([[7, 1, 5, 2, 9]]), np.array([0])
    batch = CausalLMRecipe().make_batch(Examples(tokens, zero, zero, zero), None, 0)
    assert batch["input_ids"].tolist() == [[7, 1, 5, 2]]
    assert batch["labels"].tolist() == [[1, 5, 2, 9]]
    documents = np.array([[0, 0, 1, 1, 1]], np.int32)
    batch = CausalLMRecipe().make_batch(Examples(tokens, zero, zero, zero, documents=documents), None, 0)
    assert batch["labels"].tolist() == [[1, -100, 2, 9]]
    assert batch["segment_ids"].tolist() == [[0, 0, 1, 1]]
    batch = CausalLMRecipe().make_batch(Examples(tokens, zero, zero, zero, lengths=np.array([3])), None, 0)
    assert batch["labels"].tolist() == [[1, 5, -100, -100]]


# ------------------------------------------------------------------------------------------------ amendments


def test_bad_shard_is_replaced_from_its_position_on_and_nowhere_else(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", [[80], [80], [80]])
    before, after = make_stream(corpus), make_stream(corpus)
    after.amend(Amendment(20, "a", "train-00001.bin", "bit rot"))
    positions = np.arange(60)
    was, now = before.at(positions).tokens, after.at(positions).tokens
    from_bad = (was[:, 0] >= 80) & (was[:, 0] < 160)
    replaced = from_bad & (positions >= 20)
    assert replaced.sum() > 5
    assert (now[~replaced] == was[~replaced]).all()
    assert (now[replaced] >= 160).all()
    for bad in ("train-00000.bin", "train-00002.bin"):
        if bad == "train-00002.bin":
            with pytest.raises(UserError, match="every shard is bad"):
                after.amend(Amendment(30, "a", bad, "bit rot"))
        else:
            after.amend(Amendment(30, "a", bad, "bit rot"))


def test_what_was_read_before_another_shard_turned_bad_is_read_so_again(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "c", [[80], [80], [80], [80]])
    one, both = make_stream(corpus), make_stream(corpus)
    for stream in (one, both):
        stream.amend(Amendment(10, "a", "train-00001.bin", "bit rot"))
    both.amend(Amendment(40, "a", "train-00002.bin", "bit rot"))  # into which the first was replaced
    positions = np.arange(90)
    before, after = one.at(positions).tokens, both.at(positions).tokens
    assert (after[:40] == before[:40]).all()
    assert ((after[10:40] >= 160) & (after[10:40] < 240)).any()
    assert not ((after[40:] >= 80) & (after[40:] < 240)).any()


def test_ids_past_the_vocabulary_are_damage(tmp_path: Path) -> None:
    stream = make_stream(make_corpus(tmp_path / "c", [[80], [80]]))
    stream.vocab_size = 100
    with pytest.raises(UserError, match=r"train-00001\.bin .* the vocabulary has 100 entries"):
        stream.at(np.arange(20))


def test_tokens_added_after_the_corpus_own_pass_between_processes_unharmed(mixed: Stream) -> None:
    from dataclasses import replace

    from tests.support.vocabularies import bare

    size = 1 << 15
    narrow = copy.copy(mixed)
    narrow.vocab_size = size
    more = replace(bare(), special=np.zeros(size + 1, bool))
    recipe = CausalLMRecipe()
    for vocabulary, kind in ((None, np.int16), (more, np.int32)):
        loader = Loader(TrainSteps(narrow, recipe, BatchSizes.even(4), 0, vocabulary=vocabulary), 0, 1, num_workers=1)
        assert loader.workers is not None
        assert loader.workers.dataset.kind == kind  # type: ignore[attr-defined]


STOP_LOADERS = """
import multiprocessing, os, signal, sys
from pathlib import Path
from sslm.config.batch_sizes import BatchSizes
from sslm.data.stream.batches import Loader, TrainSteps
from sslm.objectives.causal_lm import CausalLMRecipe
from tests.support.processes import run_command
from tests.support.streams import make_corpus, make_stream
steps = TrainSteps(make_stream(make_corpus(Path(sys.argv[1]), [[400]])), CausalLMRecipe(), BatchSizes.even(2), seed=0)
loader = Loader(steps, first=0, end=4, num_workers=1)
print(len(list(loader)))
for process in multiprocessing.active_children():
    os.kill(process.pid, signal.SIGSTOP)
    print("stopped")
"""


def test_loader_process_that_somebody_stopped_holds_no_end(tmp_path: Path) -> None:
    done = run_command(["-c", STOP_LOADERS, str(tmp_path / "c")], timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "stopped"]
