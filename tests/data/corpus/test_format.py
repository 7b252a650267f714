"""docs/formats.md says enough to read a prepared corpus without sslm."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sslm.config import DataConfig
from sslm.data.corpus.encode import is_held_out
from sslm.data.corpus.prepare import prepare
from sslm.data.corpus.tokenizer import TrainBPE, load
from sslm.data.labelled.classes import Classes
from sslm.data.labelled.prepare import open_labelled
from tests.support.documents import no_report, source_of


def documents_by_the_page(folder: Path, split: str) -> list[list[int]]:
    """Read all documents of a split by what docs/formats.md says; nothing of sslm is used here."""
    index = json.loads((folder / "index.json").read_text())
    assert index["format"] == 1
    for name, file in index.get("tokenizer_files", {}).items():
        assert checked(folder / "tokenizer" / name, file["sha256"]).stat().st_size == file["bytes"]
    documents, document = [], list[int]()
    for shard in index["shards"]:
        if shard["split"] != split:
            continue
        tokens = checked(folder / shard["file"], shard["sha256"])
        ends_file = shard.get("ends") or shard["file"].removesuffix(".bin") + ".ends"
        ends = np.fromfile(checked(folder / ends_file, shard.get("ends_sha256", "")), "<i8")
        dtype = {"uint16": "<u2", "uint32": "<u4"}[index["dtype"]]
        ids = np.fromfile(tokens, dtype, offset=shard.get("offset", 0)).tolist()
        assert (len(ids), len(ends)) == (shard["num_tokens"], shard["num_documents"])
        start = 0
        for end in ends.tolist():
            documents.append(document + ids[start:end])
            document, start = [], end
        document += ids[start:]
    return [*documents, document] if document else documents


def checked(file: Path, sha256: str) -> Path:
    if sha256 and not sha256.startswith("sampled:"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() == sha256
    return file


def without_what_old_corpora_lack(index: dict[str, Any]) -> dict[str, Any]:
    shards = [
        {key: value for key, value in shard.items() if key not in ("ends_sha256", "offset", "ends")}
        for shard in index["shards"]
    ]
    return {**{key: value for key, value in index.items() if key != "tokenizer_files"}, "shards": shards}


@pytest.mark.parametrize("is_old", [False, True])
def test_a_corpus_is_read_with_nothing_but_the_page(tmp_path: Path, is_old: bool) -> None:
    texts = [f"document number {n}, " + "and so on " * (n % 7) for n in range(400)]
    prepare(source_of(texts), TrainBPE(300), tmp_path / "c", no_report, shard_tokens=1000)
    tokenizer = load(tmp_path / "c" / "tokenizer")
    index_file = tmp_path / "c" / "index.json"
    if is_old:
        index_file.write_text(json.dumps(without_what_old_corpora_lack(json.loads(index_file.read_text()))))
    for split in ("train", "val"):
        expected = [
            [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            for number, text in enumerate(texts)
            if is_held_out(number) == (split == "val")
        ]
        assert expected
        assert documents_by_the_page(tmp_path / "c", split) == expected


def test_labelled_examples_are_read_with_nothing_but_the_page(tmp_path: Path) -> None:
    rows = [(f"text number {n}", sorted({f"l{n % 35}", f"l{n % 40}"})) for n in range(80)]
    lines = (json.dumps({"text": text, "label": labels}) for text, labels in rows)
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    given, task = [str(tmp_path / "rows.jsonl")], Classes(32, multi_label=True)
    opened = open_labelled(given, None, task, TrainBPE(300), DataConfig(), tmp_path / "cache")
    folder, tokenizer = opened.train[0].folder, load(opened.train[0].tokenizer_folder)
    labelled = json.loads((folder / "index.json").read_text())["labelled"]
    seen = []
    for split in ("train", "val"):
        records = documents_by_the_page(folder, split)
        assert len(records) == labelled[split]["rows"]
        for record in records:
            lengths, at = record[: len(labelled["fields"])], len(labelled["fields"])
            fields = {}
            for name, length in zip(labelled["fields"], lengths, strict=True):
                fields[name], at = record[at : at + length], at + length
            text, labels = rows[fields["row"][0]]
            assert fields["input_ids"] == tokenizer(text)["input_ids"]
            is_set = (fields["labels"][n // 32] >> n % 32 & 1 for n in range(len(labelled["names"])))
            assert [name for name, wanted in zip(labelled["names"], is_set, strict=True) if wanted] == labels
            seen.append(fields["row"][0])
    assert sorted(seen) == list(range(80))
