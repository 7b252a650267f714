"""Duplicates: what is found is what comparing everything with everything finds, and nothing decides but the texts."""

import multiprocessing
import random
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sslm.data.cleaning.duplicates import (
    EXACT,
    KEPT,
    METHODS,
    NEAR,
    Deduplication,
    apply,
    decision_file,
    partitions,
    read_decision,
    resolve,
    signatures,
)
from sslm.data.cleaning.duplicates.words import words_of
from sslm.system.errors import UserError

WORDS = ["the", "a", "of", "and", "in", "was", "she", "sea", "ship", "house", *map(str, range(500))]


def prose(seed: int, words: int = 150) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def deduplicated(
    texts: Sequence[str], how: Deduplication, folder: Path, block: int = 3, processes: int = 0
) -> list[str | None]:
    """What is left of all texts, in blocks of so many, from signatures in so many other processes."""
    blocks = [texts[first : first + block] for first in range(0, len(texts), block)]
    files = [folder / f"{number}.npz" for number in range(len(blocks))]
    make = partial(signatures, settings=how)
    if processes:
        with multiprocessing.get_context("fork").Pool(processes) as pool:
            made = pool.map(make, blocks, chunksize=1)
    else:
        made = [make(some) for some in blocks]
    for file, arrays in zip(files, made, strict=True):
        np.savez(file, **arrays)
    resolve(files, how, folder / "work")
    assert not list((folder / "work").rglob("*.bin"))
    decisions = [read_decision(decision_file(file)) for file in files]
    return [text for some, decision in zip(blocks, decisions, strict=True) for text in apply(some, decision)]


def test_the_first_of_equal_documents_stays(tmp_path: Path) -> None:
    texts = ["b", "a", "b", "", "b ", "\udcff", "", "\udcff", "a"]
    found = deduplicated(texts, Deduplication(("exact",)), tmp_path)
    assert found == ["b", "a", None, "", "b ", "\udcff", None, None, None]


def test_near_duplicates_go_whatever_their_case_and_punctuation(tmp_path: Path) -> None:
    text = prose(1)
    texts = [text, text.upper().replace(" ", ",  "), prose(2), f"{text} and more", "", " ", "Two words", "two  words!"]
    found = deduplicated(texts, Deduplication(("minhash",)), tmp_path)
    assert found == [text, None, texts[2], None, "", " ", "Two words", None]


def test_pairs_meet_in_a_band_as_often_as_their_similarity_says() -> None:
    texts, expected = [], []
    for seed in range(500):
        words = prose(seed, 200).split()
        changed = words[: 190 - seed % 50] + prose(seed + 1000, 10 + seed % 50).split()
        a, b = ({tuple(some[place : place + 5]) for place in range(196)} for some in (words, changed))
        expected.append(1 - (1 - (len(a & b) / len(a | b)) ** 8) ** 14)
        texts += [" ".join(words), " ".join(changed)]
    made = signatures(texts, Deduplication(("minhash",)))
    met = np.any([made[f"band-{band}"][::2] == made[f"band-{band}"][1::2] for band in range(14)], axis=0)
    for some in (slice(0, 500), np.array(expected) < 0.5):
        likely = np.array(expected)[some]
        assert abs(met[some].sum() - likely.sum()) < 4 * np.sqrt((likely * (1 - likely)).sum())


def test_a_cluster_keeps_its_first_document_whatever_the_order(tmp_path: Path) -> None:
    """Each text resembles its neighbours alone, and all are one cluster."""
    words = prose(3, 600).split()
    chain = [" ".join(words[start : start + 300]) for start in range(0, 200, 10)]
    for seed in range(3):
        texts = random.Random(seed).sample(chain, len(chain))
        assert deduplicated(texts, Deduplication(), tmp_path) == [texts[0], *[None] * (len(texts) - 1)]


def test_scripts_without_spaces_have_characters_as_words(tmp_path: Path) -> None:
    text = "".join(chr(0x4E00 + random.Random(place).randrange(3000)) for place in range(300))
    found = deduplicated([text, f"{text[:290]}。{text[291:]}", text[::-1]], Deduplication(), tmp_path)
    assert found == [text, None, text[::-1]]


def test_lines_of_many_documents_stay_in_the_first(tmp_path: Path) -> None:
    how = Deduplication(("lines",), line_documents=2)
    menu, twice = "Home  About us  Contact", "This line is in two documents."
    texts = [f"one\n{menu}\n{menu}\n}}", f"{menu} \ntwo\n{twice}\n}}", f"{twice}\n{menu}\nthree\n{menu}", f"\n {menu}"]
    found = deduplicated(texts, how, tmp_path)
    assert found == [texts[0], f"two\n{twice}\n}}", f"{twice}\nthree", None]


def test_a_line_or_passage_stays_though_the_document_that_had_it_first_goes(tmp_path: Path) -> None:
    line = prose(5, 60)
    texts = [prose(1, 600), f"{prose(1, 600)}\n{line}", f"{prose(2)}\n{line}", f"{prose(3)}\n{line}"]
    for parts in ("lines", "substrings"):
        found = deduplicated(texts, Deduplication((parts, "minhash"), line_documents=1), tmp_path)
        assert found == [texts[0], None, texts[2], prose(3)]


def test_a_line_may_lie_in_a_passage(tmp_path: Path) -> None:
    how = Deduplication(("lines", "substrings"), line_documents=1, line_characters=3, substring_words=4)
    texts = ["one two\nthree four\nfive six seven\nten", "one two\nthree four\nfive six seven eight"]
    assert deduplicated(texts, how, tmp_path) == [texts[0], "eight"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab\n ", max_size=40), max_size=6), st.integers(1, 4), st.integers(1, 4))
def test_passages_are_those_that_comparing_all_words_finds(texts: list[str], length: int, block: int) -> None:
    how = Deduplication(("substrings",), substring_words=length)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(partitions, "RECORDS", 3)  # many files
        found = deduplicated(texts, how, Path(folder), block)
    assert [(text or "").split() for text in found] == words_left(texts, length)


def words_left(texts: Sequence[str], length: int) -> list[list[str]]:
    """Words but those of passages that begin earlier, too, and don't overlap with that first one."""
    first: dict[tuple[str, ...], tuple[int, int]] = {}
    left = []
    for number, text in enumerate(texts):
        words = text.split()
        goes = [False] * len(words)
        for place in range(len(words) - length + 1):
            document, begin = first.setdefault(tuple(words[place : place + length]), (number, place))
            if document != number or place - begin >= length:
                goes[place : place + length] = [True] * length
        left.append([word for word, is_gone in zip(words, goes, strict=True) if not is_gone])
    return left


@given(st.lists(st.text(st.characters(max_codepoint=0x0DFF), max_size=20)))
def test_words_are_what_white_space_separates(texts: list[str]) -> None:
    words = words_of(texts, fold=False)
    assert words.counts.tolist() == [len(text.split()) for text in texts]
    every, hashes = [word for text in texts for word in text.split()], words.hashes.tolist()
    assert len(set(zip(every, hashes, strict=True))) == len(set(every)) == len(set(hashes))


def corpus() -> list[str]:
    """Documents of which each has something of others."""
    some = random.Random(0)
    footers = [prose(seed, 8) for seed in range(100, 103)]
    texts = [f"{prose(seed)}\n{some.choice(footers)}\n{prose(some.randrange(20, 24), 60)}" for seed in range(20)]
    near = [text.replace(some.choice(text.split()), "changed") for text in some.sample(texts, 6)]
    texts += [*near, *some.sample(texts, 4), "", "", "中" * 70, "\ud800 alone"]
    return some.sample(texts, len(texts))


@pytest.mark.parametrize(("block", "processes", "records"), [(1, 0, 9), (5, 2, 100), (7, 4, 1 << 22), (99, 1, 10)])
def test_neither_blocks_nor_processes_nor_files_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, processes: int, records: int
) -> None:
    how = Deduplication(METHODS, line_documents=2)
    expected = deduplicated(corpus(), how, tmp_path, 4)
    assert sum(text is None for text in expected) >= 8
    monkeypatch.setattr(partitions, "RECORDS", records)
    assert deduplicated(corpus(), how, tmp_path, block, processes) == expected


def test_a_resolution_that_was_killed_is_made_again_with_the_same_bytes(tmp_path: Path) -> None:
    how = Deduplication(METHODS, line_documents=2)
    deduplicated(corpus(), how, tmp_path)
    files = sorted(tmp_path.glob("?.npz"))
    whole = [decision_file(file).read_bytes() for file in files]
    decision_file(files[0]).write_bytes(b"torn")
    (tmp_path / "work/sorting").mkdir()
    (tmp_path / "work/sorting/0.bin").write_bytes(b"left by a kill")
    shares: list[float] = []
    resolve(files, how, tmp_path / "work", shares.append)
    assert [decision_file(file).read_bytes() for file in files] == whole
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_decision_tells_which_document_stays_instead(tmp_path: Path) -> None:
    text = prose(1)
    texts = [prose(2), text, f"{text} more", f"{text} more", prose(3)]
    deduplicated(texts, Deduplication(), tmp_path, block=99)
    decision = read_decision(decision_file(tmp_path / "0.npz"))
    assert decision["fate"].tolist() == [KEPT, KEPT, NEAR, EXACT, KEPT]
    assert decision["kept_as"].tolist() == [0, 1, 1, 1, 4]


def test_a_hundred_thousand_equal_documents_take_no_longer_than_different_ones(tmp_path: Path) -> None:
    made = signatures([prose(1)] * 1000, Deduplication(("minhash",)))
    np.savez(tmp_path / "0.npz", **made)
    resolve([tmp_path / "0.npz"] * 100, Deduplication(("minhash",)), tmp_path / "work")
    assert not read_decision(decision_file(tmp_path / "0.npz"))["kept_as"].any()


def test_blocks_may_be_empty(tmp_path: Path) -> None:
    how = Deduplication(METHODS)
    files = [tmp_path / f"{number}.npz" for number in range(3)]
    for file, texts in zip(files, [[], ["a", "a"], []], strict=True):
        np.savez(file, **signatures(texts, how))
    resolve(files, how, tmp_path / "work")
    assert apply(["a", "a"], read_decision(decision_file(files[1]))) == ["a", None]
    assert apply([], read_decision(decision_file(files[2]))) == []
    resolve([], how, tmp_path / "work")


def test_what_does_not_go_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--dedup minhahs: .*did you mean minhash"):
        Deduplication(("minhahs",))
    with pytest.raises(UserError, match=r"--dedup\.bands 0: expected a number above 0"):
        Deduplication(bands=0)
    np.savez(tmp_path / "0.npz", **signatures(["a"], Deduplication()))
    with pytest.raises(UserError, match=r"0\.npz was made with other settings"):
        resolve([tmp_path / "0.npz"], Deduplication(seed=2), tmp_path / "work")
