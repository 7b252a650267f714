"""What models are measured on: the texts of `--data`, what a run holds out, and what it was trained on."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sslm.cli.parse import parse
from sslm.data.corpus.remote import RemoteFiles
from sslm.data.stream.recipe import Recipe
from sslm.data.stream.stream import Stream
from sslm.data.stream.streams import Streams, cache_folder, open_streams
from sslm.data.stream.vocabulary import Vocabulary
from sslm.data.token_documents import TextOptions, TokenDocuments, check_tokenizer, of_regions, open_documents
from sslm.evaluation.texts import rules_of
from sslm.objectives import load_objective
from sslm.runs.folder import RunFolder, pretrained_folder
from sslm.runs.resume import first_batch_size
from sslm.runs.trained import Trained
from sslm.system.errors import UserError
from sslm.system.typed import typed


def texts_of(trained: Trained, given: list[tuple[str, str]], options: argparse.Namespace) -> list[TokenDocuments]:
    """Open the texts given, (name, path), or what the model's run has held out, by source."""
    if given:
        return [open_documents(path, name, trained.tokenizer, _how(trained, options)) for name, path in given]
    if (run := run_of(trained)) is None:
        raise UserError(f"{trained.name}: is no run, so it has no text of its own; give some: --data TEXT_OR_CORPUS")
    return _of_streams(_streams(run, trained), trained, "held out")


def training_texts(path: str, trained: Trained, options: argparse.Namespace) -> list[TokenDocuments]:
    """Open what a run was trained on, or a text or corpus, in the model's tokens."""
    if run := _run_at(Path(path)):
        return _of_streams(_streams(run, trained), trained, "training text")
    return [open_documents(path, path, trained.tokenizer, _how(trained, options))]


class RunStream(NamedTuple):
    """What a run was trained on, and how it became batches."""

    stream: Stream
    recipe: Recipe
    vocabulary: Vocabulary | None
    seed: int


def run_stream(trained: Trained) -> RunStream | None:
    """Open what a model's run was trained on; None if it is no run's."""
    if (run := run_of(trained)) is None:
        return None
    streams, recipe, seed = _opened(run, trained)
    return RunStream(streams.train, recipe, streams.vocabulary, seed)


def run_of(trained: Trained) -> RunFolder | None:
    """Find the run that a model is of, by its name: the run's folder, or a checkpoint in it."""
    path = Path(trained.name)
    return next(filter(None, map(_run_at, (path, path.parent.parent))), None)


def _how(trained: Trained, options: argparse.Namespace) -> TextOptions:
    cache_dir = options.cache_dir or cache_folder(parse([]).data)
    return TextOptions(cache_dir, options.text_field or "text", options.document_separator, rules_of(trained))


def _run_at(path: Path) -> RunFolder | None:
    return run if (run := RunFolder(path)).config.is_file() else None


def _streams(run: RunFolder, trained: Trained) -> Streams:
    return _opened(run, trained)[0]


def _opened(run: RunFolder, trained: Trained) -> tuple[Streams, Recipe, int]:
    """Open the corpora of a run as it did, prepared again if the cache has them no more."""
    config = replace(parse(["--config", str(run.config)]), run_dir=str(run.path))
    objective = load_objective(config.objective.name).for_model_type(trained.model.config.model_type)
    recipe = objective.make_recipe(typed(objective.recipe_class, "objective", config.objective.settings))
    streams = open_streams(
        config.data,
        recipe,
        config.window_tokens,
        config.batch_ramp.largest,
        config.seed,
        pretrained_folder(config),
        first_batch_size(config),
    )
    return streams, recipe, config.seed


def _of_streams(streams: Streams, trained: Trained, what: str) -> list[TokenDocuments]:
    texts = []
    for source in (streams.val if what == "held out" else streams.train).sources:
        name = f"{what}: {source.name}" if source.name else what
        check_tokenizer(name, source.corpus, trained.tokenizer)
        where = source.corpus.files.url if isinstance(source.corpus.files, RemoteFiles) else str(source.corpus.folder)
        texts.append(of_regions(name, where, source.corpus, source.regions, trained.tokenizer, rules_of(trained)))
    return texts
