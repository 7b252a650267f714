"""Windows cut into short sequences: which tokens they have, on any number of ranks and from any step on."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.config import DataConfig
from sslm.config.batch_sizes import BatchSizes
from sslm.config.ramp import parse_lengths, parse_ramp
from sslm.data.module import DataModule
from sslm.data.stream.batches import Batch, Loader, TrainSteps, step_batch, with_tensors
from sslm.data.stream.noise import words
from sslm.data.stream.pieces import Pieces, cut, pieces_of
from sslm.data.stream.recipe import Examples, Recipe
from sslm.data.stream.stream import Stream
from sslm.data.stream.vocabulary import Vocabulary
from sslm.objectives.causal_lm import CausalLMRecipe
from sslm.objectives.classification import ClassificationRecipe
from sslm.objectives.masked_lm import MaskedLMRecipe
from sslm.objectives.span_corruption import SpanCorruptionRecipe
from sslm.system.errors import UserError
from tests.support.streams import make_corpus, make_stream
from tests.support.vocabularies import bare

SHORT_AT_FIRST = BatchSizes.of(
    parse_ramp("batch_size", "12, 24 from 1000 tokens"), parse_lengths("2, 4 from 600 tokens, 8 from 1500 tokens")
)
"""Of windows of 8: 7 steps of 48 pieces and 4 of 24, then 3 of 48 and from there on whole windows."""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Stream:
    folder = tmp_path_factory.mktemp("mixed")
    corpora = [make_corpus(folder / name, [[900], [500, 400]], first) for name, first in (("a", 0), ("b", 50_000))]
    return make_stream(*corpora, weights=((0, (3, 1)), (100, (1, 2))), with_documents=True)


def examples_of(window_len: int, num: int = 3) -> Examples:
    tokens = np.random.default_rng(0).integers(5, 100, (num, window_len))
    return Examples(tokens, np.arange(num) + 7, np.full(num, 2), np.arange(num) % 2)


@given(short=st.sampled_from([1, 2, 4, 8, 16, 32]), documents=st.booleans())
def test_pieces_of_a_causal_window_predict_each_of_its_tokens_once(short: int, documents: bool) -> None:
    recipe, examples = CausalLMRecipe(), examples_of(33)
    if documents:
        examples = examples._replace(documents=np.repeat(np.arange(3, dtype=np.int32), 11)[None].repeat(3, axis=0))
    pieces = cut(examples, pieces_of(recipe, None, 33, short, 32 // short))
    whole, parts = (recipe.make_batch(some, None, 0) for some in (examples, pieces))
    assert (parts["input_ids"].reshape(3, 32) == whole["input_ids"]).all()
    assert (parts["labels"].reshape(3, 32) == whole["labels"]).all()
    assert parts["input_ids"].shape == (3 * 32 // short, short)
    if documents:  # the same places are of one document, which are numbered from 0 in each row
        assert (parts["segment_ids"][:, 0] == 0).all()
        assert (np.diff(parts["segment_ids"]) == np.diff(whole["segment_ids"].reshape(-1, short))).all()


@pytest.mark.parametrize(
    ("recipe", "longest", "short"), [(MaskedLMRecipe(), 512, 128), (SpanCorruptionRecipe(), 512, 128)]
)
def test_few_tokens_are_left_out_where_special_ones_are_added(recipe: Recipe, longest: int, short: int) -> None:
    vocabulary: Vocabulary = bare()
    window_len = recipe.window_len(longest, vocabulary)
    pieces = pieces_of(recipe, vocabulary, window_len, short, longest // short)
    assert pieces.num == longest // short
    assert 0 <= window_len - pieces.num_read < 0.02 * window_len
    examples = examples_of(window_len)
    tokens = cut(examples, pieces).tokens.reshape(3, -1)
    assert (tokens == examples.tokens[:, : pieces.num_read]).all()
    if isinstance(recipe, MaskedLMRecipe):
        assert (window_len, pieces) == (510, Pieces(4, 126, 126))
        made = recipe.make_batch(cut(examples, pieces), vocabulary, 0)
        assert made["input_ids"].shape == (12, 128)


def test_each_piece_has_noise_of_its_own_and_the_source_of_its_window() -> None:
    pieces = cut(examples_of(33), Pieces(4, 9, 8))
    assert pieces.positions.tolist() == list(range(7 * 4, 10 * 4))
    assert pieces.sources.tolist() == [0] * 4 + [1] * 4 + [0] * 4
    assert pieces.epochs.tolist() == [2] * 12
    assert len(np.unique(words(pieces, 9, 0, "test"))) == 12 * 9


@given(world=st.sampled_from([1, 2, 3, 4, 6]), step=st.integers(0, 30))
def test_ranks_share_the_pieces_of_a_batch_in_order(mixed: Stream, world: int, step: int) -> None:
    def shares(world: int) -> list[Batch]:
        return [TrainSteps(mixed, CausalLMRecipe(), SHORT_AT_FIRST, 0, rank, world)[step] for rank in range(world)]

    [whole], parts = shares(1), shares(world)
    for name, array in whole["tensors"].items():
        assert (np.concatenate([part["tensors"][name] for part in parts]) == array).all()
    assert np.concatenate([part["sources"] for part in parts]).tolist() == whole["sources"].tolist()
    made, *others = (step_batch(with_tensors(share), 2, with_digest=True) for share in (whole, *parts))
    assert made.get("pieces", 1) == SHORT_AT_FIRST.leg_at(step).pieces
    assert sum(share["digest"] for share in others) % 2**64 == made["digest"]
    assert len(whole["sources"]) == SHORT_AT_FIRST.leg_at(step).rows
    every = SHORT_AT_FIRST.position_at(step), SHORT_AT_FIRST.position_at(step + 1)
    ids = mixed.at(np.arange(*every)).tokens[:, :-1]
    assert (whole["tensors"]["input_ids"].reshape(ids.shape) == ids).all()


def test_steps_read_in_order_are_those_read_one_by_one(mixed: Stream) -> None:
    def digests(made: Iterable[Batch]) -> list[int]:
        return [step_batch(batch, 2, with_digest=True)["digest"] for batch in made]

    def steps() -> TrainSteps:
        return TrainSteps(mixed, CausalLMRecipe(), SHORT_AT_FIRST, 0)

    whole = digests(Loader(steps(), 0, 25))
    assert whole == digests(with_tensors(steps()[step]) for step in range(25))
    assert digests(Loader(steps(), 5, 20, num_workers=1))[:10] == whole[5:15]


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(UserError, match="windows of 512 tokens can't be cut into sequences of 100; give a divisor"):
        parse_lengths("100, 512 from 1e6 tokens")
    for recipe, packing, says in (
        (CausalLMRecipe(), "best_fit", "--data.packing best_fit: keeps documents whole"),
        (ClassificationRecipe(), "concat", "labelled rows are of any length"),
    ):
        data = DataConfig(train="nowhere", packing=packing)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=says):
            DataModule(data, recipe, seq_len="8, 16 from 1e6 tokens", batch_size=4).setup()  # type: ignore[arg-type]
