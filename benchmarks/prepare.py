"""How much of the tokenizer's own speed is left when a corpus is prepared, and in how much memory.

    python benchmarks/prepare.py TEXT.txt [--tokenizer bpe:32000] [--document_separator REGEX] [--rounds 5]

Each round runs, each in a process of its own, `encode_batch` on the text (in memory, cut as it is for preparation, in
large batches, nothing kept) and then `prepare` of the same file (reading, encoding, writing, fsync). Imports and
loading the tokenizer are not counted. Printed are each side's median, the median of the rounds' ratios, and peak
memory.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT_CHARS = 1 << 24
"""Characters per call of encode_batch: so many that waiting for a batch's last text costs nothing."""


def measured(side: str, text: str, tokenizer: str, separator: str | None) -> dict[str, Any]:
    from sslm.data.corpus import tokenizer as tokenizers
    from sslm.data.corpus.documents import open_source
    from sslm.data.corpus.prepare import prepare
    from sslm.system.terminal import keep_libraries_quiet

    keep_libraries_quiet()
    source = open_source(text, text_field="text", document_separator=separator, hash_file=lambda file: "")
    loaded = tokenizers.load(tokenizer)
    if side == "prepare":
        with tempfile.TemporaryDirectory() as folder:
            before, cpu = time.perf_counter(), cpu_seconds()
            tokens = prepare(source, loaded, Path(folder, "corpus"), lambda *_: None).num_tokens
            return result(before, cpu, tokens)
    batches, size = [[]], 0
    for piece, _ in source.pieces():
        batches[-1].append(piece)
        if (size := size + len(piece)) > LIMIT_CHARS:
            batches.append([])
            size = 0
    before, cpu = time.perf_counter(), cpu_seconds()
    for batch in batches:
        loaded.backend_tokenizer.encode_batch(batch, add_special_tokens=False)
    return result(before, cpu, None)


def cpu_seconds() -> float:
    return sum(os.times()[:2])


def result(before: float, cpu: float, tokens: int | None) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": time.perf_counter() - before, "cpu": cpu_seconds() - cpu, "peak_mb": peak, "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--tokenizer", default="bpe:32000")
    parser.add_argument("--document_separator")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=["limit", "prepare"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(measured(given.side, given.text, given.tokenizer, given.document_separator)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rounds = [
            {side: child(given, side, trained(given, Path(folder))) for side in ("limit", "prepare")}
            for _ in range(given.rounds)
        ]
    show(rounds, Path(given.text).stat().st_size / 1e6)


def trained(given: argparse.Namespace, folder: Path) -> str:
    from sslm.data.corpus.documents import open_source
    from sslm.data.corpus.tokenizer import TrainBPE, parse_tokenizer
    from sslm.data.corpus.tokenizer_training import train_bpe

    asked = parse_tokenizer(given.tokenizer)
    if not isinstance(asked, TrainBPE):
        return asked
    if not (folder / "tokenizer").exists():
        source = open_source(given.text, text_field="text", document_separator=given.document_separator)
        train_bpe(source.pieces(), asked.size).save_pretrained(folder / "tokenizer")
    return str(folder / "tokenizer")


def child(given: argparse.Namespace, side: str, tokenizer: str) -> dict[str, Any]:
    command = [sys.executable, __file__, given.text, "--side", side, "--tokenizer", tokenizer]
    if given.document_separator:
        command += ["--document_separator", given.document_separator]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def show(rounds: list[dict[str, dict[str, Any]]], megabytes: float) -> None:
    tokens = rounds[0]["prepare"]["tokens"]

    def median(side: str, what: str) -> float:
        return statistics.median(round[side][what] for round in rounds)

    print(f"{megabytes:.0f} MB, {tokens / 1e6:.1f} M tokens, {os.cpu_count()} cores, {len(rounds)} rounds")
    for side, name in (("limit", "encode_batch"), ("prepare", "sslm prepare")):
        seconds = median(side, "seconds")
        print(
            f"{name:<13} {seconds:7.2f} s  {tokens / 1e6 / seconds:6.2f} M tokens/s  "
            f"{median(side, 'cpu'):7.2f} s of CPU  peak {median(side, 'peak_mb'):5.0f} MB"
        )
    ratios = [round["limit"]["seconds"] / round["prepare"]["seconds"] for round in rounds]
    print(f"ratio {statistics.median(ratios):.2f} (rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)})")


if __name__ == "__main__":
    main()
