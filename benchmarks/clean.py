"""A whole clean, `sslm clean`, beside datatrove's local pipeline with the same rules, on the same cores.

    python benchmarks/clean.py --rounds 3 --out benchmarks/results/clean.json

README.md beside this file says what is measured and how. Each run is a process of its own, from start to end: it reads
compressed lines of JSON, judges, and writes what is left; the systems take turns. Only rules: datatrove's search for
near-duplicates is four pipelines that a user puts together.
"""

import argparse
import gzip
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from cleaning import FILTERS, cut
from data import environment, versions
from text import documents

VERSIONS = ("sslm", "datatrove", "numpy", "pyarrow")
RULES = ("gopher", "c4", "fineweb")
SAME = ["--c4.end_marks", ".?!\"'", "--normalise", "none"]
"""Flags with which both have the same rules."""


def ours(given: Path, out: Path, workers: int) -> None:
    from sslm.cli.clean import main

    flags = ["--rules", ",".join(RULES), *SAME, "--workers", str(workers)]
    assert main([str(given), "--out", str(out), *flags]) == 0


def theirs(given: Path, out: Path, workers: int) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    filters = [each for name in RULES for each in FILTERS[name]()]
    steps = [JsonlReader(str(given), glob_pattern="*.jsonl.gz"), *filters, JsonlWriter(str(out / "kept"))]
    LocalPipelineExecutor(steps, tasks=workers, workers=workers, logging_dir=str(out / "logs")).run()


SYSTEMS = {"sslm": ours, "datatrove": theirs}


def seconds_of(name: str, given: Path, work: Path, workers: int) -> float:
    """Run one system in a process of its own, and return the seconds that it takes."""
    out = work / name
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    command = [sys.executable, __file__, "--one", name, "--given", str(given), "--work", str(out)]
    command += ["--workers", str(workers)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def kept_of(out: Path) -> int:
    """Count the documents that are left."""
    import pyarrow

    number = 0
    for file in sorted((*out.rglob("documents-*.zst"), *out.rglob("kept/*.gz"))):
        with pyarrow.input_stream(str(file), compression="zstd" if file.suffix == ".zst" else "gzip") as stream:
            number += stream.read().count(b"\n")
    return number


def run(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    texts = cut(documents(options.text), 1000, options.documents)
    texts = list(islice(cycle(texts), options.documents))  # rules judge each by itself: copies are work like others
    given = work / "given"
    given.mkdir()
    for part in range(options.workers):  # datatrove shares files, not parts of them
        with gzip.open(given / f"{part}.jsonl.gz", "wt") as stream:
            stream.writelines(
                json.dumps({"text": text, "id": str(n)}) + "\n" for n, text in enumerate(texts[part :: options.workers])
            )
    turns: dict[str, list[float]] = {name: [] for name in SYSTEMS}
    for number in range(options.rounds):
        for name in list(SYSTEMS)[:: 1 if number % 2 else -1]:
            turns[name].append(seconds_of(name, given, work, options.workers))
            print(f"round {number + 1}: {name} {turns[name][-1]}", file=sys.stderr, flush=True)
    return {
        "command": " ".join(["python benchmarks/clean.py", *sys.argv[1:]]),
        **environment(),
        "versions": versions(VERSIONS),
        "workers": options.workers,
        "text": options.text.name if options.text else "this Python's library and packages",
        "documents": len(texts),
        "bytes": sum(len(text.encode(errors="surrogatepass")) for text in texts),
        "kept": {name: kept_of(work / name) for name in SYSTEMS},
        "turns": turns,
    }


def markdown(results: dict[str, Any]) -> str:
    lines = ["| | seconds | kept |", "| --- | --: | --: |"]
    for name, turns in results["turns"].items():
        kept = f"{results['kept'][name]} of {results['documents']}"
        lines.append(f"| {name} | {statistics.median(turns):.1f} | {kept} |")
    ratio = statistics.median(b / a for a, b in zip(*results["turns"].values(), strict=True))
    return "\n".join([*lines, f"| datatrove ÷ sslm | {ratio:.2g} | |"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/clean.py", description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, help="file or folder of text; default: what every Python brings")
    parser.add_argument("--documents", type=int, default=60_000, help="at most (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes of each (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--one", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--given", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        SYSTEMS[options.one](options.given, options.work, options.workers)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        results = run(options, Path(folder))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
