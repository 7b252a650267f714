"""Augmentation as it is typed."""

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.cli.parse import parse
from sslm.config import SourceConfig
from sslm.config.augment import Augment, parse_augment
from sslm.system.errors import UserError

NAMES = [field.name for field in fields(Augment)]


@given(st.dictionaries(st.sampled_from(NAMES), st.floats(1e-9, 0.25), max_size=5))
def test_what_is_written_of_noise_is_what_was_typed(shares: dict[str, float]) -> None:
    typed = ",  ".join(f"{name}  {share!r}" for name, share in shares.items()) or "none"
    augment = parse_augment(typed)
    assert augment == Augment(**shares) == parse_augment(augment.setting)
    assert bool(augment) == bool(shares)


def test_shares_that_sum_to_one_may_be_written_in_tenths() -> None:
    shares = "token_dropout 0.05, token_swap 0.55, token_repeat 0.3, token_insert 0.1"  # 1.0000000000000002 one by one
    assert parse_augment(shares).token_swap == 0.55


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("typos", "expected a share above 0 and at most 1 after typos, such as 'typos 0.05'"),
        ("typos 0", "above 0"),
        ("typos 1.5", "at most 1"),
        ("typos -0.1", "above 0"),
        ("typos nan", "above 0"),
        ("token_dropout 0.6", "at most 0.5"),
        ("typo 0.1", r"there is no noise typo \(did you mean typos\?\); there are crop, join"),
        ("typos 0.1,", "there is no noise "),
        ("", "there is no noise "),
        ("typos 0.1, typos 0.2", "typos is given twice"),
        ("token_swap 0.7, token_insert 0.5", "sum to 1.2; expected at most 1"),
        ("lowercase 0.7, uppercase 0.5", "sum to 1.2"),
    ],
)
def test_what_is_no_noise_is_refused_in_a_sentence(typed: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^--data.augment .*{said}") as refused:
        parse(["--data.augment", typed])
    assert "\n" not in str(refused.value)


def test_a_source_has_the_noise_of_all_or_its_own_or_none() -> None:
    sources = "[{path: a, augment: crop 0.1}, {path: b}, {path: c, augment: none}]"
    config = parse(["--data.sources", sources, "--data.augment", "typos 0.02"]).data
    assert [augment.setting for augment in config.augments] == ["crop 0.1", "typos 0.02", "none"]
    assert config.sources is not None
    assert config.sources[1] == SourceConfig("b")
    assert parse(["--data.augment", "typos .02,crop 0.1"]) == parse(["--data.augment", "crop 0.10, typos 0.02"])
    assert parse(["--data.augment", "none"]) == parse([])
    with pytest.raises(UserError, match=r"--data.sources web: augment typo 1: there is no noise typo"):
        parse(["--data.sources", "[{path: a, name: web, augment: typo 1}]"])
