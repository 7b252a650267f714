"""sslm's data plane beside others': preparation, reading, start, memory, and what a resumed run loses or sees twice.

    python benchmarks/data.py --out benchmarks/results/data.json
    python benchmarks/data.py --only sslm,limit --measure read --tokens 2000000

README.md beside this file says what is measured and how. Each measurement runs in a fresh process; the rounds of the
systems are interleaved, and medians are reported.
"""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import report
from children import measure, measure_ranks
from text import set_up

PACKAGES = {
    "sslm": "sslm",
    "sslm_mixture": "sslm",
    "litdata": "litdata",
    "mosaic": "streaming",
    "hf_map": "torchdata",
    "hf_streaming": "torchdata",
    "megatron": "torch",
    "limit": "torch",
}
"""System -> what has to be importable."""
BORROWED = {"hf_streaming": "", "sslm_mixture": "sslm"}
"""Systems that prepare nothing, and whose prepared form they read: none's, or another's."""
UNINTERRUPTED = {"limit", "sslm_mixture"}
"""Systems of which nothing is resumed."""
ONE_LENGTH = {"mosaic", "hf_map"}
"""Systems whose prepared form serves one sequence length."""
SHAPES = ((16, 1024), (8, 2048))
WORKERS = (0, 1, 2)
MEASURES = ("prepare", "read", "start", "resume", "memory")
TOPOLOGIES = {"w0": (1, 0), "w1": (1, 1), "w2": (1, 2), "r2": (2, 1)}
"""Name -> (ranks, workers of each)."""
CHANGES = {
    "unchanged (2 workers)": ("w2", "w2"),
    "2 -> 1 workers": ("w2", "w1"),
    "1 -> 2 ranks": ("w1", "r2"),
    "2 -> 1 ranks": ("r2", "w1"),
}
"""What changes between the first half of an epoch and the second."""
MIN_TOKENS = 20 * SHAPES[0][0] * SHAPES[0][1]
SAME_ROWS = 0.9
"""Share of an epoch's rows that must be in the other's, or the two are cut differently and nothing can be counted."""
VERSIONS = ("sslm", "litdata", "mosaicml-streaming", "datasets", "torchdata", "pyarrow", "tokenizers", "torch", "numpy")

Task = dict[str, Any]


class Bench:
    """The measurements, one method each; what they find collects in `systems`."""

    def __init__(self, work: Path, names: list[str], options: argparse.Namespace, num_tokens: int) -> None:
        self.work, self.names, self.rounds, self.seconds = work, names, options.rounds, options.seconds
        self.shapes = SHAPES[: options.shapes]
        self.half = num_tokens // (SHAPES[0][0] * SHAPES[0][1]) // 2
        """Global batches in the first half of an epoch."""
        self.systems: dict[str, dict[str, Any]] = {name: {"errors": []} for name in names}
        self.epochs: dict[tuple[str, str], list[list[str]]] = {}
        self.began = time.monotonic()

    # ---------------------------------------------------------------------------------------- what is measured

    def prepare(self) -> None:
        for number in range(self.rounds):
            for name in self._preparing():
                answer = measure(self._preparation(name, SHAPES[0][1]), watch_memory=True)
                self._keep(name, f"preparation, round {number + 1}", answer, "seconds", "prepare", "seconds")
                self._keep(name, None, answer, "peak_bytes", "prepare", "peak_bytes")

    def read(self) -> None:
        for number in range(self.rounds):
            for batch_size, seq_len in self.shapes:
                for workers in WORKERS:
                    for name in self.names:
                        if name == "limit" and workers:
                            continue
                        task = self._task(name, "read", batch_size, seq_len, workers) | {"seconds": self.seconds}
                        shape = f"{batch_size}x{seq_len}"
                        what = f"reading {shape}, {workers} workers, round {number + 1}"
                        self._keep(name, what, measure(task), "tokens_per_second", "read", shape, str(workers))

    def start(self) -> None:
        self._starts("start", state=False)

    def resume(self) -> None:
        for name in self._trainers():
            for topology in TOPOLOGIES:
                self.epochs[name, topology] = self._epoch(name, topology)
        self._starts("resume", state=True)
        for name in self._trainers():
            for change, (old, new) in CHANGES.items():
                self.systems[name].setdefault("changes", {})[change] = self._change(name, change, old, new)

    def memory(self) -> None:
        for workers in (0, 2):
            for name in self.names:
                if name != "limit" or not workers:
                    task = self._task(name, "read", *SHAPES[0], workers) | {"seconds": self.seconds}
                    what = f"memory, {workers} workers"
                    self._keep(name, what, measure(task, watch_memory=True), "peak_bytes", "memory", str(workers))

    # ---------------------------------------------------------------------------------------- how

    def lay_out(self, seq_lens: list[int]) -> None:
        """Prepare, untimed, what `prepare` has not."""
        for name in self._preparing():
            for seq_len in seq_lens if name in ONE_LENGTH else seq_lens[:1]:
                if not self._prepared(name, seq_len).exists():
                    self._say(name, f"preparing for sequences of {seq_len}" if name in ONE_LENGTH else "preparing")
                    if error := measure(self._preparation(name, seq_len)).get("error"):
                        self._fail(name, "preparation", error)

    def _starts(self, what: str, state: bool) -> None:
        """Seconds to the first batch: with 0 and 2 workers, and with 0 also without the time that imports take."""
        for number in range(self.rounds):
            for workers, time_imports in ((0, False), (2, False), (0, True)):
                for name in self._trainers() if state else self.names:
                    if name == "limit" and workers:
                        continue
                    topology = f"w{workers}"
                    task = self._task(name, "first", *SHAPES[0], workers)
                    if state:
                        task["state"] = self._state(name, topology)
                        if not Path(task["state"]).exists():
                            continue
                    answer = measure(task, time_imports=time_imports)
                    say = f"{what}, {workers} workers{', imports timed' if time_imports else ''}, round {number + 1}"
                    if time_imports and "seconds" in answer:
                        answer["seconds"] -= answer["import_seconds"]
                    key = "without_imports" if time_imports else str(workers)
                    self._keep(name, say, answer, "seconds", what, key)

    def _epoch(self, name: str, topology: str) -> list[list[str]]:
        """[ranks][rows] of an uninterrupted epoch, in order; the state at its half is saved in passing."""
        world, workers = TOPOLOGIES[topology]
        task = self._task(name, "epoch", *SHAPES[0], workers)
        task |= {"save_after": self.half, "save_to": self._state(name, topology)}
        self._say(name, f"an epoch on {world} ranks with {workers} workers each")
        answers = measure_ranks(task, world)
        for answer in answers:
            if "error" in answer:
                self._fail(name, f"epoch {topology}", answer)
        return [answer.get("rows", []) for answer in answers]

    def _change(self, name: str, change: str, old: str, new: str) -> dict[str, Any]:
        """Read half an epoch as `old`, the rest as `new` from rank 0's state: what is missing, what is double."""
        world, workers = TOPOLOGIES[new]
        task = self._task(name, "epoch", *SHAPES[0], workers) | {"state": self._state(name, old)}
        self._say(name, f"resuming: {change}")
        if not Path(task["state"]).exists():
            return {"error": "no state was saved"}
        answers = measure_ranks(task, world)
        for answer in answers:
            if "error" in answer:
                self._fail(name, change, answer)
                return {"error": answer["error"]}
        before, after = self.epochs[name, old], self.epochs[name, new]
        seen = [*global_batches(before)[: self.half], *global_batches([answer["rows"] for answer in answers])]
        return compare(seen, global_batches(before), global_batches(after))

    def _task(self, name: str, kind: str, batch_size: int, seq_len: int, workers: int) -> Task:
        return {
            "reader": name,
            "kind": kind,
            "prepared": str(self._prepared(name, seq_len)),
            "tokenizer": str(self.work / "tokenizer"),
            "batch_size": batch_size,
            "seq_len": seq_len,
            "num_workers": workers,
        }

    def _preparation(self, name: str, seq_len: int) -> Task:
        out = self._prepared(name, seq_len)
        for old in (out, out.with_name(out.name + "-few")):
            if name != "limit":
                shutil.rmtree(old, ignore_errors=True)
        return {
            "reader": name,
            "kind": "prepare",
            "text": str(self.work / "text"),
            "few": str(self.work / "few"),
            "tokenizer": str(self.work / "tokenizer"),
            "prepared": str(out),
            "seq_len": seq_len,
        }

    def _prepared(self, name: str, seq_len: int) -> Path:
        name = BORROWED.get(name, name)
        if not name:
            return self.work / "text"
        return self.work / "prepared" / (f"{name}-{seq_len}" if name in ONE_LENGTH else name)

    def _state(self, name: str, topology: str) -> str:
        return str(self.work / "states" / f"{name}-{topology}.pickle")

    def _preparing(self) -> list[str]:
        return [name for name in self.names if name not in BORROWED]

    def _trainers(self) -> list[str]:
        return [name for name in self.names if name not in UNINTERRUPTED]

    def _keep(self, name: str, what: str | None, answer: dict[str, Any], key: str, *where: str) -> None:
        """Add a figure to its list, or say that there is none."""
        if "error" in answer:
            if what:
                self._fail(name, what, answer)
            return
        place = self.systems[name]
        for part in where[:-1]:
            place = place.setdefault(part, {})
        place.setdefault(where[-1], []).append(answer[key])
        if what:
            unit = {"seconds": (1, "s"), "tokens_per_second": (1e6, "M tokens/s"), "peak_bytes": (1e6, "MB")}[key]
            self._say(name, f"{what}: {answer[key] / unit[0]:.3g} {unit[1]}")

    def _fail(self, name: str, what: str, answer: Any) -> None:
        error = answer["error"] if isinstance(answer, dict) else answer
        self.systems[name]["errors"].append({"in": what, **(answer if isinstance(answer, dict) else {"error": error})})
        self._say(name, f"{what}: fails ({error})")

    def _say(self, name: str, what: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f}  {name:13s} {what}", file=sys.stderr, flush=True)


def global_batches(ranks: list[list[str]]) -> list[list[str]]:
    """[ranks][rows] in order -> rows of each global batch, which are a set: sorted."""
    share = SHAPES[0][0] // len(ranks)
    num = max(map(len, ranks)) // share
    return [sorted(row for rows in ranks for row in rows[n * share : (n + 1) * share]) for n in range(num)]


def compare(seen: list[list[str]], old: list[list[str]], new: list[list[str]]) -> dict[str, Any]:
    """What was seen against uninterrupted epochs before and after the change; rows that either leaves out at its end do
    not count. `exact`: the very batches, in the order, of the epoch that was interrupted."""
    counts, *epochs = (Counter(row for batch in batches for row in batch) for batches in (seen, old, new))
    must, may = epochs[0] & epochs[1], epochs[0] | epochs[1]
    same_rows = must.total() >= SAME_ROWS * min(epoch.total() for epoch in epochs)
    lost, doubled = (must - counts).total(), (counts - may).total()
    return {"lost": lost, "doubled": doubled, "exact": seen == old, "rows": must.total(), "same_rows": same_rows}


def environment() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "kernel": platform.release(),
        "versions": versions(VERSIONS),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Those of the packages that are installed."""
    found = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def importable(names: list[str]) -> list[str]:
    found = [name for name in names if importlib.util.find_spec(PACKAGES[name])]
    for name in sorted(set(names) - set(found)):
        print(f"{name}: {PACKAGES[name]} is not installed, left out", file=sys.stderr)
    return found


def choice(allowed: Any) -> Any:
    """An argparse type: names from `allowed`, separated by commas."""

    def parse(given: str) -> list[str]:
        names = given.split(",")
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
        return names

    return parse


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/data.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--text",
        type=Path,
        help="file or folder of text (.jsonl: field text); default: this Python's "
        "library and the packages installed in it",
    )
    parser.add_argument("--tokens", type=int, default=24_000_000, help="tokens to prepare (default: %(default)s)")
    parser.add_argument(
        "--vocab_size", type=int, default=32_000, help="of the BPE trained on it (default: %(default)s)"
    )
    parser.add_argument("--only", type=choice(PACKAGES), default=list(PACKAGES), help=f"of {','.join(PACKAGES)}")
    parser.add_argument("--measure", type=choice(MEASURES), default=list(MEASURES), help=f"of {','.join(MEASURES)}")
    parser.add_argument("--rounds", type=int, default=3, help="of every timing (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each reading (default: %(default)s)")
    parser.add_argument(
        "--shapes", type=int, choices=range(1, len(SHAPES) + 1), default=len(SHAPES), help="read the first of them only"
    )
    parser.add_argument("--work", type=Path, help="folder to keep text and prepared forms in; default: a temporary one")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    options = parser.parse_args(arguments)
    if options.text and not options.text.exists():
        parser.error(f"--text {options.text}: there is no such file or folder")
    if options.tokens < MIN_TOKENS:
        parser.error(f"--tokens {options.tokens}: at least {MIN_TOKENS} are needed, which are twenty batches")
    return options


def run(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    print("laying out text, tokenizer and tokens", file=sys.stderr, flush=True)
    (work / "states").mkdir(parents=True, exist_ok=True)
    text = set_up(work, options.text, options.tokens, options.vocab_size)
    if text["tokens"] < MIN_TOKENS:
        raise SystemExit(
            f"the text has {text['tokens']} tokens; at least {MIN_TOKENS} are needed: give more with --text"
        )
    bench = Bench(work, importable(options.only), options, text["tokens"])
    if "prepare" in options.measure:
        bench.prepare()
    bench.lay_out([seq_len for _, seq_len in (bench.shapes if "read" in options.measure else SHAPES[:1])])
    for name in ("read", "start", "resume", "memory"):
        if name in options.measure:
            getattr(bench, name)()
    command = " ".join(["python benchmarks/data.py", *sys.argv[1:]])
    settings = {"rounds": options.rounds, "seconds": options.seconds}
    return {"command": command, **environment(), "text": text, **settings, "systems": bench.systems}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that measurements under way are ended too
    with tempfile.TemporaryDirectory(prefix="sslm-bench-") as temporary:
        results = run(options, options.work or Path(temporary))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(report.markdown(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
