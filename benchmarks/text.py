"""The text, the tokenizer and the tokens that all systems share, laid out once in the work folder.

text/0.jsonl … 7.jsonl   documents, as {"text": …}
few/                     the same with a few documents, to warm up on
tokenizer/               a byte-level BPE trained on the text
prepared/limit/tokens.bin  the tokens, one after the other, in 16 bits
setup.json               what was asked for and what came out; written last
"""

import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILES = 8
FEW_CHARS = 20_000
SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt"}
CUT_CHARS = 1 << 16


def set_up(work: Path, text: Path | None, num_tokens: int, vocab_size: int) -> dict[str, Any]:
    """Lay out the work folder, unless it is there already; what is in it."""
    import numpy as np
    from readers import END_OF_TEXT, batched

    from sslm.data.corpus.tokenizer_training import train_bpe

    asked = {"text": str(text) if text else "this Python's library and packages", "vocab_size": vocab_size}
    asked |= {"asked_tokens": num_tokens}
    done = work / "setup.json"
    if done.exists() and (found := json.loads(done.read_text())).items() >= asked.items():
        return found
    texts = list(_up_to(documents(text), 5 * num_tokens))
    tokenizer = train_bpe([(text, True) for text in texts], vocab_size)
    tokenizer.save_pretrained(work / "tokenizer")
    backend = tokenizer.backend_tokenizer
    end = backend.token_to_id(END_OF_TEXT)
    flat = work / "prepared" / "limit"
    flat.mkdir(parents=True, exist_ok=True)
    total = used = 0
    with open(flat / "tokens.bin", "wb") as stream:
        for batch in batched(iter(texts), 1 << 18):
            if total >= num_tokens:
                break
            for encoding in backend.encode_batch(batch, add_special_tokens=False):
                stream.write(np.array([*encoding.ids, end], np.uint16).tobytes())
                total += len(encoding.ids) + 1
            used += len(batch)
    texts = texts[:used]
    _write(work / "text", texts)
    _write(work / "few", [text[:FEW_CHARS] for text in sorted(texts, key=len)[-FILES:]])
    joined = hashlib.sha256("\0".join(texts).encode())
    found = asked | {
        "documents": used,
        "bytes": sum(len(t.encode()) for t in texts),
        "tokens": total,
        "sha256": joined.hexdigest(),
    }
    done.write_text(json.dumps(found, indent=1) + "\n")
    return found


def documents(given: Path | None) -> Iterator[str]:
    """No two alike: of a file or folder, or of what every Python brings and of the packages installed in it."""
    seen: set[bytes] = set()
    for text in _given(given) if given else _installed():
        digest = hashlib.sha256(text.encode()).digest()
        if text.strip() and digest not in seen:
            seen.add(digest)
            yield text


def _installed() -> Iterator[str]:
    library, packages = Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib"))
    ours = (f for f in library.rglob("*") if "site-packages" not in f.relative_to(library).parts)
    for files in (ours, packages.rglob("*")):
        for file in sorted(f for f in files if f.suffix in SUFFIXES and f.is_file()):
            yield from _decoded(file)


def _given(given: Path) -> Iterator[str]:
    files = sorted(f for f in given.rglob("*") if f.is_file()) if given.is_dir() else [given]
    for file in files:
        for text in _decoded(file):
            if file.suffix == ".jsonl":
                yield from (json.loads(line)["text"] for line in text.splitlines())
            else:
                yield from _cut(text)


def _decoded(file: Path) -> Iterator[str]:
    try:
        yield file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return


def _cut(text: str) -> Iterator[str]:
    """Documents of about CUT_CHARS, at the ends of lines."""
    lines, size = [], 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= CUT_CHARS:
            yield "".join(lines)
            lines, size = [], 0
    yield "".join(lines)


def _up_to(texts: Iterator[str], chars: int) -> Iterator[str]:
    for text in texts:
        yield text
        chars -= len(text)
        if chars <= 0:
            return


def _write(folder: Path, texts: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(FILES):
        with open(folder / f"{number}.jsonl", "w", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"text": text}) + "\n" for text in texts[number::FILES])
