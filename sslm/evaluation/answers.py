"""A task's questions asked in chunks: processes share them, and what is answered is kept after each.

A chunk is the same whatever the number of processes, and so are the batches inside: no figure depends on it.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from lm_eval.api.model import LM

from sslm.evaluation.journal import Journal
from sslm.evaluation.sharing import Processes, shared
from sslm.system.terminal import SECONDS_BETWEEN_PLAIN_LINES, plural, say

CHUNK = 256
"""Questions, at least: a minute's work of a small model on a CPU."""


class InChunks(LM):  # type: ignore[misc]
    """Asks another model, in chunks.

    Args:
        model: what answers.
        name: what to call it where progress is told.
        journal: what keeps answers.
        weights: hash of all that decides an answer beside the question.
        chunk: questions at once.
        processes: those that share the questions.
        stdout: where progress is told; the harness' own words go elsewhere.
    """

    def __init__(
        self, model: Any, name: str, journal: Journal, weights: str, chunk: int, processes: Processes, stdout: Any
    ) -> None:
        super().__init__()
        self.model, self.name, self.journal, self.weights = model, name, journal, weights
        self.chunk, self.processes, self.stdout = chunk, processes, stdout
        self.told_at = time.monotonic()

    @property
    def tokenizer_name(self) -> str:
        return str(getattr(self.model, "tokenizer_name", ""))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(self.model.apply_chat_template(chat_history, add_generation_prompt))

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Score each continuation given its context: nats, and whether each token is the likeliest."""
        return [(nats, is_greedy) for nats, is_greedy in self._ask("loglikelihood", requests)]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Score whole texts."""
        return list(self._ask("loglikelihood_rolling", requests))

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Write on, up to a stop string."""
        return list(self._ask("generate_until", requests))

    def _ask(self, kind: str, requests: list[Any]) -> Iterator[Any]:
        chunks = [requests[start : start + self.chunk] for start in range(0, len(requests), self.chunk)]
        keys = [self.journal.key(self.weights, kind, [list(request.args) for request in chunk]) for chunk in chunks]
        known = [self.journal.answers.get(key) for key in keys]
        missing = [number for number, answers in enumerate(known) if answers is None]
        for number, answers in shared(missing, lambda number: self._answer(kind, chunks[number]), self.processes):
            known[number] = answers
            self.journal.keep_answers(keys[number], answers)
            self._tell(sum(len(chunk) for chunk, of_it in zip(chunks, known, strict=True) if of_it), len(requests))
        return (answer for answers in known for answer in answers or [])

    def _answer(self, kind: str, chunk: list[Any]) -> list[Any]:
        answers = getattr(self.model, kind)(chunk)
        if kind == "loglikelihood":
            return [(float(nats), bool(is_greedy)) for nats, is_greedy in answers]
        return [str(answer) if kind == "generate_until" else float(answer) for answer in answers]

    def _tell(self, done: int, num: int) -> None:
        if time.monotonic() - self.told_at > SECONDS_BETWEEN_PLAIN_LINES:
            self.told_at = time.monotonic()
            with contextlib.redirect_stdout(self.stdout):
                say(f"{self.name}: {done:,} of {plural(num, 'question', exact=True)}")
