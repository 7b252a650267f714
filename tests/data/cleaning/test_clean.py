"""A whole clean: the same bytes whatever shares or interrupts the work; its record and its report."""

import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from sslm.cli.clean import main
from sslm.data.cleaning.blocks import Reading
from sslm.data.cleaning.clean import Progress, clean
from sslm.data.cleaning.contamination import Contamination
from sslm.data.cleaning.duplicates import Deduplication
from sslm.data.cleaning.files import read_lines
from sslm.data.cleaning.inputs import find_inputs
from sslm.data.cleaning.record import verify
from sslm.data.cleaning.rules import RULES
from sslm.data.cleaning.settings import Settings
from sslm.data.cleaning.work import Part
from sslm.data.corpus.cleaned import read_record
from sslm.system.errors import UserError
from tests.support.processes import run_command
from tests.support.trained import byte_level

WORDS = ["the", "of", "and", "to", "that", "have", "with", "which", "from", "not", "are", "but", "his", "her"]
SETTINGS = Settings(
    reading=Reading(block_bytes=2_000),
    rules=(RULES["gopher"](min_words=20),),
    redact=("email",),
    duplicates=Deduplication(methods=("exact", "minhash", "lines")),
    file_bytes=40_000,
)
SECRET = "jane.doe@example.com"


def sentences(number: int, source: random.Random) -> str:
    made = [" ".join(source.choices(WORDS, k=12)) + f" {source.random():.6f}." for _ in range(number)]
    return "\n".join(made)


def write_corpus(folder: Path, documents: int = 150) -> Path:
    """Two files with duplicates, short texts and addresses in them."""
    source = random.Random(1)
    folder.mkdir()
    texts: list[str] = []
    for number in range(documents):
        text = sentences(source.randint(1, 8), source)
        if number % 10 == 7:
            text = source.choice(texts)
        if number % 25 == 3:
            text += f" write to {SECRET} now"
        texts.append(text)
    urls = [f"https://a{number % 3}.example.org/{number}" for number in range(documents)]
    rows = [json.dumps({"text": text, "url": url, "by": SECRET}) for text, url in zip(texts, urls, strict=True)]
    (folder / "a.jsonl").write_text("\n".join(rows[: documents // 2]) + "\n")
    with gzip.open(folder / "b.jsonl.gz", "wt") as stream:
        stream.write("\n".join(rows[documents // 2 :]) + "\n")
    return folder


def cleaned(given: Path, out: Path, settings: Settings = SETTINGS, workers: int = 1, part: Part | None = None) -> Path:
    inputs, _ = find_inputs([str(given)])
    assert clean(inputs, out, settings, workers, Progress(), part) == (part is None)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(folder.glob("*.jsonl.zst")) for row in read_lines(file)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("raw") / "corpus")


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cleaned(corpus, tmp_path_factory.mktemp("cleaned") / "out")


def test_what_is_left_has_its_origin_checksum_and_order(whole: Path, corpus: Path) -> None:
    raw = [json.loads(line) for line in (corpus / "a.jsonl").read_text().splitlines()]
    rows = rows_of(whole)
    places = [(row["origin"]["file"], row["origin"]["row"]) for row in rows]
    assert places == sorted(places)
    assert {file for file, _ in places} == {"a.jsonl", "b.jsonl.gz"}
    for row in (row for row in rows if row["origin"]["file"] == "a.jsonl"):
        was = raw[row["origin"]["row"]]
        assert row["text"] == was["text"].replace(SECRET, "[EMAIL]")
        assert row["metadata"] == {"url": was["url"], "by": "[EMAIL]"}
    texts = [row["text"] for row in rows]
    assert len(set(texts)) == len(texts)
    assert 50 < len(texts) < 150
    assert min(len(text.split()) for text in texts) >= 20


def test_processes_and_parts_change_nothing(whole: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert contents(cleaned(corpus, out, workers=2)) == contents(whole)
    shutil.rmtree(out)
    for number in (3, 1, 2):
        cleaned(corpus, out, part=Part(number, 3))
        assert not out.exists()
    assert contents(cleaned(corpus, out)) == contents(whole)
    assert not list(tmp_path.glob(".*"))


def test_blocks_and_files_of_other_sizes_hold_the_same_documents(whole: Path, corpus: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, reading=Reading(block_bytes=1 << 20), file_bytes=1 << 20)
    assert rows_of(cleaned(corpus, tmp_path / "one", settings)) == rows_of(whole)


def test_a_kill_at_any_moment_changes_nothing(whole: Path, corpus: Path, tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from tests.data.cleaning.test_clean import cleaned
cleaned(Path({str(corpus)!r}), Path({str(tmp_path / "out")!r}))
"""
    work = tmp_path / ".out.tmp"
    for number in (1, 8, 18):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[3])
        while process.poll() is None and len(list(work.glob("blocks/0*.json"))) < number:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert contents(cleaned(corpus, tmp_path / "out")) == contents(whole)


def test_another_clean_is_not_mixed_with_one_that_began(corpus: Path, tmp_path: Path) -> None:
    cleaned(corpus, tmp_path / "out", part=Part(1, 2))
    other = replace(SETTINGS, redact=())
    with pytest.raises(UserError, match="beginning of another clean \\(redact\\)"):
        cleaned(corpus, tmp_path / "out", other)
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="already exists"):
        cleaned(corpus, tmp_path / "there")


def test_a_file_that_changed_since_is_told(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "raw", 40)
    cleaned(corpus, tmp_path / "out", part=Part(1, 3))
    file = corpus / "a.jsonl"
    file.write_text(file.read_text().replace("the", "teh"))
    with pytest.raises(UserError, match="has changed since this clean began"):
        cleaned(corpus, tmp_path / "out")


def test_every_kind_of_file_and_what_was_cleaned_once(tmp_path: Path) -> None:
    texts = [sentences(3, random.Random(number)) for number in range(4)]
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.txt").write_text("\n---\n".join(texts[:2]))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[2:], "score": [0.5, float("nan")]}), raw / "b.parquet")
    settings = Settings(reading=Reading(document_separator="\n---\n"))
    first = cleaned(raw, tmp_path / "first", settings)
    assert [row["text"] for row in rows_of(first)] == texts
    assert rows_of(first)[3]["metadata"] == {"score": None}
    again = cleaned(first, tmp_path / "again", Settings())
    assert rows_of(again) == rows_of(first)


def test_a_record_holds_and_damage_is_told(whole: Path, tmp_path: Path) -> None:
    assert verify(whole, lambda _: None) == []
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, data in contents(whole).items():
        (copy / name).write_bytes(data)
    file = next(copy.glob("*.zst"))
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    assert any("is not what was written" in what for what in verify(copy, lambda _: None))
    file.unlink()
    assert f"{file.name}: is missing" in verify(copy, lambda _: None)
    record = copy / "cleaning.json"
    sound = record.read_bytes()
    for place in random.Random(5).sample(range(len(sound)), 60):
        record.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        with pytest.raises(UserError, match=r"damaged|format"):
            read_record(copy)
    for wrong in (b"{", b"[]", b'{"format": 99}', b'{"format": 1, "files": [{"file": "../x"}]}', b"[" * 100_000):
        (copy / "cleaning.json").write_bytes(wrong)
        with pytest.raises(UserError):
            read_record(copy)


def test_tokens_are_those_of_what_is_kept_and_dropped(corpus: Path, tmp_path: Path) -> None:
    tokenizer = byte_level("a cat sat on the mat")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    unchanged = replace(SETTINGS, normalise=(), redact=(), duplicates=Deduplication(methods=("exact",)))
    settings = replace(unchanged, tokenizer=str(tmp_path / "tokenizer"))
    out = cleaned(corpus, tmp_path / "out", settings, workers=2)
    tokens = read_record(out)["counts"]["tokens"]
    kept = [row["text"] for row in rows_of(out)]
    assert tokens["kept"] == sum(map(len, tokenizer(kept, add_special_tokens=False)["input_ids"]))
    texts = [row["text"] for file in corpus.iterdir() for row in read_lines(file)]
    assert sum(tokens.values()) == sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    assert "tokens kept" in (out / "report.md").read_text()


def test_counts_add_up_and_a_report_shows_no_address(whole: Path) -> None:
    counts = read_record(whole)["counts"]
    documents = counts["documents"]
    dropped = sum(number for key, number in documents.items() if key.startswith("dropped"))
    assert documents["read"] == 150 == documents["kept"] + dropped
    assert documents["kept"] == len(rows_of(whole))
    assert counts["redacted"]["email"] >= 1
    for name in ("report.html", "report.md", "cleaning.json"):
        assert SECRET not in (whole / name).read_text()


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "onload")]
        assert tag not in ("script", "iframe", "img", "link")


def test_a_report_needs_nothing_else_and_runs_nothing(tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    hostile = '<script>alert(1)</script>"><img src=x onerror=alert(1)> \u202e the of and that'
    rows = [{"text": hostile, "url": f"https://{hostile[:9]}/"}, {"text": sentences(9, random.Random(3))}]
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = cleaned(raw, tmp_path / "<b>out", replace(SETTINGS, normalise=(), duplicates=Deduplication(methods=())))
    page = (out / "report.html").read_text()
    links = _Links()
    links.feed(page)
    assert links.found == []
    assert "\u202e" not in page
    assert not re.search("https?://[^<]*(css|js)", page)


def test_texts_of_a_test_set_are_kept_out(tmp_path: Path) -> None:
    source = random.Random(5)
    long, short = sentences(2, source), "which of the three is it by then"
    against = Contamination.of([("exam", [f"{long}\n{short}"])], tmp_path / "runs.npz")
    texts = [
        f"{sentences(1, source)} {long.upper().replace(' ', ', ')} {sentences(1, source)}",
        f"{sentences(1, source)}\n  {short.title()}?\n{sentences(1, source)}",
        f"{sentences(1, source)} {short} {sentences(1, source)}",
        " ".join(long.split()[:12]),
        "",
    ]
    assert against.found_in(texts) == ["exam", "exam", None, None, None]


def test_the_command_tells_what_became_of_the_text(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, str]:
        code = main(list(words))
        said = capsys.readouterr()
        return code, said.out + said.err

    out = tmp_path / "out"
    flags = ["--rules", "gopher", "--gopher.min_words", "20", "--dedup", "exact", "--workers", "1"]
    code, said = run(str(corpus), "--out", str(out), *flags)
    assert code == 0, said
    assert "gopher.min_words" in said
    assert "duplicates: the same document" in said
    assert run("--verify", str(out)) == (0, f"{out}: good, {len(rows_of(out))} documents in 1 file\n")
    code, said = run(str(corpus), "--dry_run", *flags)
    assert code == 0, said
    assert "nothing was written" in said
    for wrong, said in (
        (["--rules", "goofer"], "did you mean gopher"),
        (["--gopher.min_words", "-3"], "gopher.min_words"),
        (["--part", "4/3"], "--part 4/3"),
        (["--languages", "English"], "codes of languages"),
        (["--min_quality", "0.5"], "changes nothing without --quality_model"),
    ):
        code, told = run(str(corpus), "--out", str(tmp_path / "none"), *flags, *wrong)
        assert (code, said in told) == (2, True), told
        assert not (tmp_path / "none").exists()
        assert not os.path.exists(tmp_path / ".none.tmp")


def test_a_model_card_tells_how_its_text_was_cleaned(whole: Path, tmp_path: Path) -> None:
    flags = ["--data.train", str(whole), "--max_steps", "1", "--batch_size", "2", "--seq_len", "16", "--val_every", "1"]
    small = ["--model.hidden_size", "16", "--model.num_hidden_layers", "1", "--model.intermediate_size", "16"]
    run = run_command(["-m", "sslm.train", *flags, *small, "--run_dir", str(tmp_path / "run")])
    assert run.returncode == 0, run.stderr
    counts = read_record(whole)["counts"]["documents"]
    said = f"{counts['kept']} of {counts['read']} documents kept; gopher, exact, minhash, lines, email"
    assert said in (tmp_path / "run/export/README.md").read_text()
