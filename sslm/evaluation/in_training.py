"""What a model is measured on while it trains (--eval_tasks, --eval_data): checked at the door, measured at each step.

It is what `sslm evaluate` would say of the step's checkpoint. What is finished is kept in the run folder until all is:
after a kill only the rest is measured.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from sslm.config import Config
from sslm.config.written import to_tree
from sslm.data.corpus.tokenizer import Tokenizer, TokenRules
from sslm.data.stream.streams import cache_folder
from sslm.data.token_documents import TextOptions, TokenDocuments, open_documents
from sslm.evaluation.journal import Journal
from sslm.evaluation.measuring import Limits, Measuring
from sslm.evaluation.methods import method_of
from sslm.evaluation.scores import Scores, in_words
from sslm.evaluation.tasks import Harness, TaskSpec, read_tasks
from sslm.evaluation.texts import named, rules_of
from sslm.models.architecture import LANGUAGE_MODELS
from sslm.runs.folder import RunFolder
from sslm.runs.trained import of_weights
from sslm.system.errors import UserError
from sslm.system.terminal import say
from sslm.training.callbacks.evaluation import Copy
from sslm.training.module import Objective


@dataclass(frozen=True)
class Evaluations:
    """Tasks and texts, and how to measure on them."""

    config: Config
    texts: list[tuple[str, str]]
    """Their names and paths."""
    tasks: list[TaskSpec]
    harness: Harness | None
    """None if there are no tasks, or another process measures."""

    def check_texts(self, tokenizer: Tokenizer | None) -> None:
        """Raise UserError if a text is not there, or is a corpus of another tokenizer."""
        for name, path in self.texts:
            if tokenizer is None:
                raise UserError(f"--eval_data {path}: the corpus came without a tokenizer; give --data.tokenizer")
            try:
                open_documents(path, name, tokenizer, self._how())
            except UserError as error:
                raise UserError(f"--eval_data {error}") from None

    def __call__(self, copy: Copy, before_each_pass: Callable[[], None]) -> dict[str, float | None]:
        """Measure a copy of the model, tell the figures, and return them by their names in metrics.jsonl."""
        start, journal = time.monotonic(), Journal(RunFolder(self.config.run_folder).path / "evaluation")
        trained = of_weights(
            f"step {copy.step:>6}", copy.folder, copy.weights, to_tree(self.config), copy.step, copy.adapters
        )
        one = Measuring.of(trained, copy.device, journal, Limits(self.config.eval_limit))
        trained.model.register_forward_pre_hook(lambda *_: before_each_pass())
        method = method_of(trained, rules_of(trained), None, None) if self.texts else None
        texts = [self._open(name, path, trained.tokenizer) for name, path in self.texts]
        scores = [one.on_text(text, method) for text in texts if method is not None]
        if self.harness is not None:
            scores += [one.on_task(spec, self.harness) for spec in self.tasks]
        journal.remove()
        for one_of_them in scores:
            figures = "  ".join(f"{name} {in_words(figure)}" for name, figure in one_of_them.figures.items())
            say(f"step {copy.step:>6}  eval/{one_of_them.data}  {figures}")
        return row_of(scores) | {"eval/seconds": round(time.monotonic() - start, 3)}

    def _open(self, name: str, path: str, tokenizer: Tokenizer) -> TokenDocuments:
        return open_documents(path, name, tokenizer, self._how())

    def _how(self) -> TextOptions:
        data = self.config.data
        rules = TokenRules(data.special_tokens, data.bos)
        return TextOptions(cache_folder(data), data.text_field, data.document_separator, rules)


def row_of(scores: list[Scores]) -> dict[str, float | None]:
    """Name figures as metrics.jsonl has them: eval/NAME/FIGURE, and its standard error; what is not finite is null."""
    row: dict[str, float | None] = {}
    for one in scores:
        for name, (value, stderr) in one.figures.items():
            row[f"eval/{one.data}/{name}"] = value if math.isfinite(value) else None
            if math.isfinite(stderr):
                row[f"eval/{one.data}/{name}_stderr"] = stderr
    return row


def asked_in(config: Config, objective: type[Objective], measures: bool) -> Evaluations | None:
    """Read what a run is to be measured on, or return None if that is nothing.

    Args:
        config: the run's settings.
        objective: what is trained.
        measures: whether this process will do it: then all that the harness may refuse is refused now.

    Raises:
        UserError: a task is not there or can't be had, or the objective predicts no tokens.
    """
    given = [named(word) for word in (config.eval_data or "").split(",") if word]
    tasks = read_tasks([config.eval_tasks], "--eval_tasks") if config.eval_tasks is not None else []
    names = [name for name, _ in given] + [spec.name for spec in tasks]
    if not names:
        if config.eval_every is not None:
            raise UserError(f"--eval_every {config.eval_every}: on what? give --eval_tasks or --eval_data")
        return None
    if objective.auto_class not in LANGUAGE_MODELS:
        what = f"{config.objective.name} predicts no tokens, so tasks and texts can't be scored by it"
        raise UserError(f"--eval_tasks, --eval_data: {what}; leave them out")
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"--eval_tasks, --eval_data: two are called {min(twice)}; give a text a name: NAME=PATH")
    harness = None
    if tasks and measures:
        harness = Harness(tasks, config.eval_num_fewshot, config.eval_limit, "--eval_tasks")
        if objective.auto_class == "AutoModelForMaskedLM":
            harness.refuse_writing(tasks)
    return Evaluations(config, given, tasks, harness)
