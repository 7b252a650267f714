"""What is finished, kept beside `--out` until all is: after a kill the same command goes on with the rest."""

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sslm
from sslm.data.corpus.tokenizer import identity
from sslm.evaluation.scores import Scores
from sslm.models.standard_error import Estimate
from sslm.runs.trained import Trained
from sslm.system.files import append_json_lines, json_lines
from sslm.system.terminal import plural, say


class Journal:
    """Finished scores, and answers to parts of tasks, by a hash of all that decides them; without `out` none are kept.

    Args:
        out: what is being made; None if nothing is to be kept.
        writes: whether this process writes them down; one of several does.
    """

    def __init__(self, out: Path | None, writes: bool = True) -> None:
        self.file = None if out is None else out.with_name(f".{out.name}.journal")
        self.writes = writes and self.file is not None
        entries = [] if self.file is None else json_lines(self.file, say)
        self.finished = {entry["key"]: entry["scores"] for entry in entries if {"key", "scores"} <= entry.keys()}
        self.answers = {entry["key"]: entry["answers"] for entry in entries if {"key", "answers"} <= entry.keys()}
        """Hash -> answers to some questions of a task, in order."""
        if entries:
            num = sum(map(len, self.answers.values()))
            parts = f", and {plural(num, 'answer', exact=True)} to parts of tasks" if num else ""
            say(f"{out}: going on after {len(self.finished)} that an earlier command finished{parts}")

    def key(self, weights: str, *what: Any) -> str:
        return hashlib.sha256(json.dumps([sslm.__version__, weights, *what], sort_keys=True).encode()).hexdigest()

    def find(self, key: str) -> Scores | None:
        """Return finished scores, or None."""
        if (found := self.finished.get(key)) is None:
            return None
        nan = math.nan
        figures = {name: Estimate(*(nan if n is None else n for n in pair)) for name, pair in found["figures"].items()}
        return Scores(**{**found, "figures": figures})

    def keep(self, key: str, scores: Scores) -> None:
        if self.file is None or not self.writes:
            return
        figures = {name: [n if math.isfinite(n) else None for n in pair] for name, pair in scores.figures.items()}
        append_json_lines(self.file, [{"key": key, "scores": {**asdict(scores), "figures": figures}}])

    def keep_answers(self, key: str, answers: list[Any]) -> None:
        if self.file is not None and self.writes:
            append_json_lines(self.file, [{"key": key, "answers": answers}])

    def remove(self) -> None:
        if self.file is not None and self.writes:
            self.file.unlink(missing_ok=True)

    def weights(self, trained: Trained) -> str:
        """Hash a model's weights and its tokenizer; empty if nothing is kept."""
        if self.file is None:
            return ""
        digest = hashlib.sha256(identity(trained.tokenizer).encode())
        for name, weight in trained.model.named_parameters():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(-1).float().numpy().data)
        return digest.hexdigest()
