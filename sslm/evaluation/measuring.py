"""A model on one text or one task."""

import functools
import math
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from sslm.data.token_documents import TokenDocuments, first_documents
from sslm.evaluation.journal import Journal
from sslm.evaluation.methods import Method
from sslm.evaluation.scores import Scores
from sslm.evaluation.sharing import ALONE, Processes, shared
from sslm.evaluation.tasks import Harness, TaskSpec
from sslm.models.head import LanguageModel
from sslm.models.scoring import LOSS, Pairs, Row, Tally, in_batches, scored
from sslm.models.weights import in_fp32
from sslm.runs.trained import Trained
from sslm.system.errors import UserError
from sslm.system.terminal import Progress, count, plural, say

BATCH_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 15}
LOGITS = 1 << 28
"""Most numbers that the head makes at once, if a row of its own isn't more."""


@dataclass(frozen=True)
class Limits:
    """How much goes through a model, and how much of it at once."""

    limit: int | None = None
    """Documents of a text; None for all."""
    seq_len: int | None = None
    """Tokens of a window; None for what the model was trained with, or takes."""
    batch_size: int | None = None
    """Sequences per forward pass; None for what suits the device."""


@dataclass(frozen=True)
class Measuring:
    """A model on its device, to be measured."""

    trained: Trained
    network: LanguageModel
    journal: Journal
    limits: Limits = Limits()
    processes: Processes = ALONE
    """Those that share the work."""

    @classmethod
    def of(
        cls, trained: Trained, device: torch.device, journal: Journal, limits: Limits, processes: Processes = ALONE
    ) -> "Measuring":
        """Put a model on its device, in fp32."""
        max_scored = None if trained.model.config.is_encoder_decoder else 1
        network = LanguageModel(in_fp32(trained.model), max_scored).eval().to(device)
        return cls(trained, network, journal, limits, processes)

    @functools.cached_property
    def weights(self) -> str:
        return self.journal.weights(self.trained)

    @property
    def device(self) -> torch.device:
        return self.trained.model.device

    @property
    def batch_tokens(self) -> int:
        return max(min(BATCH_TOKENS[self.device.type], LOGITS // self.network.vocab_size), 1)

    def on_text(self, text: TokenDocuments, method: Method) -> Scores:
        what = [text.name, text.path, text.record, method.convention, self.limits.limit]
        return self._once(what, lambda: self._score(text, method))

    def on_task(self, spec: TaskSpec, harness: Harness) -> Scores:
        how = [harness.num_fewshot, harness.limit, self.limits.seq_len]
        return self._once([spec.name, spec.path, spec.spec, *how], lambda: self._answer(spec, harness))

    def _once(self, what: list[Any], score: Callable[[], Scores]) -> Scores:
        """Score, unless an earlier command has."""
        key = self.journal.key(self.weights, *what)
        if (found := self.journal.find(key)) is not None:
            return found
        scores = score()
        self.journal.keep(key, scores)
        return scores

    def _answer(self, spec: TaskSpec, harness: Harness) -> Scores:
        from sslm.evaluation.answers import CHUNK, InChunks
        from sslm.evaluation.harness_models import harness_model  # the harness is there only if it is asked for

        start, limits = time.monotonic(), self.limits
        say(f"{self.trained.name} on {spec.name} …")
        model = harness_model(self.trained, self.network, limits.seq_len, limits.batch_size, self.batch_tokens)
        chunk = max(CHUNK, 8 * (limits.batch_size or 1))
        key = self.journal.key(self.weights, limits.seq_len)
        asked = InChunks(model, spec.name, self.journal, key, chunk, self.processes, sys.stdout)
        figures, num = harness.run(spec, asked)
        record = [{"num_fewshot": harness.num_fewshot, "limit": harness.limit}]
        return Scores(spec.name, spec.path, figures, {"examples": num}, time.monotonic() - start, record)

    def _score(self, text: TokenDocuments, method: Method) -> Scores:
        tally, start, num_scored = Tally(), time.monotonic(), 0
        pieces = first_documents(text.pieces(), self.limits.limit)
        batches = in_batches(tally.watch(method.rows(tally.read(pieces))), self.limits.batch_size, self.batch_tokens)
        with closing(Progress()) as bar:
            for rows, counted in shared(batches, lambda rows: self._count(rows, method), self.processes):
                for row, pairs in zip(rows, counted, strict=True):
                    tally.add(row, pairs)
                    num_scored += int(pairs.get(LOSS, (0, 0))[1])
                done = _progress(self.trained.name, text, tally, num_scored, bar.seconds())
                bar.show(done, _share(text, tally, self.limits.limit))
        if not num_scored:
            raise UserError(f"{text.path}: nothing in it can be scored; give text")
        counts = {"documents": tally.num_documents, "tokens": num_scored}
        if math.isfinite(tally.num_bytes):
            counts["bytes"] = round(tally.num_bytes)
        return Scores(text.name, text.path, method.figures(tally.ratios), counts, time.monotonic() - start, text.record)

    def _count(self, rows: list[Row], method: Method) -> list[Pairs]:
        """Let a batch go through the model, and count of each row what the method counts."""
        (batch,) = scored(self.network, [rows], method.collate, self.device)
        extra = method.extra(self.network, batch.tensors) if method.extra else [{} for _ in rows]
        return [pairs | more for pairs, more in zip(batch.pairs, extra, strict=True)]


def _share(text: TokenDocuments, tally: Tally, limit: int | None) -> float | None:
    if limit is not None:
        return min(tally.num_documents / limit, 1.0)
    if text.num_tokens:
        return min(tally.tokens_read / text.num_tokens, 1.0)
    return min(tally.bytes_read / text.num_bytes, 1.0) if text.num_bytes else None


def _progress(model: str, text: TokenDocuments, tally: Tally, num_scored: int, seconds: float) -> str:
    read = f"{plural(tally.num_documents, 'document')}, {plural(num_scored, 'token')}"
    return f"{model} on {text.name}: {read} ({count(num_scored / seconds)}/s)"
