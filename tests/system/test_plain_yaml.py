"""YAML: what its version 1.2 says, and nothing that harms."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sslm.system.plain_yaml import BadYaml, dump, load

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["no", "010", "1e-3", "0o17", "1:30", "null", "~", "<<", "=", "2020-01-01", "10_000", ".inf"])
)


@given(st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20))
@example({"\x85": "\u2028"})
def test_what_is_written_is_read(tree: Any) -> None:
    assert load(dump(tree)) == tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("010", 10),
        ("1:30", "1:30"),
        ("1e-3", 1e-3),
        ("10_000", 10_000),
        ("0x1F", 31),
        ("2020-01-01", "2020-01-01"),
        ("TRUE", True),
        ("'1'", "1"),
        ("", None),
        ("{no: 1, 2024: ~, <<: {a: b}}", {"no": 1, "2024": None, "a": "b"}),
    ],
)
def test_version_1_2(text: str, value: Any) -> None:
    assert load(f"x: {text}") == {"x": value}


def test_scalars_as_text() -> None:
    assert load("{a: 010, b: no, c: null, d: [1.0]}", scalars_as_text=True) == {
        "a": "010",
        "b": "no",
        "c": None,
        "d": ["1.0"],
    }


BOMB = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30))])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key a is given twice"),
        ("a:\n  b: {c: 1, c: 1}", "line 2: the key c is given twice"),
        ("a: &x [*x]", "line 1: an alias stands inside of what it names"),
        (BOMB, "more than 100000 values"),
        ("[" * 1500, "too deep"),
        ("9" * 5000, "a number of 5000 digits"),
        ("!!python/object/apply:os.system [ls]", "python/object/apply:os.system is not allowed"),
        ("!!binary aGk=", "not allowed"),
        ("!!int x", "invalid"),
        ("!!bool x", "x"),
        ("a: \x1b[31m", "not allowed"),
        ("? [1]\n: 2", "a key is a list"),
        ("a: [", "line 1"),
        ("a\n---\nb", "line 2"),
    ],
)
def test_anything_else_is_refused_with_its_line(text: str, why: str) -> None:
    with pytest.raises(BadYaml, match=why.replace("/", ".")):
        load(text)
