"""Frequent words go if asked, and nothing else does."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.data.cleaning import stop_words as module
from sslm.data.cleaning.stop_words import stop_words, without
from sslm.system.errors import UserError


def test_stop_words_of_each_language_go_and_the_others_stay() -> None:
    english, german = without(stop_words(["en"])), without(stop_words(["de"]))
    text = "The fox IS over the lazy dog\n    und der Hund ist müde."
    assert english(text) == "fox lazy dog\n    und der Hund ist müde."
    assert german(text) == "The fox IS over the lazy dog\n    Hund müde."
    assert without(stop_words(["en", "de"]))(text) == "fox lazy dog\n    Hund müde."


def test_marks_are_parts_of_their_words() -> None:
    assert without(stop_words(["hi"]))("राम के किताब में है") == "राम किताब"
    assert without(frozenset({"न"}))("राम ने कहा न") == "राम ने कहा"
    assert without(frozenset({"e"}))("e e\u0301te\u0301") == "e\u0301te\u0301"


@given(st.text("ab the THE3_'’-,.\t\n", max_size=40))
def test_what_is_left_has_none_of_them(text: str) -> None:
    edit = without(frozenset({"the", "a"}))
    once = edit(text)
    assert edit(once) == once
    word_in = module.word_pattern()
    kept = [word[1] for word in word_in.finditer(text) if word[1].casefold() not in ("the", "a")]
    assert [word[1] for word in word_in.finditer(once)] == kept


def test_no_text_takes_longer_than_its_length_explains() -> None:
    edit = without(frozenset({"a"}))
    for unit in ("a", "a ", "a'", " ", "'", "\ud83d", "1a"):
        before = time.process_time()
        edit(unit * (500_000 // len(unit)))
        assert time.process_time() - before < 2, unit


@pytest.mark.parametrize(
    ("language", "why"), [("xx", "no list of them; there are af, ar"), ("zh", "not separated by spaces")]
)
def test_a_language_that_does_not_go_is_one_sentence(language: str, why: str) -> None:
    with pytest.raises(UserError, match=f"^stop words of {language}: .*{why}"):
        stop_words([language])


def test_without_the_package_a_sentence_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    module._lists.cache_clear()
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'sslm\[clean\]'"):
        stop_words(["en"])
