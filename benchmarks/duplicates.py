"""How fast duplicates are found, in how much memory, and which; beside datasketch, datatrove and rensa.

    pip install --no-deps datasketch==2.0.0 rensa==0.5.0 xxhash==3.5.0 datatrove==0.10.0 loguru humanize
    python benchmarks/duplicates.py [speed] [found] [corpus] [--documents 1000000] [--rounds 5] [--out FILE.json]

- speed: microseconds of CPU for a document of 1.3 kB, shingling included, on one core: the median of rounds in which
  all take turns. datatrove has its own way to words replaced by str.split, which is faster; rensa and datasketch get
  the words that str.split finds in the text in lower case.
- found: of pairs of documents with a known share of runs of five words, how many end up in a band together, beside
  1 − (1 − s^8)^14; true similarities of all pairs by counting.
- corpus: seconds, peak memory and files of a corpus of so many documents, of which a tenth are copies and a tenth near
  copies: signatures on one core, then `resolve`, in a process of its own.

Peers that are not installed are left out.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import threading
import time
import types
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from importlib import import_module
from itertools import combinations
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslm.data.cleaning.duplicates import METHODS, Deduplication, decision_file, read_decision, resolve, signatures

HOW = Deduplication(("minhash",))
CHARACTERS, WORDS = 1300, 200
BLOCK = 5000
"""Documents of a block: 7 MB."""
Facts = dict[str, Any]


def speed(given: argparse.Namespace) -> Facts:
    prose = "\n".join(topics[name] for name in sorted(topics))
    starts = random.Random(0).sample(range(len(prose) - CHARACTERS), 2000)
    texts = [prose[start : start + CHARACTERS] for start in starts]
    sides: dict[str, Callable[[list[str]], object]] = {"sslm minhash": lambda some: signatures(some, HOW)}
    for method in METHODS[:1] + METHODS[2:]:
        sides[f"sslm {method}"] = lambda some, method=method: signatures(some, Deduplication((method,)))
    sides |= {name: peer for name, peer in peers().items() if peer}
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(given.rounds + 1):
        for name, side in sides.items():
            some = texts if name.startswith("sslm") or name == "rensa" else texts[:200]
            before = time.process_time()
            side(some)
            times[name].append((time.process_time() - before) / len(some) * 1e6)
    return {name: round(statistics.median(rounds[1:]), 1) for name, rounds in times.items()}


def shingles(text: str) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[start : start + 5]) for start in range(len(words) - 4)]


def peers() -> dict[str, Callable[[list[str]], Any] | None]:
    return {name: _or_none(make) for name, make in (("rensa", rensa), ("datasketch", sketch), ("datatrove", trove))}


def _or_none(make: Callable[[], Callable[[list[str]], Any]]) -> Callable[[list[str]], Any] | None:
    try:
        return make()
    except ImportError as error:
        print(f"left out: {error}")
        return None


def rensa() -> Callable[[list[str]], Any]:
    of = import_module("rensa").RMinHash
    return lambda texts: np.array(
        of.digest_matrix_from_token_sets([shingles(text) for text in texts], 112, 1).to_rows(), np.uint32
    )


def sketch() -> Callable[[list[str]], Any]:
    of = import_module("datasketch").MinHash
    return lambda texts: list(of.generator([[s.encode() for s in shingles(text)] for text in texts], num_perm=112))


def trove() -> Callable[[list[str]], Any]:
    minhash = import_module("datatrove.pipeline.dedup.minhash")
    minhash.load_word_tokenizer = lambda language: types.SimpleNamespace(word_tokenize=str.split)
    config = minhash.MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    step = minhash.MinhashDedupSignature(tempfile.mkdtemp(), config=config)
    return lambda texts: [step.get_signature(step.get_shingles(text)) for text in texts]


def found(given: argparse.Namespace) -> Facts:
    texts = [text for seed in range(1000) for text in altered(random.Random(seed))]
    sets = [frozenset(shingles(text)) for text in texts]
    likeness = similarities(sets)
    bands = signatures(texts, HOW)
    ours = together([[bands[f"band-{band}"][number] for band in range(14)] for number in range(len(texts))])
    theirs = None
    if peer := peers()["datasketch"]:
        rows = [sketch.hashvalues.reshape(14, 8) for sketch in peer(texts)]
        theirs = together([[band.tobytes() for band in each] for each in rows])
    table = []
    for low in np.arange(0.3, 1, 0.05).round(2).tolist():
        pairs = [pair for pair, s in likeness.items() if low <= s < low + 0.05]
        if not pairs:
            continue
        row: Facts = {"similarity": f"{low:.2f}–{low + 0.05:.2f}", "pairs": len(pairs)}
        row["curve"] = statistics.mean(1 - (1 - likeness[pair] ** 8) ** 14 for pair in pairs)
        row["sslm"] = len(ours.intersection(pairs)) / len(pairs)
        if theirs is not None:
            row["datasketch"] = len(theirs.intersection(pairs)) / len(pairs)
        table.append(row)
    unlike = sum(likeness.get(pair, 0) < 0.3 for pair in ours)
    return {"documents": len(texts), "table": table, "pairs found": len(ours), "of them below 0.3": unlike}


def altered(draw: random.Random) -> list[str]:
    """A document and three that share with it between half and nearly all of their runs of words."""
    words = [str(draw.randrange(10**6)) for _ in range(WORDS)]
    texts = [words]
    for _ in range(3):
        most = draw.randrange(5, 70)  # words of a stretch that are others
        start = draw.randrange(WORDS - most)
        others = [str(draw.randrange(10**6)) for _ in range(most)]
        texts.append([*words[:start], *others, *words[start + most :]])
    return [" ".join(text) for text in texts]


def similarities(sets: list[frozenset[str]]) -> dict[tuple[int, int], float]:
    """Jaccard similarity of all pairs that have anything in common."""
    having: dict[str, list[int]] = defaultdict(list)
    for number, some in enumerate(sets):
        for each in some:
            having[each].append(number)
    common = Counter(pair for numbers in having.values() for pair in combinations(numbers, 2))
    return {(a, b): num / (len(sets[a]) + len(sets[b]) - num) for (a, b), num in common.items()}


def together(keys: list[list[Any]]) -> set[tuple[int, int]]:
    """Pairs that agree in a band."""
    buckets: dict[Any, list[int]] = defaultdict(list)
    for number, bands in enumerate(keys):
        for band, key in enumerate(bands):
            buckets[band, key].append(number)
    return {pair for numbers in buckets.values() for pair in combinations(numbers, 2)}


def corpus(given: argparse.Namespace) -> Facts:
    how = Deduplication(tuple(given.methods.split(",")))
    folder = Path(tempfile.mkdtemp(dir=given.work))
    try:
        files, characters, seconds = (drawn if given.drawn else made)(folder, given.documents, how)
        facts: Facts = {"documents": given.documents, "methods": list(how.methods), "characters": characters}
        facts["signatures: seconds of CPU"] = round(seconds, 1)
        facts["signatures: bytes a document"] = sum(f.stat().st_size for f in files) / given.documents
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            facts |= pool.apply(resolved, (files, how, folder / "work"))
        fates = Counter(int(fate) for file in files for fate in read_decision(decision_file(file))["fate"])
        return facts | {"kept, exact, near": [fates[number] for number in range(3)]}
    finally:
        shutil.rmtree(folder)


def made(folder: Path, documents: int, how: Deduplication) -> tuple[list[Path], int, float]:
    """Write the signatures of documents of random words; of each ten, one is a copy and one nearly one."""
    draw, files, characters, seconds = np.random.default_rng(0), [], 0, 0.0
    vocabulary = np.array([f"{number:x}".zfill(draw.integers(1, 11)) for number in range(50_000)], object)
    lines = [" ".join(draw.choice(vocabulary, 8)) for _ in range(1000)]
    while len(files) * BLOCK < documents:
        texts: list[str] = []
        for number in range(min(BLOCK, documents - len(files) * BLOCK)):
            kind = number % 10
            if kind < 8 or len(texts) < 10:
                words = vocabulary[(draw.random(WORDS) ** 3 * len(vocabulary)).astype(int)].tolist()
            else:
                words = texts[draw.integers(len(texts))].split(" ")
                if kind == 9:
                    words[draw.integers(len(words))] = "other"
            text = " ".join(words)
            texts.append(text if kind >= 8 else f"{text}\n{lines[draw.integers(1000)]}")
        characters += sum(map(len, texts))
        before = time.process_time()
        arrays = signatures(texts, how)
        seconds += time.process_time() - before
        files.append(folder / f"{len(files):06d}.npz")
        np.savez(files[-1], **arrays)
    return files, characters, seconds


def drawn(folder: Path, documents: int, how: Deduplication) -> tuple[list[Path], int, float]:
    """Write signatures drawn at random; of each ten, one is a copy and one agrees with another in ten bands."""
    draw, files = np.random.default_rng(0), []
    recent: deque[NDArray[np.uint64]] = deque(maxlen=50)
    while len(files) * BLOCK < documents:
        numbers = draw.integers(1, 1 << 64, (2 + how.bands, BLOCK), np.uint64)
        if recent:
            others = recent[draw.integers(len(recent))][:, draw.permutation(BLOCK)]
            numbers[:, ::10] = others[:, ::10]
            numbers[2:12, 1::10] = others[2:12, 1::10]
        recent.append(numbers)
        bands = {f"band-{band}": keys for band, keys in enumerate(numbers[2:])}
        files.append(folder / f"{len(files):06d}.npz")
        np.savez(files[-1], settings=np.array(how.fingerprint, np.uint64), texts=numbers[:2].T, **bands)
    return files, 0, 0.0


def size_of(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def resolved(files: list[Path], how: Deduplication, work: Path) -> Facts:
    sizes, is_over = [0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.05):
            sizes.append(sum(size_of(entry) for entry in work.rglob("*.bin")))

    watching = threading.Thread(target=watch, daemon=True)
    imported = peak_mb()
    watching.start()
    before, cpu = time.perf_counter(), time.process_time()
    resolve(files, how, work)
    seconds, cpu = time.perf_counter() - before, time.process_time() - cpu
    is_over.set()
    watching.join()
    return {
        "resolve: seconds": round(seconds, 1),
        "resolve: seconds of CPU": round(cpu, 1),
        "resolve: peak MB": round(peak_mb()),
        "of them imports": round(imported),
        "resolve: MB of files at most": round(max(sizes) / 1e6),
    }


def peak_mb() -> float:
    """Of this program: ru_maxrss also has what stood in its memory before it began."""
    [kilobytes] = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    return int(kilobytes) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["speed", "found", "corpus"])
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--drawn", action="store_true", help="corpus: signatures drawn at random, of exact and minhash")
    parser.add_argument("--methods", default="exact,minhash,lines")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", help="a folder for 0.2 GB a million documents, with substrings 5 GB")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    facts = {"cores": os.cpu_count()}
    for part in given.parts:
        facts[part] = {"speed": speed, "found": found, "corpus": corpus}[part](given)
        print(json.dumps(facts[part], indent=1, ensure_ascii=False))
    if given.out:
        given.out.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
