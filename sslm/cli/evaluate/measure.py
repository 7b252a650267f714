"""Every model on every text: models one after the other, so that one is in memory at a time."""

import argparse
import functools
import math
import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

import sslm
from sslm.cli.evaluate.journal import Journal
from sslm.cli.evaluate.methods import Method, method_of
from sslm.cli.evaluate.scores import Model, Results, Scores
from sslm.cli.evaluate.tasks import Harness, TaskSpec, read_tasks
from sslm.cli.parse import parse
from sslm.data.corpus.tokenizer import Tokenizer, TokenRules, identity
from sslm.data.stream.streams import cache_folder, open_streams
from sslm.data.token_documents import (
    TextOptions,
    TokenDocuments,
    check_tokenizer,
    first_documents,
    of_regions,
    open_documents,
)
from sslm.models.head import LanguageModel
from sslm.models.scoring import LOSS, Tally, in_batches, scored, unsound_weight
from sslm.objectives import load_objective
from sslm.runs.folder import RunFolder, pretrained_folder
from sslm.runs.resume import first_batch_size
from sslm.runs.trained import Trained, open_language_model
from sslm.system.errors import UserError, without_secrets
from sslm.system.paths import followed
from sslm.system.terminal import Progress, count, plural, say
from sslm.system.typed import typed

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
    specs = read_tasks(options.tasks or [])
    harness = Harness(specs, options.num_fewshot, options.limit) if specs else None
    models, scores = [], []
    for path in options.models:
        trained = open_language_model(path, options.last)
        if bad := unsound_weight(trained.model):
            raise UserError(f"{path}: {bad} has numbers that are not finite; take an earlier checkpoint")
        texts = _texts(trained, given, options)
        method = method_of(trained, _rules(trained), options.seq_len, options.stride) if texts else None
        max_scored = None if trained.model.config.is_encoder_decoder else 1
        network = LanguageModel(trained.model.float(), max_scored).eval().to(device)
        one = Measuring(trained, network, options, journal, device)
        found = [one.on_text(text, method) for text in texts if method is not None]
        if harness is not None:
            found += [one.on_task(spec, harness) for spec in specs]
        scores.append(found)
        models.append(_known(trained, method.convention if method else ""))
    versions = {"sslm": sslm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    if harness is not None:
        versions["lm_eval"] = version("lm_eval")
    return Results(models, scores, versions, str(device))


def named(text: str) -> tuple[str, str]:
    """Split NAME=PATH, or name a path by its last part, up to a dot.

    >>> named("wiki=data/wiki.txt"), named("data/wiki.txt"), named("s3://bucket/a=b/")
    (('wiki', 'data/wiki.txt'), ('wiki', 'data/wiki.txt'), ('a=b', 's3://bucket/a=b/'))
    """
    name, equals, path = text.partition("=")
    if equals and path and re.fullmatch(r"[\w.-]+", name) and not Path(text).exists():
        return name, followed(path)
    last = without_secrets(text).rstrip("/").rpartition("/")[2]
    return last.split(".")[0] or last, followed(text)


def _device(name: str) -> torch.device:
    if name == "gpu" and not torch.cuda.is_available():
        raise UserError("--device gpu: there is no GPU here; leave the flag out")
    return torch.device("cuda" if torch.cuda.is_available() and name != "cpu" else "cpu")


def _rules(trained: Trained) -> TokenRules:
    """How a document became ids when the model was trained."""
    data = trained.settings.get("data", {})
    chosen = {name: data[name] for name in TokenRules._fields if isinstance(data.get(name), str)}
    return TokenRules(**chosen)


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


# ------------------------------------------------------------------------------------------------ texts


def _texts(trained: Trained, given: list[tuple[str, str]], options: argparse.Namespace) -> list[TokenDocuments]:
    rules = _rules(trained)
    if not given:
        return [] if options.tasks else _held_out(trained, rules)
    cache_dir = options.cache_dir or cache_folder(parse([]).data)
    how = TextOptions(cache_dir, options.text_field, options.document_separator, rules)
    return [open_documents(path, name, trained.tokenizer, how) for name, path in given]


def _held_out(trained: Trained, rules: TokenRules) -> list[TokenDocuments]:
    """What the run of a model has held out, by source."""
    path = Path(trained.name)
    run = next((run for run in map(RunFolder, (path, path.parent.parent)) if run.config.is_file()), None)
    if run is None:
        raise UserError(f"{trained.name}: is no run, so it has no text of its own; give some: --data TEXT_OR_CORPUS")
    config = parse(["--config", str(run.config)])
    objective = load_objective(config.objective.name).for_model_type(trained.model.config.model_type)
    recipe = objective.make_recipe(typed(objective.recipe_class, "objective", config.objective.settings))
    config = replace(config, run_dir=str(run.path))
    streams = open_streams(
        config.data,
        recipe,
        config.seq_len,
        config.batch_size,
        config.seed,
        pretrained_folder(config),
        first_batch_size(config),
    )
    texts = []
    for source in streams.val.sources:
        name = f"held out: {source.name}" if source.name else "held out"
        where = str(config.data.val or config.data.train or name)
        check_tokenizer(where, source.corpus, trained.tokenizer)
        texts.append(of_regions(name, where, source.corpus, source.regions, trained.tokenizer, rules))
    return texts


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
