"""Every model on every text: models one after the other, so that one is in memory at a time."""

import argparse
import functools
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
import transformers

import sslm
from sslm.cli.evaluate.contamination import pieces_of, with_overlap
from sslm.cli.evaluate.journal import Journal
from sslm.cli.evaluate.methods import Method, method_of
from sslm.cli.evaluate.scores import Model, Results, Scores
from sslm.cli.evaluate.tasks import Harness, TaskSpec, read_tasks
from sslm.cli.evaluate.texts import named, rules_of, texts_of, training_texts
from sslm.data.corpus.tokenizer import Tokenizer, identity
from sslm.data.overlap import Overlap
from sslm.data.token_documents import TokenDocuments, first_documents
from sslm.models.head import LanguageModel
from sslm.models.scoring import LOSS, Tally, in_batches, scored, unsound_weight
from sslm.runs.trained import Trained, check_there, open_language_model
from sslm.system.errors import UserError
from sslm.system.terminal import Progress, count, plural, say

BATCH_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 15}
LOGITS = 1 << 28
"""Most numbers that the head makes at once, if a row of its own isn't more."""


def measure_all(options: argparse.Namespace, journal: Journal) -> Results:
    """Measure each model on each text and each task, but for what the journal has.

    Raises:
        UserError: a model or a text can't be opened, or they don't go together.
    """
    device = _device(options.device)
    given = [named(text) for text in options.data or []]
    if twice := {name for name, _ in given if [other for other, _ in given].count(name) > 1}:
        raise UserError(f"--data: two are called {min(twice)}; give each a name: --data NAME=PATH")
    tasks = read_tasks(options.tasks or [])
    asked = Asked(given, tasks, Harness(tasks, options.num_fewshot, options.limit) if tasks else None)
    for path in options.models[1:]:  # the first is opened at once
        check_there(path)
    measured = [_of_model(path, asked, options, journal, device) for path in options.models]
    versions = {"sslm": sslm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    if tasks:
        versions["lm_eval"] = version("lm_eval")
    return Results([model for model, _ in measured], [scores for _, scores in measured], versions, str(device))


@dataclass(frozen=True)
class Asked:
    """What each model is measured on."""

    texts: list[tuple[str, str]]
    """Their names and paths; if there are none, and no tasks, what the model's run has held out."""
    tasks: list[TaskSpec]
    harness: Harness | None
    """None if there are no tasks."""


def _of_model(
    path: str, asked: Asked, options: argparse.Namespace, journal: Journal, device: torch.device
) -> tuple[Model, list[Scores]]:
    """Measure one model; when this returns, it is out of memory."""
    trained = open_language_model(path, options.last)
    if bad := unsound_weight(trained.model):
        raise UserError(f"{path}: {bad} has numbers that are not finite; take an earlier checkpoint")
    texts = texts_of(trained, asked.texts, options)
    training = [] if options.against is None else training_texts(options.against, trained, options)
    method = method_of(trained, rules_of(trained), options.seq_len, options.stride) if texts else None
    max_scored = None if trained.model.config.is_encoder_decoder else 1
    network = LanguageModel(trained.model.float(), max_scored).eval().to(device)
    one = Measuring(trained, network, options, journal, device)
    scores = [one.on_text(text, method) for text in texts if method is not None]
    if asked.harness is not None:
        scores += [one.on_task(spec, asked.harness) for spec in asked.tasks]
    if training:
        scores = with_overlap(scores, _overlaps(texts, asked, trained.tokenizer, options.limit), training)
    return _known(trained, method.convention if method else ""), scores


def _overlaps(texts: list[TokenDocuments], asked: Asked, tokenizer: Tokenizer, limit: int | None) -> list[Overlap]:
    overlaps = [Overlap.of(first_documents(text.pieces(), limit)) for text in texts]
    if asked.harness is not None:
        overlaps += [Overlap.of(pieces_of(asked.harness.texts(spec), tokenizer)) for spec in asked.tasks]
    return overlaps


def _device(name: str) -> torch.device:
    if name == "gpu" and not torch.cuda.is_available():
        raise UserError("--device gpu: there is no GPU here; leave the flag out")
    return torch.device("cuda" if torch.cuda.is_available() and name != "cpu" else "cpu")


def _known(trained: Trained, convention: str) -> Model:
    model = trained.model
    parameters = sum(weight.numel() for weight in model.parameters())
    sha256 = _identity(trained.tokenizer)
    kind = type(model).__name__
    return Model(trained.name, trained.objective, kind, parameters, trained.step, sha256, convention)


def _identity(tokenizer: Tokenizer) -> str:
    """Hash what decides which ids a text gets; special tokens that were appended decide nothing."""
    special = set(tokenizer.all_special_tokens)
    return identity(tokenizer, 1 + max(n for token, n in tokenizer.get_vocab().items() if token not in special))


# ------------------------------------------------------------------------------------------------ one text


@dataclass(frozen=True)
class Measuring:
    """A model on its device, to be measured."""

    trained: Trained
    network: LanguageModel
    options: argparse.Namespace
    journal: Journal
    device: torch.device

    @functools.cached_property
    def weights(self) -> str:
        return self.journal.weights(self.trained)

    @property
    def batch_tokens(self) -> int:
        return max(min(BATCH_TOKENS[self.device.type], LOGITS // self.network.vocab_size), 1)

    def on_text(self, text: TokenDocuments, method: Method) -> Scores:
        what = [text.name, text.path, text.record, method.convention, self.options.limit]
        return self._once(what, lambda: self._score(text, method))

    def on_task(self, spec: TaskSpec, harness: Harness) -> Scores:
        how = [harness.num_fewshot, harness.limit, self.options.seq_len]
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
        from sslm.cli.evaluate.harness_models import harness_model  # the harness is there only if it is asked for

        start, options = time.monotonic(), self.options
        say(f"{self.trained.name} on {spec.name} …")
        model = harness_model(self.trained, self.network, options.seq_len, options.batch_size, self.batch_tokens)
        figures, num = harness.run(spec, model)
        record = [{"num_fewshot": harness.num_fewshot, "limit": harness.limit}]
        return Scores(spec.name, spec.path, figures, {"examples": num}, time.monotonic() - start, record)

    def _score(self, text: TokenDocuments, method: Method) -> Scores:
        tally, start, num_scored = Tally(), time.monotonic(), 0
        pieces = first_documents(text.pieces(), self.options.limit)
        batches = in_batches(tally.watch(method.rows(tally.read(pieces))), self.options.batch_size, self.batch_tokens)
        with closing(Progress()) as bar:
            for batch in scored(self.network, batches, method.collate, self.device):
                extra = method.extra(self.network, batch.tensors) if method.extra else [{} for _ in batch.rows]
                for row, pairs, more in zip(batch.rows, batch.pairs, extra, strict=True):
                    tally.add(row, pairs | more)
                    num_scored += int(pairs.get(LOSS, (0, 0))[1])
                done = _progress(self.trained.name, text, tally, num_scored, bar.seconds())
                bar.show(done, _share(text, tally, self.options.limit))
        if not num_scored:
            raise UserError(f"{text.path}: nothing in it can be scored; give text")
        counts = {"documents": tally.num_documents, "tokens": num_scored}
        if math.isfinite(tally.num_bytes):
            counts["bytes"] = round(tally.num_bytes)
        return Scores(text.name, text.path, method.figures(tally.ratios), counts, time.monotonic() - start, text.record)


def _share(text: TokenDocuments, tally: Tally, limit: int | None) -> float | None:
    if limit is not None:
        return min(tally.num_documents / limit, 1.0)
    if text.num_tokens:
        return min(tally.tokens_read / text.num_tokens, 1.0)
    return min(tally.bytes_read / text.num_bytes, 1.0) if text.num_bytes else None


def _progress(model: str, text: TokenDocuments, tally: Tally, num_scored: int, seconds: float) -> str:
    read = f"{plural(tally.num_documents, 'document')}, {plural(num_scored, 'token')}"
    return f"{model} on {text.name}: {read} ({count(num_scored / seconds)}/s)"
