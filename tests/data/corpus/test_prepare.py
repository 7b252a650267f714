"""From documents to a corpus: each document once, whatever interrupts it, in flat memory."""

import copy
import itertools
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sslm.cli.prepare import main as prepare_main
from sslm.data.corpus import encode
from sslm.data.corpus import prepare as preparation
from sslm.data.corpus.documents import Piece, Source, _whole, open_source
from sslm.data.corpus.encode import HELD_OUT_EVERY, give_back_memory, is_held_out
from sslm.data.corpus.prepare import prepare
from sslm.data.corpus.shards import Corpus, open_corpus
from sslm.data.corpus.tokenizer import TokenRules, TrainBPE, load
from sslm.data.corpus.tokenizer_training import train_bpe
from sslm.data.corpus.writer import CorpusWriter
from sslm.data.stream.vocabulary import vocabulary_of
from sslm.system import terminal
from sslm.system.files import sha256_of
from tests.support.documents import no_report, source_of
from tests.support.processes import Ranks, run_command, train_forked

SEPARATOR = "\n-----\n"


def bpe(texts: list[str], size: int = 300) -> PreTrainedTokenizerFast:
    return train_bpe([(text, True) for text in texts], size)


def words(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of the words w0, w1, …; the last id ends documents."""
    vocab = {f"w{i}": i for i in range(vocab_size - 2)} | {"[UNK]": vocab_size - 2, "</s>": vocab_size - 1}
    backend = Backend(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="</s>")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def all_tokens(corpus: Corpus, split: str = "train") -> list[int]:
    return [int(i) for shard in corpus.shards if shard.split == split for i in corpus.tokens(shard)]


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches, and an entry in the journal after each."""
    monkeypatch.setattr(encode, "BATCH_CHARS", 20_000)
    monkeypatch.setattr(preparation, "SECONDS_BETWEEN_ENTRIES", 0.0)


@pytest.fixture(scope="module")
def documents(text: Path) -> list[str]:
    return text.read_text().split(SEPARATOR)


@pytest.fixture(scope="module")
def tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    return bpe(documents, 400)


# ------------------------------------------------------------------------------------------------ what is in it


def test_prepared_corpus_holds_each_document_once_and_ends_it(tmp_path: Path) -> None:
    texts = [f"document number {i} " * (i % 7 + 1) for i in range(900)]
    tokenizer = train_bpe([(text, True) for text in texts], 300)
    corpus = prepare(source_of([*texts[:50], "", "  ", *texts[50:]]), tokenizer, tmp_path / "c", no_report)
    found: dict[str, list[str]] = {"train": [], "val": []}
    for shard in corpus.shards:
        tokens, start = corpus.tokens(shard), 0
        for end in corpus.document_ends(shard):
            assert tokens[end - 1] == tokenizer.eos_token_id
            found[shard.split].append(tokenizer.decode(tokens[start : end - 1]))
            start = end
        assert start == len(tokens)
    assert found["val"] == [text for i, text in enumerate(texts) if is_held_out(i)]
    assert found["train"] == [text for i, text in enumerate(texts) if not is_held_out(i)]
    assert 2 <= len(found["val"]) <= 20
    assert corpus.dtype == "uint16"
    assert sum(shard.num_bytes for shard in corpus.shards) == sum(len(text.encode()) for text in texts)


def test_about_one_document_in_a_hundred_is_held_out() -> None:
    assert not any(is_held_out(i) for i in range(HELD_OUT_EVERY))
    assert sum(is_held_out(i) for i in range(100_000)) == pytest.approx(1000, rel=0.1)


def test_a_line_without_spaces_is_no_trap(tmp_path: Path) -> None:
    texts = ["a" * 200_000, "some words " * 99]
    tokenizer = train_bpe([(text, True) for text in texts], 300)
    corpus = prepare(source_of(texts), tokenizer, tmp_path / "c", no_report)
    assert (
        tokenizer.decode(corpus.tokens(corpus.shards[0])[: int(corpus.document_ends(corpus.shards[0])[0]) - 1])
        == texts[0]
    )


def test_special_tokens_in_the_text_are_text_unless_they_are_asked_for(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, end = ["how <|endoftext|> is used, and <|endoftext|>", "nothing else"], tokenizer.eos_token_id
    plain = prepare(source_of(texts), tokenizer, tmp_path / "plain", no_report)
    assert "2 special tokens written out in the text, read as plain text" in capsys.readouterr().out
    parsed = prepare(source_of(texts), tokenizer, tmp_path / "parsed", no_report, rules=TokenRules("parse"))
    assert "2 special tokens written out in the text, parsed as tokens" in capsys.readouterr().out
    assert [all_tokens(corpus).count(end) for corpus in (plain, parsed)] == [2, 4]
    first, _ = plain.document_ends(plain.shards[0])
    assert tokenizer.decode(all_tokens(plain)[: first - 1]) == texts[0]


def begun_with_bos(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Copy a tokenizer, with a template that begins a text with <s>, as Llama's."""
    from tokenizers.processors import TemplateProcessing

    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.add_special_tokens(["<s>"])
    bos = backend.token_to_id("<s>")
    backend.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=tokenizer.eos_token)


def test_documents_begin_as_the_tokenizer_begins_a_text(
    tmp_path: Path, documents: list[str], tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    known = begun_with_bos(tokenizer)
    texts = [*documents[:5], "<s>, " + documents[5] * 300]  # the last one is several pieces, in several batches
    source = Source("test", [], lambda: (piece for text in texts for piece in _whole(iter([text]))))
    with_bos = prepare(source, known, tmp_path / "c", no_report)
    assert "each document begins with <s>" in capsys.readouterr().out
    without = prepare(source, known, tmp_path / "n", no_report, rules=TokenRules(bos="never"))
    ends = with_bos.document_ends(with_bos.shards[0])
    assert [with_bos.tokens(with_bos.shards[0])[start] for start in (0, *ends[:-1])] == [known.bos_token_id] * 6
    assert [n for n in all_tokens(with_bos) if n != known.bos_token_id] == all_tokens(without)
    assert known(texts[0]).input_ids == all_tokens(with_bos)[: ends[0] - 1]


def test_ids_may_have_gaps(tmp_path: Path, documents: list[str]) -> None:
    known = words(1002)
    parts = json.loads(known.backend_tokenizer.to_str())
    parts["model"]["vocab"]["w999"] = 70_000
    gaps = PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(json.dumps(parts)), eos_token=known.eos_token)
    corpus = prepare(source_of(["w3 w999 w5"]), gaps, tmp_path / "c", no_report)
    assert (corpus.vocab_size, corpus.dtype) == (70_001, "uint32")
    assert all_tokens(corpus)[:3] == [3, 70_000, 5]
    tables = vocabulary_of(gaps)
    assert tables.size == 70_001
    assert tables.special[999]
    assert not tables.special[70_000]


def test_large_vocabulary_is_stored_in_four_bytes(tmp_path: Path) -> None:
    corpus = prepare(source_of(["w3 w69997 w65536", "w1"]), words(70_000), tmp_path / "c", no_report)
    assert corpus.dtype == "uint32"
    assert all_tokens(corpus) == [3, 69_997, 65_536, 69_999, 1, 69_999]
    assert open_corpus(tmp_path / "c").vocab_size == 70_000


def test_invalid_bytes_become_one_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good text " * 100 + b"\xff" + b"more " * 100)
    source = open_source(str(tmp_path / "a.txt"), text_field="text", document_separator=None)
    tokenizer = bpe(["good text more"])
    corpus = prepare(source, tokenizer, tmp_path / "c", no_report)
    assert tokenizer.decode(all_tokens(corpus)[:-1]) == "good text " * 100 + "\ufffd" + "more " * 100


@pytest.mark.parametrize("threads", ["1", "2"])
def test_corpus_is_the_same_for_any_number_of_threads(
    threads: str,
    text: Path,
    documents: list[str],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer.save_pretrained(tmp_path / "t")
    command = [
        "-m",
        "sslm",
        "prepare",
        str(text),
        "--document_separator",
        SEPARATOR,
        "--tokenizer",
        str(tmp_path / "t"),
    ]
    done = run_command([*command, "--out", str(tmp_path / "c")], env={"RAYON_NUM_THREADS": threads})
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert prepare_main([*command[3:], "--out", str(tmp_path / "d")]) == 0
    assert contents(tmp_path / "c") == contents(tmp_path / "d")


# ------------------------------------------------------------------------------------------------ shards


def test_shards_end_at_their_size_whatever_the_batches(
    documents: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(source_of(documents), tokenizer, tmp_path / "whole", no_report)
    cut = prepare(source_of(documents), tokenizer, tmp_path / "cut", no_report, shard_tokens=5000)
    monkeypatch.setattr(encode, "BATCH_CHARS", 3000)
    small = prepare(source_of(documents), tokenizer, tmp_path / "small", no_report, shard_tokens=5000)
    for split in ("train", "val"):
        sizes = [shard.num_tokens for shard in cut.shards if shard.split == split]
        assert set(sizes[:-1]) <= {5000}
        assert all_tokens(cut, split) == all_tokens(whole, split)
    assert len(cut.shards) > 5
    assert [shard.sha256 for shard in small.shards] == [shard.sha256 for shard in cut.shards]
    for corpus in (whole, cut, small):
        assert corpus.num_documents == 120
        assert sum(shard.num_bytes for shard in corpus.shards) == sum(len(text.encode()) for text in documents)


def test_document_longer_than_a_shard_goes_on_and_ends_in_a_later_one(tmp_path: Path) -> None:
    long = " ".join(f"w{i}" for i in range(1000))
    corpus = prepare(source_of(["w1", long, "w2"]), words(1002), tmp_path / "c", no_report, shard_tokens=300)
    assert [shard.num_tokens for shard in corpus.shards] == [300, 300, 300, 105]
    assert [corpus.document_ends(shard).tolist() for shard in corpus.shards] == [[2], [], [], [103, 105]]
    assert all_tokens(corpus) == [1, 1001, *range(1000), 1001, 2, 1001]


def test_document_may_end_exactly_where_its_shard_does(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path, 100, shard_tokens=4) as writer:
        writer.add("train", np.arange(8, dtype=np.uint32), np.array([4, 5]), 80)
        writer.finish("test", "", [])
    corpus = open_corpus(tmp_path)
    assert [corpus.document_ends(shard).tolist() for shard in corpus.shards] == [[4], [1]]
    assert [shard.num_bytes for shard in corpus.shards] == [40, 40]


def test_shards_of_the_size_asked_for(text: Path, tmp_path: Path) -> None:
    command = [str(text), "--out", str(tmp_path / "c"), "--tokenizer", "bpe:300", "--shard_tokens", "10000"]
    assert prepare_main(command) == 0
    sizes = [shard.num_tokens for shard in open_corpus(tmp_path / "c").shards]
    assert len(sizes) > 3
    assert set(sizes[:-1]) == {10_000}


@pytest.mark.parametrize("nonsense", ["0", "-5", "12", "1e6", "many", ""])
def test_nonsense_for_shard_tokens_gets_a_sentence(
    nonsense: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare_main([str(text), "--out", str(tmp_path / "c"), f"--shard_tokens={nonsense}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --shard_tokens {nonsense}: expected a whole number of tokens, at least 256")
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------- failing, killed, stopped


def test_failed_preparation_leaves_nothing(tmp_path: Path) -> None:
    def pieces() -> Iterator[Piece]:
        yield "some text", True
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        prepare(Source("broken", [], pieces), train_bpe([("some text", True)], 300), tmp_path / "c", no_report)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch", [0, 1, 4, 9])
def test_crashed_preparation_goes_on_and_makes_the_same_corpus(
    batch: int,
    documents: list[str],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    small_steps: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = source_of(documents)
    straight = prepare(source, tokenizer, tmp_path / "straight", no_report, shard_tokens=9000)
    reports = 0

    def crash(documents: int, tokens: int, share: float | None = None) -> None:
        nonlocal reports
        if reports == batch:
            raise RuntimeError("power cut")
        reports += 1

    with pytest.raises(RuntimeError, match="power cut"):
        prepare(source, tokenizer, tmp_path / "c", crash, shard_tokens=9000)
    remains = {path.name for path in tmp_path.iterdir()}
    assert remains == {"straight", ".c.tmp"}
    done: list[int] = []
    capsys.readouterr()
    prepare(
        source, tokenizer, tmp_path / "c", lambda documents, tokens, share=None: done.append(tokens), shard_tokens=9000
    )
    assert contents(tmp_path / "c") == contents(tmp_path / "straight")
    assert done[-1] < straight.num_tokens * (1 - 0.09 * batch)  # what was there was not tokenised again
    assert "resuming at" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"straight", "c"}


def test_trained_tokenizer_is_not_trained_twice(documents: list[str], tmp_path: Path, small_steps: None) -> None:
    read = 0
    broken = True

    def pieces() -> Iterator[Piece]:
        nonlocal read
        read += 1
        if broken and read > 1:  # trained, and about to tokenise
            raise RuntimeError("power cut")
        for text in documents:
            yield text, True

    source = Source("test", [{"test": 1}], pieces)
    with pytest.raises(RuntimeError, match="power cut"):
        prepare(source, TrainBPE(300), tmp_path / "c", no_report)
    broken, read = False, 0
    prepare(source, TrainBPE(300), tmp_path / "c", no_report)
    assert read == 1
    prepare(source, TrainBPE(300), tmp_path / "straight", no_report)
    assert contents(tmp_path / "c") == contents(tmp_path / "straight")


def interrupted(source: Source, tokenizer: PreTrainedTokenizerFast, out: Path) -> Path:
    """What a preparation that crashed after five batches left."""
    reports = 0

    def crash(documents: int, tokens: int, share: float | None = None) -> None:
        nonlocal reports
        reports += 1
        if reports == 5:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        prepare(source, tokenizer, out, crash, shard_tokens=9000)
    return out.parent / f".{out.name}.tmp"


def damage(remains: Path, how: str) -> None:
    shards = sorted((remains / "corpus").glob("train-*.bin"))
    if how == "finished shard cut":
        os.truncate(shards[0], 100)
    elif how == "open shard cut":
        os.truncate(shards[-1], 2)
    elif how == "shard missing":
        shards[-1].unlink()
    elif how == "journal cut":
        os.truncate(remains / "journal.json", 100)
    elif how == "journal of another form":
        (remains / "journal.json").write_text('{"pieces": 3}')
    elif how == "tokenizer missing":
        shutil.rmtree(remains / "corpus/tokenizer")
    elif how == "only files we don't know":
        shutil.rmtree(remains)
        remains.mkdir()
        (remains / "train-00000.bin").write_bytes(b"old")


@pytest.mark.parametrize(
    "how",
    [
        "finished shard cut",
        "open shard cut",
        "shard missing",
        "journal cut",
        "journal of another form",
        "tokenizer missing",
        "only files we don't know",
    ],
)
def test_damaged_remains_are_begun_anew(
    how: str, documents: list[str], tokenizer: PreTrainedTokenizerFast, tmp_path: Path, small_steps: None
) -> None:
    source = source_of(documents)
    prepare(source, tokenizer, tmp_path / "straight", no_report, shard_tokens=9000)
    damage(interrupted(source, tokenizer, tmp_path / "c"), how)
    prepare(source, tokenizer, tmp_path / "c", no_report, shard_tokens=9000)
    assert contents(tmp_path / "c") == contents(tmp_path / "straight")


@pytest.mark.parametrize("other", ["text", "tokenizer", "shard_tokens"])
def test_remains_of_another_corpus_are_not_gone_on_from(
    other: str,
    documents: list[str],
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    small_steps: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupted(source_of(documents), tokenizer, tmp_path / "c")
    source = source_of([*documents, "one more"] if other == "text" else documents)
    known = bpe(documents, 390) if other == "tokenizer" else tokenizer
    shard_tokens = 8000 if other == "shard_tokens" else 9000
    prepare(source, known, tmp_path / "c", no_report, shard_tokens)
    prepare(source, known, tmp_path / "straight", no_report, shard_tokens)
    assert contents(tmp_path / "c") == contents(tmp_path / "straight")
    assert "resuming" not in capsys.readouterr().out


def signal_myself(number: int, entry: int) -> None:
    """Make `sslm prepare` take small steps in this process, and get a signal while it makes its n-th entry."""
    take_small_steps()
    terminal.SECONDS_BETWEEN_PLAIN_LINES = -1.0
    real, entries = preparation.Journal.write, itertools.count(1)

    def write(journal: preparation.Journal, folder: Path) -> None:
        if next(entries) == entry:
            os.kill(os.getpid(), number)
        real(journal, folder)

    preparation.Journal.write = write  # type: ignore[method-assign]


def take_small_steps() -> None:
    encode.BATCH_CHARS, preparation.SECONDS_BETWEEN_ENTRIES = 20_000, 0.0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_or_stopped_verb_goes_on(
    number: int,
    text: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    small_steps: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer.save_pretrained(tmp_path / "t")
    command = [
        str(text),
        "--document_separator",
        SEPARATOR,
        "--tokenizer",
        str(tmp_path / "t"),
        "--shard_tokens",
        "9000",
    ]
    stopped = train_forked(
        [*command, "--out", str(tmp_path / "c")],
        tmp_path / "log",
        before=partial(signal_myself, int(number), 6),
        verb=prepare_main,
    )
    assert stopped.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 75), stopped.stdout
    assert "Traceback" not in stopped.stdout
    assert ("run the same command again" in stopped.stdout) == (number != signal.SIGKILL)
    assert not (tmp_path / "c").exists()
    assert prepare_main([*command, "--out", str(tmp_path / "c")]) == 0
    assert "resuming at" in capsys.readouterr().out
    assert prepare_main([*command, "--out", str(tmp_path / "straight")]) == 0
    assert contents(tmp_path / "c") == contents(tmp_path / "straight")
    assert {path.name for path in tmp_path.iterdir()} == {"t", "c", "straight", "log.0"}


def prepare_and_tell(arguments: list[str]) -> int:
    """Prepare TEXT OUT, with a line a batch."""
    source = open_source(arguments[0], text_field="text", document_separator="-----")
    print("begun", flush=True)
    prepare(source, TrainBPE(300), Path(arguments[1]), lambda *done: print(*done, flush=True), 50_000)
    return 0


@pytest.mark.slow
def test_kills_at_random_moments_lose_and_double_nothing(documents: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("-----".join(f"{i} {text}" for i, text in enumerate(documents * 20)))
    random, kills = np.random.default_rng(0), 0

    def start(out: str) -> Ranks:
        arguments = [str(tmp_path / "a.txt"), str(tmp_path / out)]
        return Ranks(arguments, tmp_path / "log", before=take_small_steps, verb=prepare_and_tell)

    while kills < 10:
        process, lines = start("c"), int(random.integers(1, 20))
        while process.is_alive() and process.said().count("\n") < lines:
            time.sleep(0.001)
        time.sleep(float(random.uniform(0, 0.02)))
        process.signal(signal.SIGKILL)
        assert process.wait() == [-signal.SIGKILL], process.said()
        kills += 1
    assert not (tmp_path / "c").exists()
    assert start("c").wait(100) == [0]
    assert start("straight").wait(100) == [0]
    assert contents(tmp_path / "c") == contents(tmp_path / "straight")


def prepare_in_cache(arguments: list[str]) -> int:
    """Prepare TEXT in CACHE, and tell if it was made here."""
    make = preparation._make
    preparation._make = lambda *given: (print("made"), make(*given))[1]
    source = open_source(arguments[0], text_field="text", document_separator=None)
    print(preparation.prepare_cached(source, TrainBPE(300), Path(arguments[1])).num_tokens)
    return 0


def test_processes_that_start_at_once_prepare_once(text: Path, tmp_path: Path) -> None:
    started = [Ranks([str(text), str(tmp_path)], tmp_path / f"log-{n}", verb=prepare_in_cache) for n in range(3)]
    assert [process.wait(100) for process in started] == [[0]] * 3
    outputs = [process.said().split() for process in started]
    assert sum(words.count("made") for words in outputs) == 1
    assert len({words[-1] for words in outputs}) == 1


def test_prepare_verb_makes_what_training_takes(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sslm.train import main as train_main
    from tests.support.runs import TINY

    assert (
        prepare_main(
            [str(text), "--out", str(tmp_path / "c"), "--tokenizer", "bpe:512", "--document_separator", "\n-----\n"]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "120 documents" in said
    assert "tokens/s" in said
    assert prepare_main([str(text), "--out", str(tmp_path / "c")]) == 2
    assert (
        train_main([*TINY, "--data.train", str(tmp_path / "c"), "--run_dir", str(tmp_path / "r"), "--max_steps", "2"])
        == 0
    )


def test_file_replaced_under_an_old_time_stamp_is_hashed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, sha256 = tmp_path / "a.txt", preparation.remembering_hash(tmp_path)
    hashed = []
    monkeypatch.setattr(preparation, "sha256_of", lambda file: hashed.append(file) or sha256_of(file))
    file.write_text("old text")
    os.utime(file, (1e9, 1e9))
    first = sha256(file)
    assert (sha256(file), len(hashed)) == (first, 2)  # it has just changed, and may change again
    monkeypatch.setattr(preparation, "SECONDS_OF_A_TICK", -60.0)  # as if a minute had passed
    assert (sha256(file), sha256(file), len(hashed)) == (first, first, 3)
    file.write_text("new text")
    os.utime(file, (1e9, 1e9))
    second = sha256(file)
    assert (len(hashed), second) == (4, sha256_of(file))
    (tmp_path / "b.txt").write_text("bad text")
    os.utime(tmp_path / "b.txt", (1e9, 1e9))
    os.replace(tmp_path / "b.txt", file)
    assert sha256(file) == sha256_of(file) != second


# ------------------------------------------------------------------------------------------------ memory


def pieces_of(kind: str, size: int, text: str) -> Iterator[Piece]:
    """So many bytes of documents, or words that are a document each, or bytes of a single line."""
    if kind == "documents":
        for _ in range(0, size, len(text)):
            yield from ((text[start : start + 4000], True) for start in range(0, len(text), 4000))
    elif kind == "tiny":
        yield from ((f"w{number}", True) for number in range(size))
    else:
        yield from _whole("word and " * 100_000 for _ in range(size // 900_000))


def prepare_and_watch(arguments: list[str]) -> int:
    """Prepare KIND SIZE TOKENIZER OUT; tell the documents, and what memory, in MB, each half goes back to."""
    kind, size, known, out = arguments
    text, resident = Path(known, "text.txt").read_text(), []

    def watch(*done: object) -> None:
        give_back_memory()  # otherwise it goes up and down by 200 MB as heaps fill
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident.append(pages * resource.getpagesize() >> 20)

    preparation.SECONDS_BETWEEN_ENTRIES = 0.5
    source = Source(kind, [{kind: size}], lambda: pieces_of(kind, int(size), text))
    made = prepare(source, load(known), Path(out), watch)
    quarter = len(resident) // 4
    print(made.num_documents, min(resident[quarter : 2 * quarter]), min(resident[-quarter:]), max(resident))
    return 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("kind", "size"), [("documents", 120_000_000), ("tiny", 1_000_000), ("line", 60_000_000)])
def test_memory_does_not_grow_with_the_text(
    kind: str, size: int, text: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path / "t")
    shutil.copy(text, tmp_path / "t/text.txt")
    arguments = [kind, str(size), str(tmp_path / "t"), str(tmp_path / "c")]
    done = train_forked(arguments, tmp_path / "log", timeout=500, verb=prepare_and_watch)
    assert done.returncode == 0, done.stdout
    num_documents, early, late, most = map(int, done.stdout.split())
    print(f"{kind}: at least {early} MB in the second quarter, {late} MB in the last, at most {most} MB")
    assert kind == "documents" or num_documents == {"tiny": size, "line": 1}[kind]
    assert late < early + 20
    assert most < 900
