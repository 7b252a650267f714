"""Results -> Markdown tables.

python benchmarks/report.py benchmarks/results/data.json
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

TITLES = {
    "sslm": "**sslm**",
    "sslm_mixture": "**sslm**, two sources mixed, documents numbered",
    "litdata": "litData",
    "mosaic": "Mosaic streaming",
    "hf_map": "HF datasets (map)",
    "hf_streaming": "HF datasets (streaming, tokenising)",
    "megatron": "Megatron-style flat file",
    "limit": "*limit*",
}


def markdown(results: dict[str, Any]) -> str:
    return "\n\n".join([head(results), speed(results), start(results), changes(results)])


def head(results: dict[str, Any]) -> str:
    text, versions = results["text"], results["versions"]
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{results['date'][:10]}, {results['cores']} cores ({results['cpu']}), Python {results['python']}, {names}. "
        f"{text['tokens'] / 1e6:.1f} M tokens from {text['bytes'] / 1e6:.0f} MB of {text['text']}; "
        f"medians of {results['rounds']} rounds. In brackets: a multiple of sslm's.\n\n    {results['command']}"
    )


def speed(results: dict[str, Any]) -> str:
    """Preparation and reading, in millions of tokens per second."""
    shapes = list(dict.fromkeys(shape for system in results["systems"].values() for shape in system.get("read", {})))
    columns = [
        "prepare",
        "of the limit",
        *(f"read [{shape.replace('x', ', ')}] w{w}" for shape in shapes for w in "012"),
    ]
    seconds = {name: median(system, "prepare", "seconds") for name, system in results["systems"].items()}
    limit, ours = seconds.get("limit"), results["systems"].get("sslm", {})
    rows = {}
    for name, system in results["systems"].items():
        took = seconds[name]
        cells = [
            times(
                took and results["text"]["tokens"] / took / 1e6,
                seconds.get("sslm") and results["text"]["tokens"] / seconds["sslm"] / 1e6,
            ),
            f"{limit / took:.2f}" if limit and took else "–",
        ]
        for shape in shapes:
            for workers in "012":
                rate, own = median(system, "read", shape, workers), median(ours, "read", shape, workers)
                cells.append(times(rate and rate / 1e6, own and own / 1e6))
        rows[name] = cells
    return table("M tokens/s", columns, rows)


def start(results: dict[str, Any]) -> str:
    """Seconds and megabytes."""
    columns = [
        "first batch w0",
        "w2",
        "w0 less imports",
        "resume at 50 % w0",
        "w2",
        "w0 less imports",
        "peak MB w0",
        "w2",
        "preparing",
    ]
    places = [(what, key) for what in ("start", "resume") for key in ("0", "2", "without_imports")]
    ours = results["systems"].get("sslm", {})
    rows = {}
    for name, system in results["systems"].items():
        cells = [times(median(system, *place), median(ours, *place)) for place in places]
        for place in (("memory", "0"), ("memory", "2"), ("prepare", "peak_bytes")):
            peak = median(system, *place)
            cells.append(f"{peak / 1e6:.0f}" if peak else "–")
        rows[name] = cells
    return table("seconds", columns, rows)


def changes(results: dict[str, Any]) -> str:
    """Samples lost and seen twice in an epoch whose second half is read by other processes than the first."""
    found = {name: system["changes"] for name, system in results["systems"].items() if "changes" in system}
    columns = list(dict.fromkeys(change for system in found.values() for change in system))
    rows = {name: [verdict(system.get(change)) for change in columns] for name, system in found.items()}
    return table("resumed at 50 %", columns, rows)


def verdict(change: dict[str, Any] | None) -> str:
    if change is None:
        return "–"
    if "error" in change:
        return f"fails: {change['error'].split(':')[0]}"
    if not change["same_rows"]:
        return "rows are cut anew, can't be counted"
    if change["lost"] or change["doubled"]:
        return f"**{change['lost']} lost, {change['doubled']} twice** of {change['rows']}"
    return "exact" if change["exact"] else "complete, in another order"


def median(system: dict[str, Any], *where: str) -> float | None:
    place: Any = system
    for part in where:
        place = place.get(part, {})
    return statistics.median(place) if place else None


def times(value: float | None, ours: float | None) -> str:
    """`18 (0.25)`: the value, and how many times sslm's it is."""
    if value is None:
        return "–"
    shown = f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value >= 1 else f"{value:.2f}"
    return f"{shown} ({value / ours:.2g})" if ours and value != ours else shown


def table(corner: str, columns: list[str], rows: dict[str, list[str]]) -> str:
    lines = [
        [corner, *columns],
        ["---", *["--:"] * len(columns)],
        *([TITLES[name], *cells] for name, cells in rows.items()),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
