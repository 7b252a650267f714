"""Token files of other tools: written here from their published layouts, read back as corpora."""

import json
import multiprocessing
import os
import pickle
import signal
import struct
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sslm.data import foreign
from sslm.data.corpus.prepare import prepare
from sslm.data.corpus.shards import Corpus, Shard
from sslm.data.corpus.tokenizer_training import train_bpe
from sslm.data.foreign import check_vocabulary, open_foreign, recognise
from sslm.data.foreign import files as foreign_files
from sslm.data.foreign import megatron as megatron_files
from sslm.system.errors import UserError, sentence_of
from tests.support.documents import no_report, source_of

Documents = list[list[int]]
END = 7

MEGATRON_CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "float64": 6, "float32": 7, "uint16": 8}


def flat(lists: Documents) -> list[int]:
    return [number for each in lists for number in each]


def write_megatron(
    prefix: Path, documents: Sequence[Sequence[list[int]]], dtype: str = "int32", modes: bool = False
) -> None:
    """`documents` of sequences."""
    sequences = [sequence for document in documents for sequence in document]
    lengths = [len(sequence) for sequence in sequences]
    pointers = np.concatenate([[0], np.cumsum(lengths)])[: len(lengths)] * np.dtype(dtype).itemsize
    write_pair(
        prefix,
        np.array(flat(sequences), dtype),
        lengths,
        pointers.tolist(),
        [0, *np.cumsum([len(document) for document in documents]).tolist()],
        modes,
    )


def write_pair(
    prefix: Path, ids: Any, lengths: list[int], pointers: list[int], bounds: list[int], modes: bool = False
) -> None:
    prefix.parent.mkdir(parents=True, exist_ok=True)
    Path(f"{prefix}.bin").write_bytes(ids.tobytes())
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, MEGATRON_CODES[ids.dtype.name], len(lengths), len(bounds))
    tail = np.zeros(len(lengths) if modes else 0, np.int8).tobytes()
    Path(f"{prefix}.idx").write_bytes(
        head
        + np.array(lengths, np.int32).tobytes()
        + np.array(pointers, np.int64).tobytes()
        + np.array(bounds, np.int64).tobytes()
        + tail
    )


def write_llm_c(file: Path, ids: list[int], magic: int = 20240520, version: int = 1, count: int | None = None) -> None:
    header = np.zeros(256, np.int32)
    header[:3] = magic, version, len(ids) if count is None else count
    file.write_bytes(header.tobytes() + np.array(ids, np.uint32 if magic == 20240801 else np.uint16).tobytes())


def write_parquet(
    file: Path, lists: list[list[int] | None], name: str = "input_ids", kind: Any = None, **how: Any
) -> None:
    pq.write_table(pa.table({name: pa.array(lists, kind or pa.list_(pa.int64()))}), file, **how)


def open_here(given: Path, **how: Any) -> Corpus:
    """With a cache of its own, beside it."""
    return open_foreign(given, given.parent / "cache", **how)


def documents_of(corpus: Corpus, split: str = "train") -> Documents:
    """As they are read: a document that no shard ends goes on in the next."""
    found: Documents = []
    rest: list[int] = []
    for shard in corpus.shards:
        if shard.split == split:
            ids, start = rest + corpus.tokens(shard).tolist(), 0
            for end in corpus.document_ends(shard) + len(rest):
                found.append(ids[start:end])
                start = int(end)
            rest = ids[start:]
    assert not rest
    return found


def is_mapped(corpus: Corpus) -> bool:
    return all(Path(shard.file).is_absolute() for shard in corpus.shards)


# --------------------------------------------------------------------------------------------- every format, back again


def megatron(folder: Path, documents: Documents, dtype: str) -> Path:
    write_megatron(folder / "a", [[document] for document in documents], dtype)
    return folder


def megatron_in_parts(folder: Path, documents: Documents, dtype: str) -> Path:
    parts = [[document[:1], document[1:3], [], document[3:]] for document in documents]
    write_megatron(folder / "a", parts, dtype, modes=True)
    return folder


def megatron_reversed(folder: Path, documents: Documents, dtype: str) -> Path:
    """The last sequence lies first, with ids between them that belong to none."""
    gap, pointers, ids = [99], [], []
    for document in reversed(documents):
        ids += gap
        pointers.insert(0, len(ids) * np.dtype(dtype).itemsize)
        ids += document
    lengths = [len(document) for document in documents]
    write_pair(folder / "a", np.array(ids, dtype), lengths, pointers, list(range(len(documents) + 1)))
    return folder


def nanogpt(folder: Path, documents: Documents, dtype: str) -> Path:
    np.array(flat(documents), np.uint16).tofile(folder / "train.bin")
    return folder


def llm_c(folder: Path, documents: Documents, dtype: str) -> Path:
    """In two shards; documents don't heed them."""
    ids = flat(documents)
    magic, version = (20240801, 7) if dtype == "uint32" else (20240520, 1)
    for number, part in enumerate((ids[: len(ids) // 2], ids[len(ids) // 2 :])):
        write_llm_c(folder / f"fineweb_train_{number:06d}.bin", part, magic, version)
    return folder


def npy_files(folder: Path, documents: Documents, dtype: str) -> Path:
    for number, document in enumerate(documents):
        np.save(folder / f"{number:03d}.npy", np.array(document, dtype))
    return folder


def npy_file(folder: Path, documents: Documents, dtype: str) -> Path:
    np.save(folder / "all.npy", np.array(flat(documents), dtype))
    return folder


def parquet(folder: Path, documents: Documents, dtype: str) -> Path:
    half = len(documents) // 2
    kind = pa.large_list(pa.from_numpy_dtype(dtype))
    write_parquet(folder / "0.parquet", documents[:half], kind=kind, row_group_size=2)
    write_parquet(folder / "1.parquet", documents[half:], kind=kind)
    return folder


Write = Callable[[Path, Documents, str], Path]
INTEGERS = ("uint8", "int8", "int16", "int32", "int64", "uint16")
FORMATS: list[tuple[Write, str, tuple[str, ...], bool]] = [
    # how it is written; what it is recognised as; types it can have; whether documents are told apart by an id
    (megatron, "megatron", INTEGERS, False),
    (megatron_in_parts, "megatron", INTEGERS, False),
    (megatron_reversed, "megatron", INTEGERS, False),
    (nanogpt, "nanogpt", ("uint16",), True),
    (llm_c, "llm.c", ("uint16", "uint32"), True),
    (npy_files, "npy", (*INTEGERS, "uint32", "uint64", ">i4", ">u2"), False),
    (npy_file, "npy", (*INTEGERS, "uint32", "uint64", ">i4", ">u2"), True),
    (parquet, "parquet", ("uint8", "int16", "int32", "int64", "uint16", "uint32", "uint64"), False),
]


@pytest.mark.parametrize(("write", "kind", "dtypes", "by_id"), FORMATS, ids=[write.__name__ for write, *_ in FORMATS])
@given(data=st.data(), chunk=st.integers(1, 9))
@settings(max_examples=12, deadline=None)
def test_every_format_gives_its_documents_back(
    write: Write, kind: str, dtypes: tuple[str, ...], by_id: bool, data: st.DataObject, chunk: int
) -> None:
    dtype = data.draw(st.sampled_from(dtypes))
    largest = min(np.iinfo(dtype).max, foreign.LARGEST_ID)
    numbers = st.one_of(st.integers(0, 9), st.integers(0, largest)).filter(lambda n: not by_id or n != END)
    documents = data.draw(st.lists(st.lists(numbers, max_size=12), max_size=8))
    documents = [*documents, data.draw(st.lists(numbers, min_size=1, max_size=12))]
    if by_id:
        documents = [[*document, END] for document in documents]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as scratch:
        patch.setattr(foreign_files, "CHUNK_TOKENS", chunk)
        patch.setattr(megatron_files, "CHUNK_SEQUENCES", chunk)
        patch.setattr(foreign, "MAPPED_TOKENS", data.draw(st.sampled_from([0, 1 << 20])))
        folder = Path(scratch, "corpus")
        folder.mkdir()
        write(folder, documents, dtype)
        assert recognise(folder) == kind
        for _ in ("read", "from the cache"):
            corpus = open_here(folder, end_id=END if by_id else None)
            # of files that are mapped those without ids are left out
            expected = [d for d in documents if d] if write is npy_files and is_mapped(corpus) else documents
            assert documents_of(corpus) == expected
            assert corpus.num_documents == len(expected)
            assert corpus.vocab_size == 1 + max(map(max, filter(None, documents)))
            assert (corpus.tokenizer, corpus.tokenizer_sha256) == ("", "")


def test_ids_of_16_and_32_bits_are_mapped_where_they_lie(tmp_path: Path) -> None:
    documents = [[3, 1, END], [4, 1, 5, END]]
    for number, (write, dtype) in enumerate(
        [
            (megatron, "int32"),
            (megatron, "uint16"),
            (megatron, "int16"),
            (nanogpt, "uint16"),
            (llm_c, "uint32"),
            (npy_file, "int32"),
            (npy_file, "uint32"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, documents, dtype)
        if write is llm_c:
            (folder / "fineweb_train_000001.bin").unlink()
        before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in folder.iterdir()}
        corpus = open_here(folder, end_id=END)
        [shard] = corpus.shards
        assert Path(shard.file).parent == folder
        tokens = corpus.tokens(shard)
        assert isinstance(tokens, np.memmap)
        assert tokens.dtype == corpus.dtype == ("uint16" if "16" in dtype else "uint32")
        assert {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in folder.iterdir()} == before


def test_many_small_files_are_joined_and_large_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "MAPPED_TOKENS", 4)
    for name, sizes, is_kept in (("small", [3, 3, 3], False), ("large", [4, 3, 5], True), ("one", [2], True)):
        folder = tmp_path / name
        folder.mkdir()
        npy_files(folder, [[1] * size for size in sizes], "uint16")
        corpus = open_here(folder)
        assert is_mapped(corpus) == is_kept
        assert len(corpus.shards) == (len(sizes) if is_kept else 1)
        assert documents_of(corpus) == [[1] * size for size in sizes]


def test_files_of_different_types_are_joined(tmp_path: Path) -> None:
    folder = tmp_path / "ids"
    folder.mkdir()
    np.save(folder / "0.npy", np.array([1, 2], np.uint16))
    np.save(folder / "1.npy", np.array([70_000], np.int32))
    corpus = open_here(folder)
    assert (corpus.dtype, documents_of(corpus)) == ("uint32", [[1, 2], [70_000]])


@pytest.mark.parametrize("order", ["C", "F"])
def test_each_row_of_a_2d_npy_is_a_document(tmp_path: Path, order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_files, "CHUNK_TOKENS", 7)
    rows = np.arange(15, dtype=np.uint16).reshape(5, 3)
    np.save(tmp_path / "rows.npy", np.asarray(rows, order=order))
    corpus = open_here(tmp_path / "rows.npy", end_id=4)  # a row is a document whatever is in it
    assert documents_of(corpus) == rows.tolist()
    assert is_mapped(corpus) == (order == "C")


def test_a_file_is_not_a_document_unless_it_says_so(tmp_path: Path) -> None:
    """nanoGPT's and llm.c's files are cut without regard to documents; an .npy is one."""
    np.array([1, 2, END, 3], np.uint16).tofile(tmp_path / "train.bin")
    np.save(tmp_path / "a.npy", np.array([1, 2, END, 3], np.uint16))
    for name, end_id, ends in (
        ("train.bin", None, []),
        ("train.bin", END, [3]),
        ("a.npy", None, [4]),
        ("a.npy", END, [3, 4]),
    ):
        corpus = open_here(tmp_path / name, end_id=end_id)
        assert corpus.document_ends(corpus.shards[0]).tolist() == ends
        assert corpus.tokens(corpus.shards[0]).tolist() == [1, 2, END, 3]


def test_end_id_beyond_the_type_ends_nothing(tmp_path: Path) -> None:
    np.array([1, 2], np.uint16).tofile(tmp_path / "train.bin")
    assert open_here(tmp_path / "train.bin", end_id=100_000).num_documents == 0
    with pytest.raises(UserError, match="end-of-document id -1"):
        open_here(tmp_path / "train.bin", end_id=-1)


# ------------------------------------------------------------------------------------------------ what is in a folder


def test_names_tell_what_is_held_out(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    for name, ids in (
        ("train/a", [1]),
        ("train/b", [2]),
        ("val/c", [3]),
        ("d_val_00", [4]),
        ("Validation", [5]),
        ("test", [6]),
        ("evaluation", [7]),
        ("deep/validation/e", [8]),
        ("test/f", [9]),
        (".hidden/g", [10]),
    ):
        write_megatron(folder / name, [[ids]], "uint16")
    corpus = open_here(folder)
    assert sorted(documents_of(corpus)) == [[1], [2], [7]]
    assert sorted(documents_of(corpus, "val")) == [[3], [4], [5], [8]]


def test_a_file_named_by_itself_is_trained_on_whatever_its_name(tmp_path: Path) -> None:
    for name in ("val.bin", "test.bin"):
        np.array([1, 2], np.uint16).tofile(tmp_path / name)
        assert [shard.split for shard in open_here(tmp_path / name).shards] == ["train"]


def test_megatron_is_found_by_prefix_either_file_folder_or_pattern(tmp_path: Path) -> None:
    write_megatron(tmp_path / "corpus/my_text_document", [[[1, 2]], [[3]]])
    for name in ("my_text_document", "my_text_document.bin", "my_text_document.idx", "", "*", "*.bin", "my*.idx"):
        given = tmp_path / "corpus" / name
        assert recognise(given) == "megatron"
        assert documents_of(open_foreign(given, tmp_path / "cache")) == [[1, 2], [3]], name


def test_nanogpts_and_megatrons_folders_hold_the_text_too(tmp_path: Path) -> None:
    for name in ("shakespeare", "megatron", "llm.c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "input.txt").write_text("To be")
        (tmp_path / name / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 65}))
    np.array([1, 2], np.uint16).tofile(tmp_path / "shakespeare/train.bin")
    np.array([3], np.uint16).tofile(tmp_path / "shakespeare/val.bin")
    write_megatron(tmp_path / "megatron/a", [[[1]]])
    write_llm_c(tmp_path / "llm.c/a.bin", [1])
    assert [recognise(tmp_path / name) for name in ("shakespeare", "megatron", "llm.c")] == [
        "nanogpt",
        "megatron",
        "llm.c",
    ]
    corpus = open_here(tmp_path / "shakespeare")
    assert [(shard.split, corpus.tokens(shard).tolist()) for shard in corpus.shards] == [
        ("train", [1, 2]),
        ("val", [3]),
    ]


def test_parquets_column_is_the_users_or_the_first_of_the_usual(tmp_path: Path) -> None:
    lists = {"codes": [[1, 2], [3]], "tokens": [[4], [5, 6]], "ids": [[7], [8]]}
    pq.write_table(pa.table({"number": [1, 2], **lists}), tmp_path / "a.parquet")
    assert documents_of(open_here(tmp_path / "a.parquet")) == lists["tokens"]
    assert documents_of(open_here(tmp_path / "a.parquet", text_field="codes")) == lists["codes"]
    pq.write_table(pa.table({"text": ["a", "b"], "input_ids": lists["ids"]}), tmp_path / "b.parquet")
    assert recognise(tmp_path / "b.parquet") is None
    assert recognise(tmp_path / "b.parquet", "input_ids") == "parquet"


def test_fixed_length_lists_of_a_sliced_table_keep_their_rows(tmp_path: Path) -> None:
    codes = pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int16(), 2))
    pq.write_table(pa.table({"ids": codes}).slice(1), tmp_path / "a.parquet")
    assert documents_of(open_here(tmp_path / "a.parquet")) == [[3, 4], [5, 6]]


def test_other_folders_are_not_taken_for_ids(tmp_path: Path) -> None:
    import datasets
    import torch

    folders = {
        name: tmp_path / name
        for name in ("text", "text_parquet", "stray", "model", "legacy_model", "openvino", "git", "empty")
    }
    for folder in folders.values():
        folder.mkdir()
    (folders["text"] / "a.txt").write_text("text")
    (folders["text"] / "b.jsonl").write_text('{"text": "text"}')
    pq.write_table(pa.table({"text": ["a"], "tokens": [["a", "b"]], "ids": [1]}), folders["text_parquet"] / "a.parquet")
    (folders["stray"] / "a.txt").write_text("text")
    (folders["stray"] / "lid.176.bin").write_bytes(bytes(100))
    (folders["openvino"] / "config.json").write_text("{}")
    (folders["openvino"] / "model.bin").write_bytes(bytes(100))
    torch.save({"a": torch.zeros(3)}, folders["model"] / "pytorch_model.bin")
    torch.save(
        {"a": torch.zeros(3)}, folders["legacy_model"] / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    (folders["git"] / "pack-1.idx").write_bytes(b"\xfftOc" + bytes(100))
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2]]})
    rows.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved_dict"))
    prepare(source_of(["some text"] * 3), train_bpe([("some text", True)], 300), tmp_path / "prepared", no_report)
    (tmp_path / "around" / "prepared").parent.mkdir()
    (tmp_path / "prepared").rename(tmp_path / "around" / "prepared")
    others = [tmp_path / name for name in ("saved", "saved_dict", "around", "around/prepared", "absent", "gpt2")]
    for place in (*folders.values(), *others, folders["text"] / "a.txt", folders["model"] / "pytorch_model.bin"):
        assert recognise(place) is None, place
    for name in ("s3://bucket/ids", "roneneldan/TinyStories", "hf://a/b/*.parquet", ""):
        assert recognise(name) is None, name


def test_an_empty_file_and_metadata_say_nothing_of_a_folder_of_ids(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").touch()
    pq.write_table(pa.table({"input_ids": [[1, 2]]}), tmp_path / "b.parquet")
    for name in ("metadata.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    assert recognise(tmp_path) == "parquet"


# ------------------------------------------------------------------------------------------------ the cache


def test_files_are_read_once_and_again_when_they_changed(tmp_path: Path) -> None:
    """The report is told of every chunk that is read."""
    reads: list[int] = []

    def progress() -> Any:
        return nullcontext(lambda documents, tokens, share=None: reads.append(tokens))

    file = tmp_path / "train.bin"
    np.array([1, 2, 3], np.uint16).tofile(file)
    opened = [open_here(file, progress=progress) for _ in range(3)]
    assert reads == [3]
    assert len({corpus.sha256 for corpus in opened}) == 1
    np.array([1, 2, 3, 9], np.uint16).tofile(file)
    corpus = open_here(file, progress=progress)
    assert reads == [3, 4]
    assert corpus.vocab_size == 10
    assert corpus.sha256 != opened[0].sha256


def test_what_is_damaged_in_the_cache_is_made_again(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([1, 2, 3], np.uint16))
    corpus = open_here(tmp_path / "a.npy")
    (corpus.folder / corpus.shards[0].ends).write_bytes(b"")
    assert documents_of(open_here(tmp_path / "a.npy")) == [[1, 2, 3]]


def test_identity_depends_on_contents_and_documents_not_on_place(tmp_path: Path) -> None:
    ids = list(range(100))
    for place, documents in (("here", [ids]), ("there", [ids]), ("cut", [ids[:50], ids[50:]])):
        write_megatron(tmp_path / place / "a", [[document] for document in documents], "uint16")
    here, there, cut = (open_here(tmp_path / place) for place in ("here", "there", "cut"))
    assert here.sha256 == there.sha256 != cut.sha256


def test_sampled_hash_sees_size_beginning_end_and_samples_and_is_no_checksum(tmp_path: Path) -> None:
    file = tmp_path / "train.bin"
    size = 32 << 20
    data = bytearray(size)

    def identity() -> str:
        file.write_bytes(data)
        return open_here(file).shards[0].sha256

    first = identity()
    assert first.startswith("sampled:")
    between = (1 << 20) + 12345
    for place, is_seen in ((0, True), (size - 1, True), (31 * (size - (1 << 16)) // 63, True), (between, False)):
        data[place] = 1
        assert (identity() != first) == is_seen, place
        data[place] = 0
    data += bytes(2)
    assert identity() != first
    corpus = open_here(file)
    assert corpus.token_file(corpus.shards[0])[2] == ""  # nobody is told that this vouches for the file


def open_in_process(given: str, cache: str, results: Any) -> None:
    results.put(documents_of(open_foreign(given, Path(cache))))


def test_processes_that_open_at_once_share_one_cache(tmp_path: Path) -> None:
    folder = tmp_path / "ids"
    folder.mkdir()
    npy_files(folder, [[i, i + 1] for i in range(300)], "int64")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [
        context.Process(target=open_in_process, args=(str(folder), str(tmp_path / "cache"), results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    results.close()
    assert found == [[[i, i + 1] for i in range(300)]] * 3
    assert len(list((tmp_path / "cache/corpora").iterdir())) == 1


def open_until_killed(given: str, cache: str) -> None:
    def killed(documents: int, tokens: int, share: float | None = None) -> None:
        if documents == 20:
            os.kill(os.getpid(), signal.SIGKILL)

    open_foreign(given, Path(cache), progress=lambda: nullcontext(killed))


@pytest.mark.parametrize("dtype", ["int64", "uint16"])
def test_a_killed_maker_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_files, "CHUNK_TOKENS", 2)
    monkeypatch.setattr(megatron_files, "CHUNK_SEQUENCES", 2)
    documents = [[i, i] for i in range(100)]
    (tmp_path / "ids").mkdir()
    megatron(tmp_path / "ids", documents, dtype)
    process = multiprocessing.get_context("fork").Process(
        target=open_until_killed, args=(str(tmp_path / "ids"), str(tmp_path / "cache"))
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert documents_of(open_here(tmp_path / "ids")) == documents
    assert len([file for file in (tmp_path / "cache/corpora").iterdir() if not file.name.endswith(".lock")]) == 1


# ------------------------------------------------------------------------------------------------ faults


def refused(given: Path, **how: Any) -> str:
    """The sentence; nothing is left in the cache."""
    with pytest.raises(UserError) as caught:
        open_here(given, **how)
    corpora = given.parent / "cache/corpora"
    assert not corpora.exists() or not list(corpora.iterdir())
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(given.parent) in sentence
    return sentence


def test_damaged_nanogpt_files(tmp_path: Path) -> None:
    (tmp_path / "odd.bin").write_bytes(b"abc")
    assert "odd number" in refused(tmp_path / "odd.bin")
    (tmp_path / "empty.bin").write_bytes(b"")
    assert "empty" in refused(tmp_path / "empty.bin")


@pytest.mark.parametrize("dtype", ["uint32", "int64"])
def test_raw_files_of_wider_ids_are_noticed(tmp_path: Path, dtype: str) -> None:
    np.arange(0, 128_000, 1000, dtype=dtype).tofile(tmp_path / "train.bin")
    assert "look like 32 or 64 bits" in refused(tmp_path / "train.bin")
    np.arange(0, 12_800, 100, dtype=np.uint16).tofile(tmp_path / "train.bin")
    assert open_here(tmp_path / "train.bin").num_tokens == 128


def test_damaged_llm_c_files(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    write_llm_c(file, [1, 2, 3], count=4)
    assert "cut off" in refused(file)
    write_llm_c(file, [1, 2, 3], count=2)
    assert "longer" in refused(file)
    write_llm_c(file, [1, 2, 3], count=-3)
    assert "longer" in refused(file)
    write_llm_c(file, [1, 2, 3], version=2)
    assert "version 2" in refused(file)
    write_llm_c(file, [1, 2, 3], magic=20240522)
    assert "evaluation" in refused(file)
    write_llm_c(file, [1, 2, 3], magic=20300101)
    assert "magic 20300101" in refused(file)
    write_llm_c(file, [])
    assert "no token ids" in refused(file)
    write_llm_c(file, [1])
    file.write_bytes(file.read_bytes()[:1000])
    assert "header" in refused(file)


def test_damaged_megatron_indices(tmp_path: Path) -> None:
    idx, tokens = tmp_path / "a.idx", tmp_path / "a.bin"

    def again(**changes: Any) -> bytearray:
        write_megatron(tmp_path / "a", [[[1, 2, 3]], [[4, 5]]], "uint16")
        return bytearray(idx.read_bytes())

    def index_of(place: int, value: int, form: str) -> None:
        raw = again()
        struct.pack_into(form, raw, place, value)
        idx.write_bytes(raw)

    index_of(0, ord("X"), "<B")
    assert "MMIDIDX" in refused(idx)
    index_of(9, 2, "<Q")
    assert "version 2" in refused(idx)
    index_of(17, 7, "<B")
    assert "float32" in refused(idx)
    index_of(17, 77, "<B")
    assert "code 77" in refused(idx)
    index_of(18, 3, "<Q")
    assert "3 sequences" in refused(idx)
    index_of(34, 4, "<i")  # the first length: sequences now overlap, and more ids are asked for than there are
    assert documents_of(open_foreign(idx, tmp_path / "other")) == [[1, 2, 3, 4], [4, 5]]
    index_of(38, 3, "<i")
    assert "sequence 1" in refused(idx)
    index_of(38, -1, "<i")
    assert "sequence 1" in refused(idx)
    index_of(38, 1, "<i")
    assert "don't belong together" in refused(idx)
    index_of(42, -2, "<q")
    assert "sequence 0" in refused(idx)
    index_of(42, 2**63 - 2, "<q")
    assert "sequence 0" in refused(idx)
    for place, value in ((58, 1), (66, 3), (66, -1), (74, 1), (74, 3)):  # 0, 1, 2: the document index
        index_of(place, value, "<q")
        assert "its documents" in refused(idx)
    idx.write_bytes(again()[:-8])
    assert "damaged" in refused(idx)
    idx.write_bytes(again()[:20])
    assert "header" in refused(idx)
    idx.write_bytes(b"")
    assert "MMIDIDX" in refused(idx)
    again()
    tokens.write_bytes(tokens.read_bytes()[:-2])
    assert "cut off" in refused(idx)
    again()
    tokens.unlink()
    assert "there is no a.bin" in refused(idx)
    assert "there is no a.bin" in refused(tmp_path / "a.id*")
    write_megatron(tmp_path / "a", [[[1, -2]]], "int32")
    assert "-2 at place 1" in refused(idx)
    write_megatron(tmp_path / "a", [[[]], []], "uint16")
    assert "no token ids" in refused(idx)


def test_npy_that_holds_no_ids(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    for array, why in (
        (np.zeros(3), "float64"),
        (np.zeros(3, bool), "bool"),
        (np.zeros(3, [("a", "u2"), ("b", "u2")]), "whole numbers"),
        (np.zeros((2, 2, 2), np.uint16), "3 dimensions"),
        (np.array(3), "0 dimensions"),
        (np.zeros(0, np.uint16), "no token ids"),
        (np.zeros((3, 0), np.uint16), "no token ids"),
        (np.array([1, -5]), "-5 at place 1"),
        (np.array([1, -5], np.int32), "-5 at place 1"),
        (np.array([0, 1, -5], np.int8), "-5 at place 2"),
        (np.array([1 << 32]), "4294967296 at place 0"),
        (np.array([1 << 63], np.uint64), "9223372036854775808 at place 0"),
    ):
        np.save(file, array)
        assert why in refused(file)


def test_npy_is_never_unpickled(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    for content in (np.array([Explosive()], object), Explosive()):
        if isinstance(content, np.ndarray):
            np.save(file, content, allow_pickle=True)
        else:
            file.write_bytes(pickle.dumps(content))
        assert "whole numbers" in refused(file)


class Explosive:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("it was unpickled",)


def test_damaged_npy_files(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    np.save(file, np.arange(1000, dtype=np.uint16))
    whole = file.read_bytes()
    for content in (whole[:-1], whole[:50], b"", b"not at all"):
        file.write_bytes(content)
        assert "damaged" in refused(file)
    file.write_bytes(whole + b"\0\0")
    assert "longer" in refused(file)
    np.savez(file.with_suffix(".npz"), a=np.arange(3))
    file.with_suffix(".npz").rename(file)
    assert "damaged" in refused(file)


def test_parquet_that_holds_no_ids(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_parquet(file, [[1]], name="others")
    assert "no token ids there" in refused(file)
    write_parquet(file, [[1]], kind=pa.list_(pa.float32()))
    assert "list<element: float>" in refused(file)
    for rows in ([[1, 2], None, [3]], [[1, 2], [None], [3]]):
        write_parquet(file, rows)  # type: ignore[arg-type]
        assert "null in rows 0 to 3" in refused(file)
    write_parquet(file, [[1, 2], [3, -4]])
    assert "-4 at place 3" in refused(file)
    write_parquet(file, [[1], [1 << 32]])
    assert "4294967296" in refused(file)
    write_parquet(file, [[], []])
    assert "no token ids" in refused(file)
    write_parquet(file, [])
    assert "no token ids" in refused(file)


def test_damaged_parquet(tmp_path: Path) -> None:
    folder = tmp_path / "ids"
    folder.mkdir()
    write_parquet(folder / "0.parquet", [[1, 2]])
    (folder / "1.parquet").write_bytes((folder / "0.parquet").read_bytes()[:-20])
    assert "1.parquet: not a Parquet file" in refused(folder)
    write_parquet(folder / "1.parquet", [[1, 2]], name="others")
    assert "1.parquet: has no column" in refused(folder)
    write_parquet(folder / "1.parquet", [[i % 1000 for i in range(10000)]], compression="snappy")
    raw = bytearray((folder / "1.parquet").read_bytes())
    raw[10:200] = bytes(190)
    (folder / "1.parquet").write_bytes(raw)
    assert "1.parquet: can't be read" in refused(folder)


def test_two_kinds_in_one_folder_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    write_megatron(tmp_path / "a/x", [[[1]]])
    np.array([1], np.uint16).tofile(tmp_path / "a/train.bin")
    np.save(tmp_path / "b/x.npy", np.array([1]))
    write_parquet(tmp_path / "b/y.parquet", [[1]])
    np.save(tmp_path / "c/x.npy", np.array([1]))
    (tmp_path / "c/metadata.jsonl").write_text('{"text": "about x"}')
    for name, both in (
        ("a", "nanogpt (train.bin) and megatron (x.idx)"),
        ("b", "npy (x.npy) and parquet (y.parquet)"),
        ("c", "npy (x.npy) and text (metadata.jsonl)"),
    ):
        assert both in refused(tmp_path / name)
    assert f"'{tmp_path}/c/*.npy'" in refused(tmp_path / "c")
    assert documents_of(open_here(tmp_path / "c/*.npy")) == [[1]]


def test_a_folder_of_tests_only_is_refused(tmp_path: Path) -> None:
    write_megatron(tmp_path / "ids/test_text_document", [[[1]]])
    assert "named test" in refused(tmp_path / "ids")


def test_a_tokenizer_must_know_every_id(tmp_path: Path) -> None:
    np.array([5, 99], np.uint16).tofile(tmp_path / "train.bin")
    corpus = open_here(tmp_path / "train.bin")
    check_vocabulary(corpus, "train.bin", "gpt2", 100)
    with pytest.raises(UserError, match="largest id is 99, and gpt2 has 99 entries"):
        check_vocabulary(corpus, "train.bin", "gpt2", 99)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([1, 2]))
    (tmp_path / "cache").write_text("a file where the cache should be")
    with pytest.raises(OSError, match="cache") as caught:
        open_here(tmp_path / "a.npy")
    assert "check this path" in str(sentence_of(caught.value))


def test_prepared_corpora_keep_their_ends_beside_their_tokens() -> None:
    shard = Shard("train-00000.bin", "train", 10, 2, 0, "0" * 64)
    corpus = Corpus(Path(), "uint16", 9, "", "", (shard,))
    assert corpus.ends_file(shard)[0] == "train-00000.ends"
    assert corpus.token_file(shard) == ("train-00000.bin", 20, "0" * 64)
    assert json.dumps(shard.ends) == '""'
