"""Files that are replaced as a whole, and files of one JSON object a line, as kills, full disks and rot leave them."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sslm.data.stream.amendments import Amendment, Skip, amendment_of
from sslm.system.errors import UserError
from sslm.system.files import append_json_lines, json_lines, write_atomically


def test_writers_with_the_same_process_number_dont_meet(tmp_path: Path) -> None:
    """The containers of several nodes share a folder, and each one's process has the number 1."""
    texts = [str(number) * 1000 for number in range(8)]
    with ThreadPoolExecutor(len(texts)) as writers:
        list(writers.map(lambda text: [write_atomically(tmp_path / "file", text) for _ in range(10)], texts))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() in texts


def test_a_torn_last_line_is_told_and_the_next_takes_its_place(tmp_path: Path) -> None:
    file, said = tmp_path / "a.jsonl", []
    assert json_lines(file, said.append) == []
    append_json_lines(file, [{"a": 1}, {"b": "é"}])
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        num_whole = whole[:length].count(b"\n")
        said.clear()
        assert json_lines(file, said.append) == [{"a": 1}, {"b": "é"}][:num_whole]
        assert len(said) == (length > 0 and whole[length - 1 : length] != b"\n")
        append_json_lines(file, [{"c": 2}])
        assert json_lines(file, print) == [*[{"a": 1}, {"b": "é"}][:num_whole], {"c": 2}]


@pytest.mark.parametrize("damaged", [b"{", b"", b"[]", b"1", b"\xff", b"[" * 100_000])
def test_another_damaged_line_is_named(damaged: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + damaged + b'\n{"a": 2}\n')
    with pytest.raises(UserError, match=r"a\.jsonl: line 2 is damaged"):
        json_lines(tmp_path / "a.jsonl", print)


def test_an_amendment_is_whole_or_named() -> None:
    bad_shard, skip = Amendment(1, "web", "train-00001.bin", "gone"), Skip(5, 8, "spike")
    for known in (bad_shard, skip):
        assert amendment_of(json.loads(json.dumps(vars(known)))) == known
    for known in ({}, {"kind": "skip"}, {**vars(skip), "num_positions": "8"}, {**vars(bad_shard), "more": 1}):
        with pytest.raises(UserError, match="is no amendment"):
            amendment_of(known)
