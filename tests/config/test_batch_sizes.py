"""Batches that grow: what may be typed, and which step begins where."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.cli.parse import parse
from sslm.config.batch_sizes import BatchSizes
from sslm.config.ramp import Ramp, Stage, parse_ramp
from sslm.config.written import to_yaml
from sslm.runs.resume import check_batch_sizes
from sslm.system.errors import UserError


@st.composite
def ramps(draw: st.DrawFn) -> Ramp:
    numbers = sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=5)))
    points = sorted(draw(st.sets(st.integers(1, 4000), min_size=len(numbers) - 1, max_size=len(numbers) - 1)))
    return Ramp(tuple(map(Stage, [0, *points], numbers)))


@given(ramp=ramps(), seq_len=st.integers(1, 50))
def test_each_step_begins_where_the_one_before_ends_and_has_the_size_of_its_tokens(ramp: Ramp, seq_len: int) -> None:
    sizes, position = BatchSizes.of(ramp, seq_len), 0
    for step in range(300):
        assert sizes.position_at(step) == position
        size = max(number for tokens, number in ramp.stages if tokens <= position * seq_len)
        assert sizes.leg_at(step).size == size
        assert {sizes.step_at(end) for end in (position, position + size - 1)} == {step}
        position += size
    assert sizes.legs[0].step == 0
    assert all(a.step < b.step and a.size < b.size for a, b in itertools.pairwise(sizes.legs))


@given(ramp=ramps(), seq_len=st.integers(1, 50), stop=st.integers(0, 300))
def test_a_run_that_goes_on_from_any_step_takes_the_steps_of_the_uninterrupted_one(
    ramp: Ramp, seq_len: int, stop: int
) -> None:
    whole = BatchSizes.of(ramp, seq_len)
    rest = BatchSizes.of(ramp, seq_len, stop, whole.position_at(stop))
    assert [rest.position_at(step) for step in range(stop, 400)] == [whole.position_at(n) for n in range(stop, 400)]
    assert rest.leg_at(stop).size == whole.leg_at(stop).size


@given(size=st.integers(1, 40), step=st.integers(0, 99), position=st.integers(0, 999), at=st.integers(0, 9999))
def test_one_size_is_one_division_whatever_came_before(size: int, step: int, position: int, at: int) -> None:
    sizes = BatchSizes.of(parse_ramp("batch_size", size), 32, step, position)
    assert sizes.position_at(at) == position + (at - step) * size
    assert sizes.step_at(at) == step + (at - position) // size
    assert BatchSizes.of(parse_ramp("batch_size", size), 32) == BatchSizes.even(size)


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
    check_batch_sizes(config, None)
    for flags in (["--max_steps", "5"], ["--max_tokens", "5000"]):
        with pytest.raises(UserError, match="ends after 5000 tokens, before batches of 20; leave these out, or"):
            check_batch_sizes(parse([*grows, *flags]), None)
