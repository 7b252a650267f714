"""Every model on every text: models one after the other, so that one is in memory at a time."""

import argparse
import re
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

import sslm
from sslm.cli.evaluate.methods import Method, method_of
from sslm.cli.parse import parse
from sslm.data.corpus.tokenizer import TokenRules, identity
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
from sslm.models.standard_error import Estimate
from sslm.objectives import load_objective
from sslm.runs.folder import RunFolder, pretrained_folder
from sslm.runs.resume import first_batch_size
from sslm.runs.trained import Trained, open_trained
from sslm.system.errors import UserError, without_secrets
from sslm.system.paths import followed
from sslm.system.terminal import Progress, count, plural
from sslm.system.typed import typed

BATCH_TOKENS = {"cpu": 1 << 12, "cuda": 1 << 15}
LOGITS = 1 << 28
"""Most numbers that the head makes at once, if a row of its own isn't more."""


@dataclass(frozen=True)
class Model:
    """What is known of a model once it is out of memory."""

    name: str
    objective: str
    architecture: str
    parameters: int
    step: int | None
    tokenizer_sha256: str
    convention: str


@dataclass(frozen=True)
class Scores:
    """What a model came to on one text."""

    data: str
    path: str
    figures: dict[str, Estimate]
    documents: int
    tokens: int
    """Scored tokens."""
    bytes: int | None
    seconds: float
    record: list[dict[str, Any]]


@dataclass(frozen=True)
class Results:
    """All that was measured."""

    models: list[Model]
    scores: list[list[Scores]]
    """Of each model."""
    versions: dict[str, str]
    device: str


def measure_all(options: argparse.Namespace) -> Results:
    """Measure each model on each text.

    Raises:
        UserError: a model or a text can't be opened, or they don't go together.
    """
    device = _device(options.device)
    given = [named(text) for text in options.data or []]
    if twice := {name for name, _ in given if [other for other, _ in given].count(name) > 1}:
        raise UserError(f"--data: two are called {min(twice)}; give each a name: --data NAME=PATH")
    models, scores = [], []
    for path in options.models:
        trained = open_trained(path, options.last)
        if bad := unsound_weight(trained.model):
            raise UserError(f"{path}: {bad} has numbers that are not finite; take an earlier checkpoint")
        rules = _rules(trained)
        method = method_of(trained, rules, options.seq_len, options.stride)
        texts = _texts(trained, given, rules, options)
        network = LanguageModel(trained.model.float(), max_scored=1 if method.gathers else None).eval().to(device)
        scores.append([_measured(trained, network, method, text, options, device) for text in texts])
        models.append(_known(trained, method))
    versions = {"sslm": sslm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
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


def _known(trained: Trained, method: Method) -> Model:
    model = trained.model
    parameters = sum(weight.numel() for weight in model.parameters())
    sha256 = identity(trained.tokenizer)
    kind = type(model).__name__
    return Model(trained.name, trained.objective, kind, parameters, trained.step, sha256, method.convention)


# ------------------------------------------------------------------------------------------------ texts


def _texts(
    trained: Trained, given: list[tuple[str, str]], rules: TokenRules, options: argparse.Namespace
) -> list[TokenDocuments]:
    if not given:
        return _held_out(trained, rules)
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


def _measured(
    trained: Trained,
    network: LanguageModel,
    method: Method,
    text: TokenDocuments,
    options: argparse.Namespace,
    device: torch.device,
) -> Scores:
    tally, start = Tally(), time.monotonic()
    pieces = first_documents(text.pieces(), options.limit)
    rows = tally.watch(method.rows(tally.read(pieces)))
    batch_tokens = max(min(BATCH_TOKENS[device.type], LOGITS // network.vocab_size), 1)
    num_scored = 0
    with closing(Progress()) as bar:
        batches = in_batches(rows, options.batch_size, batch_tokens)
        for batch, tensors, pairs in scored(network, batches, method.collate, device):
            more = method.extra(network, tensors) if method.extra else [{} for _ in batch]
            for row, counted, others in zip(batch, pairs, more, strict=True):
                tally.add(row, counted | others)
                num_scored += int(counted.get(LOSS, (0, 0))[1])
            bar.show(
                _progress(trained.name, text, tally, num_scored, bar.seconds()), _share(text, tally, options.limit)
            )
    if LOSS not in tally.ratios or not num_scored:
        raise UserError(f"{text.path}: nothing in it can be scored; give text")
    num_bytes = None if tally.num_bytes != tally.num_bytes else round(tally.num_bytes)
    seconds = time.monotonic() - start
    return Scores(
        text.name,
        text.path,
        method.figures(tally.ratios),
        tally.num_documents,
        num_scored,
        num_bytes,
        seconds,
        text.record,
    )


def _share(text: TokenDocuments, tally: Tally, limit: int | None) -> float | None:
    if limit is not None:
        return min(tally.num_documents / limit, 1.0)
    if text.num_tokens:
        return min(tally.tokens_read / text.num_tokens, 1.0)
    return min(tally.bytes_read / text.num_bytes, 1.0) if text.num_bytes else None


def _progress(model: str, text: TokenDocuments, tally: Tally, num_scored: int, seconds: float) -> str:
    read = f"{plural(tally.num_documents, 'document')}, {plural(num_scored, 'token')}"
    return f"{model} on {text.name}: {read} ({count(num_scored / seconds)}/s)"
