"""How many MB of text a second the quality rules judge, beside datatrove's filters.

    python benchmarks/cleaning.py --out benchmarks/results/cleaning.json
    python benchmarks/cleaning.py --text FILE --documents 200 --rounds 1

README.md beside this file says what is measured and how. One process, one thread; the systems take turns, and medians
are reported. Without datatrove sslm's rules are measured alone.
"""

import argparse
import importlib.util
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from data import environment, versions
from text import documents

from sslm.data.cleaning.rules import RULES
from sslm.data.cleaning.rules.c4 import C4, num_sentences

VERSIONS = ("sslm", "numpy", "datatrove")

SETTINGS = {name: rule() for name, rule in RULES.items()} | {"c4": C4(end_marks=".?!\"'")}
"""Rules as they are, but that lines may end in ', as with datatrove."""

Kept = list[str | None]
"""[documents] the text as it is left; None if it is dropped."""


def ours(names: Iterable[str], texts: list[str]) -> Kept:
    """Judge a block by rules, each on what the one before it left."""
    kept: Kept = list(texts)
    for name in names:
        numbers = [number for number, text in enumerate(kept) if text is not None]
        judged = SETTINGS[name].judge([text for text in kept if text is not None])
        for number, (text, failure) in zip(numbers, judged, strict=True):
            kept[number] = None if failure else text
    return kept


def theirs(names: Iterable[str], texts: list[str]) -> Kept:
    """Judge one document after the other by datatrove's filters."""
    from datatrove.data import Document

    filters = [each for name in names for each in FILTERS[name]()]
    kept: Kept = []
    for text in texts:
        document = Document(text=text, id="")
        kept.append(document.text if all(each.filter(document) is True for each in filters) else None)
    return kept


def white_space() -> Any:
    """Make datatrove's splitter for words and sentences as ours are, which is quicker than those it has."""
    from datatrove.utils.word_tokenizers import WordTokenizer

    class WhiteSpace(WordTokenizer):  # type: ignore[misc]
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            raise NotImplementedError

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            return [(0, len(text))] * num_sentences(text)

    return WhiteSpace()


def gopher_filters() -> list[Any]:
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter

    language = white_space()  # one for both: datatrove keeps the last texts' words
    return [GopherQualityFilter(language=language), GopherRepetitionFilter(language=language)]


def c4_filters() -> list[Any]:
    from datatrove.pipeline.filters import C4QualityFilter

    return [C4QualityFilter(min_num_sentences=3, min_words_per_line=5, language=white_space())]


def fineweb_filters() -> list[Any]:
    from datatrove.pipeline.filters import FineWebQualityFilter

    at_thresholds = {
        "line_punct_thr": math.nextafter(0.12, 1),
        "short_line_thr": math.nextafter(0.67, 0),
        "char_duplicates_ratio": math.nextafter(0.01, 0),
    }
    return [
        FineWebQualityFilter(**at_thresholds, short_line_length=29, new_line_ratio=math.inf, language=white_space())
    ]


FILTERS: dict[str, Callable[[], list[Any]]] = {"gopher": gopher_filters, "c4": c4_filters, "fineweb": fineweb_filters}
"""Rule -> datatrove's filters with its thresholds."""


def cut(texts: Iterable[str], chars: int, most: int) -> list[str]:
    """Documents of about so many characters, at the ends of lines."""
    found: list[str] = []
    for text in texts:
        lines: list[str] = []
        size = 0
        for line in text.splitlines(keepends=True):
            lines.append(line)
            size += len(line)
            if size >= chars:
                found.append("".join(lines))
                lines, size = [], 0
        if len(found) >= most:
            break
    return found[:most]


def measured(texts: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Rules -> what was found of each system: seconds of each round, and how many documents are left."""
    systems = {"sslm": ours} | ({"datatrove": theirs} if importlib.util.find_spec("datatrove") else {})
    results: dict[str, dict[str, Any]] = {}
    for rules in [*((name,) for name in RULES), tuple(RULES)]:
        kept = {name: judge(rules, texts) for name, judge in systems.items()}
        seconds: dict[str, list[float]] = {name: [] for name in systems}
        for _ in range(rounds):
            for name, judge in systems.items():
                before = time.process_time()  # one thread, on a machine that others may use
                judge(rules, texts)
                seconds[name].append(time.process_time() - before)
        results[", ".join(rules)] = {
            "seconds": seconds,
            "kept": {name: sum(text is not None for text in some) for name, some in kept.items()},
            "differ": sum(len(set(answers)) > 1 for answers in zip(*kept.values(), strict=True)),
        }
        print(", ".join(rules), file=sys.stderr, flush=True)
    return results


def markdown(results: dict[str, Any]) -> str:
    lines = ["| | sslm, MB/s | datatrove, MB/s | sslm's is | kept | differ |", "| --- | --: | --: | --: | --: | --: |"]
    for name, found in results["rules"].items():
        rates = {system: results["bytes"] / 1e6 / statistics.median(some) for system, some in found["seconds"].items()}
        rounds = zip(*found["seconds"].values(), strict=True)
        ratio = f"{statistics.median(theirs / ours for ours, theirs in rounds):.2g} times" if len(rates) > 1 else ""
        peer = f"{rates['datatrove']:.1f}" if len(rates) > 1 else ""
        kept = f"{found['kept']['sslm']} of {results['documents']}"
        lines.append(f"| {name} | {rates['sslm']:.1f} | {peer} | {ratio} | {kept} | {found['differ']} |")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> dict[str, Any]:
    texts = cut(documents(options.text), options.chars, options.documents)
    return {
        "command": " ".join(["python benchmarks/cleaning.py", *sys.argv[1:]]),
        **environment(),
        "versions": versions(VERSIONS),
        "text": options.text.name if options.text else "this Python's library and packages",
        "documents": len(texts),
        "bytes": sum(len(text.encode(errors="surrogatepass")) for text in texts),
        "rules": measured(texts, options.rounds),
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/cleaning.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--text",
        type=Path,
        help="file or folder of text (.jsonl: field text); default: this Python's "
        "library and the packages installed in it",
    )
    parser.add_argument("--documents", type=int, default=5000, help="at most (default: %(default)s)")
    parser.add_argument("--chars", type=int, default=1000, help="of a document, at least (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of every timing (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    options = parser.parse_args(arguments)
    if options.text and not options.text.exists():
        parser.error(f"--text {options.text}: there is no such file or folder")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    results = run(options)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(markdown(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
