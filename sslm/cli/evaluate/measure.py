"""Every model on every text: models one after the other, so that one is in memory at a time."""

import argparse
from dataclasses import dataclass
from importlib.metadata import version

import torch
import transformers

import sslm
from sslm.cli.texts import texts_of, training_texts
from sslm.data.corpus.tokenizer import Tokenizer, identity
from sslm.data.overlap import Overlap
from sslm.data.token_documents import TokenDocuments, first_documents
from sslm.evaluation.contamination import pieces_of, with_overlap
from sslm.evaluation.journal import Journal
from sslm.evaluation.measuring import Limits, Measuring
from sslm.evaluation.methods import method_of
from sslm.evaluation.scores import Model, Results, Scores
from sslm.evaluation.sharing import ALONE, Processes
from sslm.evaluation.tasks import Harness, TaskSpec, read_tasks
from sslm.evaluation.texts import named, rules_of
from sslm.models.scoring import unsound_weight
from sslm.runs.trained import Trained, check_there, open_language_model
from sslm.system.errors import UserError


def measure_all(options: argparse.Namespace, journal: Journal, processes: Processes = ALONE) -> Results:
    """Measure each model on each text and each task, but for what the journal has.

    Raises:
        UserError: a model or a text can't be opened, or they don't go together.
    """
    device = _device(options.device, processes.rank)
    given = [named(text) for text in options.data or []]
    if twice := {name for name, _ in given if [other for other, _ in given].count(name) > 1}:
        raise UserError(f"--data: two are called {min(twice)}; give each a name: --data NAME=PATH")
    tasks = read_tasks(options.tasks or [])
    asked = Asked(given, tasks, Harness(tasks, options.num_fewshot, options.limit) if tasks else None)
    for path in options.models[1:]:  # the first is opened at once
        check_there(path)
    measured = [_of_model(path, asked, options, journal, device, processes) for path in options.models]
    versions = {"sslm": sslm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    if tasks:
        versions["lm_eval"] = version("lm_eval")
    return Results([model for model, _ in measured], [scores for _, scores in measured], versions, device.type)


@dataclass(frozen=True)
class Asked:
    """What each model is measured on."""

    texts: list[tuple[str, str]]
    """Their names and paths; if there are none, and no tasks, what the model's run has held out."""
    tasks: list[TaskSpec]
    harness: Harness | None
    """None if there are no tasks."""


def _of_model(
    path: str, asked: Asked, options: argparse.Namespace, journal: Journal, device: torch.device, processes: Processes
) -> tuple[Model, list[Scores]]:
    """Measure one model; when this returns, it is out of memory."""
    trained = open_language_model(path, options.last)
    if bad := unsound_weight(trained.model):
        raise UserError(f"{path}: {bad} has numbers that are not finite; take an earlier checkpoint")
    texts = texts_of(trained, asked.texts, options) if asked.texts or not asked.tasks else []
    training = [] if options.against is None else training_texts(options.against, trained, options)
    method = method_of(trained, rules_of(trained), options.seq_len, options.stride) if texts else None
    limits = Limits(options.limit, options.seq_len, options.batch_size)
    one = Measuring.of(trained, device, journal, limits, processes)
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


def _device(name: str, rank: int) -> torch.device:
    if name == "gpu" and not torch.cuda.is_available():
        raise UserError("--device gpu: there is no GPU here; leave the flag out")
    return torch.device("cuda", rank) if torch.cuda.is_available() and name != "cpu" else torch.device("cpu")


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
