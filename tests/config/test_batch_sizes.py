"""Batches that grow: what may be typed, and which step begins where."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.cli.parse import parse
from sslm.config.batch_sizes import BatchSizes
from sslm.config.ramp import Ramp, Stage, parse_lengths, parse_ramp
from sslm.config.written import to_yaml
from sslm.runs.resume import check_ramps
from sslm.system.errors import UserError


@st.composite
def ramps(draw: st.DrawFn) -> Ramp:
    numbers = sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=5)))
    points = sorted(draw(st.sets(st.integers(1, 4000), min_size=len(numbers) - 1, max_size=len(numbers) - 1)))
    return Ramp(tuple(map(Stage, [0, *points], numbers)))


@st.composite
def lengths(draw: st.DrawFn) -> Ramp:
    longest = draw(st.integers(1, 50))
    shorter = draw(st.sets(st.sampled_from([n for n in range(1, longest + 1) if longest % n == 0]), max_size=3))
    numbers = sorted({*shorter, longest})
    points = sorted(draw(st.sets(st.integers(1, 4000), min_size=len(numbers) - 1, max_size=len(numbers) - 1)))
    return Ramp(tuple(map(Stage, [0, *points], numbers)))


@given(ramp=ramps(), seq_lens=lengths())
def test_each_step_begins_where_the_one_before_ends_and_is_as_its_tokens_say(ramp: Ramp, seq_lens: Ramp) -> None:
    sizes, position = BatchSizes.of(ramp, seq_lens), 0
    for step in range(300):
        assert sizes.position_at(step) == position
        tokens = position * seq_lens.largest
        size, seq_len = (max(n for at, n in each.stages if at <= tokens) for each in (ramp, seq_lens))
        leg = sizes.leg_at(step)
        assert (leg.size, leg.seq_len or seq_lens.largest) == (size, seq_len)
        assert (leg.rows * seq_len, leg.seq_len is None) == (size * seq_lens.largest, leg.pieces == 1)
        assert {sizes.step_at(end) for end in (position, position + size - 1)} == {step}
        position += size
    assert sizes.legs[0].step == 0
    assert all(a.step < b.step and a[2:] != b[2:] for a, b in itertools.pairwise(sizes.legs))


@given(ramp=ramps(), seq_lens=lengths(), stop=st.integers(0, 300))
def test_a_run_that_goes_on_from_any_step_takes_the_steps_of_the_uninterrupted_one(
    ramp: Ramp, seq_lens: Ramp, stop: int
) -> None:
    whole = BatchSizes.of(ramp, seq_lens)
    rest = BatchSizes.of(ramp, seq_lens, stop, whole.position_at(stop))
    for step in range(stop, 400):
        assert rest.position_at(step) == whole.position_at(step)
        assert rest.leg_at(step)[2:] == whole.leg_at(step)[2:]


@given(size=st.integers(1, 40), step=st.integers(0, 99), position=st.integers(0, 999), at=st.integers(0, 9999))
def test_one_size_is_one_division_whatever_came_before(size: int, step: int, position: int, at: int) -> None:
    sizes = BatchSizes.of(parse_ramp("batch_size", size), parse_lengths(32), step, position)
    assert sizes.position_at(at) == position + (at - step) * size
    assert sizes.step_at(at) == step + (at - position) // size
    assert BatchSizes.of(parse_ramp("batch_size", size), parse_lengths(32)) == BatchSizes.even(size)


@given(ramp=ramps())
def test_a_ramp_is_kept_as_it_can_be_typed_again(ramp: Ramp) -> None:
    assert parse_ramp("batch_size", ramp.setting) == ramp


def test_a_number_stays_one_and_a_ramp_is_written_in_one_way() -> None:
    for typed in ("32", "32.0", "3.2e1"):
        assert parse(["--batch_size", typed]).batch_size == 32
    assert "\nbatch_size: 32\n" in to_yaml(parse(["--batch_size", "32"]))
    config = parse(["--batch_size", " 32,64  from 1.5e5 tokens", "--max_steps", "2000"])
    assert config.batch_size == "32, 64 from 150000 tokens"
    assert "\nbatch_size: 32, 64 from 150000 tokens\n" in to_yaml(config)


@pytest.mark.parametrize(
    "typed",
    [
        "many",
        "0",
        "1.5",
        "16 from 5 tokens",
        "0, 32 from 1e6 tokens",
        "32, 64",
        "32, 64 from 1e6",
        "32, 64 from 1e6 steps",
        "32, 64 from 0 tokens",
        "32, 64 from 0.5 tokens",
        "32, 64 from -1 tokens",
        "32, 32 from 1e6 tokens",
        "64, 32 from 1e6 tokens",
        "16, 32 from 2e6 tokens, 64 from 1e6 tokens",
        "16,, 32 from 2e6 tokens",
        "1:30",
        "٣",
    ],
)
def test_what_is_no_ramp_is_refused_with_one_that_is(typed: str) -> None:
    with pytest.raises(UserError) as refused:
        parse(["--batch_size", typed])
    several = "several, each larger and later than the one before, such as '32, 64 from 1e9 tokens'"
    assert str(refused.value) == f"--batch_size {typed}: expected a whole number above 0, or {several}"


def test_the_runs_end_follows_the_sizes_and_a_size_that_never_comes_is_refused() -> None:
    grows = ["--seq_len", "100", "--batch_size", "10, 20 from 5000 tokens"]  # five steps of 10
    assert parse([*grows, "--max_tokens", "10999"]).total_steps == 7  # ... and 59 whole sequences
    assert parse([*grows, "--max_tokens", "1e5", "--max_steps", "8"]).total_steps == 8
    config = parse([*grows, "--max_tokens", "1e5"])
    assert config.total_steps == config.total_steps_from(5, 50) == config.total_steps_from(7, 90) == 5 + 47
    assert config.total_steps_from(3, 60) == 3 + 47  # larger batches before
    check_ramps(config, None)
    for flags in (["--max_steps", "5"], ["--max_tokens", "5000"]):
        with pytest.raises(UserError, match="ends after 5000 tokens, before 20 comes; leave that out, or"):
            check_ramps(parse([*grows, *flags]), None)
