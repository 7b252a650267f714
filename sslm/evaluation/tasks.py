"""Tasks: files here, or names of lm-evaluation-harness. They are read before any model is opened, and run no code.

A file of the harness may name functions (`!function`), classes and metrics that are downloaded: those are code, and
refused. What it writes in Jinja is rendered in a sandbox.
"""

import contextlib
import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from sslm.models.standard_error import Estimate
from sslm.system.errors import RunFailed, UserError, one_line, short
from sslm.system.paths import followed
from sslm.system.plain_yaml import BadYaml, load

MODULE = "lm_eval"
FLAG = "--tasks"
ENDINGS = (".yaml", ".yml")
CODE = ("class", "custom_dataset")
"""Keys that name what would be called."""


@dataclass(frozen=True)
class TaskSpec:
    """A task as the harness takes it."""

    name: str
    path: str
    """Its file, or the harness's own name."""
    spec: str | dict[str, Any]


def read_tasks(given: list[str], flag: str = FLAG) -> list[TaskSpec]:
    """Read files, folders of files, and names of the harness's own tasks, which `flag` was given, separated by commas.

    Raises:
        UserError: the harness is not installed, nothing there, or it asks for code.
    """
    with _flag_named(flag):
        specs = [spec for text in given for word in text.split(",") if word for spec in _read(word)]
    names = [spec.name for spec in specs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{flag}: two are called {min(twice)}; leave one of them out")
    if specs and find_spec(MODULE) is None:
        raise UserError(f"{flag}: lm-evaluation-harness is not installed; type: pip install 'sslm[eval]'")
    return specs


@contextmanager
def _flag_named(flag: str) -> Iterator[None]:
    """Say of a mistake in a task which flag named the task."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{flag} {error}") from error


def _read(word: str) -> Iterator[TaskSpec]:
    path = Path(followed(word))
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in ENDINGS and not file.name.startswith("_"))
        if not files:
            raise UserError(f"{word}: no task in this folder; expected files ending in .yaml")
        for file in files:
            yield _of_file(file)
    elif path.is_file():
        yield _of_file(path)
    elif path.suffix in ENDINGS or "/" in word or word.startswith((".", "~")):
        raise UserError(f"{word}: there is no such file or folder")
    else:
        yield TaskSpec(word, word, word)


def _of_file(file: Path, depth: int = 0) -> TaskSpec:
    config = _config(file, depth)
    if not isinstance(name := config.get("task"), str):
        raise UserError(f"{file}: no task (task: NAME); of a group name the files, or their folder")
    return TaskSpec(name, str(file), config)


def _config(file: Path, depth: int = 0) -> dict[str, Any]:
    """Read a file, and those that it includes; values are what the harness would read, once they are known as plain."""
    try:
        content = file.read_bytes()
        load(content)
        config = yaml.safe_load(content)
    except (BadYaml, yaml.YAMLError, UnicodeDecodeError) as error:
        is_code = "!function" in str(error)
        why = "it names a function (!function), and no code from outside is run" if is_code else one_line(error)
        raise UserError(f"{file}: {why}") from None
    except OSError as error:
        raise UserError(f"{file}: can't be read ({error.strerror})") from None
    if not isinstance(config, dict):
        raise UserError(f"{file}: expected keys and values, as in a task of lm-evaluation-harness")
    _refuse_code(file, config)
    included = config.pop("include", [])
    for name in included if isinstance(included, list) else [included]:
        if depth > 8:
            raise UserError(f"{file}: includes go round in a circle, or too deep")
        config = _config(file.parent / str(name), depth + 1) | config
    return _found_beside(file, config)


def _refuse_code(file: Path, config: dict[str, Any]) -> None:
    wrong = [name for name in CODE if name in config] + ["unsafe_code"] * bool(config.get("unsafe_code"))
    metrics = config.get("metric_list") or []
    if not isinstance(metrics, list) or not all(isinstance(metric, dict) for metric in metrics):
        raise UserError(f"{file}: metric_list: expected a list such as [{{metric: acc}}]")
    wrong += [f"metric {short(metric.get('metric'))}" for metric in metrics if metric.get("hf_evaluate")]
    if wrong:
        raise UserError(f"{file}: asks for code ({', '.join(wrong)}), and no code from outside is run")


def _found_beside(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Let data files that lie beside a task, and not where the command was typed, be found there."""
    how = config.get("dataset_kwargs")
    if not isinstance(how, dict) or "data_files" not in how:
        return config

    def found(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: found(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [found(inner) for inner in value]
        here, beside = Path(str(value)), file.parent / str(value)
        if "://" in str(value) or here.exists() or any(character in str(value) for character in "*?["):
            return value
        if not beside.exists():
            raise UserError(f"{file}: its data file {short(value)} is neither here nor beside it")
        return str(beside)

    return config | {"dataset_kwargs": how | {"data_files": found(how["data_files"])}}


# ------------------------------------------------------------------------------------------------ running


class Harness:
    """lm-evaluation-harness, quiet, its templates in a sandbox.

    Args:
        specs: tasks; each is built once, so that what is wrong with it shows before a model is opened.
        num_fewshot: examples before each question, or None for what the task says.
        limit: examples of each task, or None for all.
        flag: what named the tasks.
    """

    def __init__(self, specs: list[TaskSpec], num_fewshot: int | None, limit: int | None, flag: str = FLAG) -> None:
        self.num_fewshot, self.limit, self.flag = num_fewshot, limit, flag
        logging.getLogger(MODULE).setLevel(logging.CRITICAL)
        _sandbox(import_module("lm_eval.utils"))
        _leave_machine_alone(import_module("lm_eval.evaluator"))
        manager: Any = import_module("lm_eval.tasks").TaskManager
        self.manager = manager(include_defaults=any(isinstance(spec.spec, str) for spec in specs))
        for spec in specs:
            with _flag_named(flag), _told(spec):
                self._check_metrics(spec)
                self.manager.load([spec.spec])

    def refuse_writing(self, specs: list[TaskSpec]) -> None:
        """Raise UserError if a task asks for text to be written."""
        for spec in specs:
            with _flag_named(self.flag), _told(spec):
                tasks = self.manager.load([spec.spec])["tasks"].values()
                if any(task.OUTPUT_TYPE == "generate_until" for task in tasks):
                    raise UserError(f"{spec.path}: asks for text, and a masked model writes none; leave it out")

    def run(self, spec: TaskSpec, model: Any) -> tuple[dict[str, Estimate], int]:
        """Return a task's figures, and the number of examples."""
        with _flag_named(self.flag), _told(spec):
            results = import_module("lm_eval.evaluator").simple_evaluate(
                model=model,
                tasks=[spec.spec],
                num_fewshot=self.num_fewshot,
                limit=self.limit,
                task_manager=self.manager,
                log_samples=False,
            )
        num = sum(samples["effective"] for samples in results["n-samples"].values())
        return _figures(results["results"]), num

    def texts(self, spec: TaskSpec) -> list[str]:
        """List a task's examples, question and answer, as the model reads them."""
        texts = []
        with _flag_named(self.flag), _told(spec):
            for task in self.manager.load([spec.spec])["tasks"].values():
                for number, example in enumerate(task.eval_docs):
                    if self.limit is not None and number >= self.limit:
                        break
                    texts.append(_example(task, example))
        return texts

    @staticmethod
    def _check_metrics(spec: TaskSpec) -> None:
        """Refuse metrics that the harness would have to download: they are code."""
        if isinstance(spec.spec, str):
            return
        import_module("lm_eval.api.metrics")
        known = import_module("lm_eval.api.registry").metric_registry
        for metric in spec.spec.get("metric_list") or []:
            if metric.get("metric") not in known:
                name = short(metric.get("metric"))
                raise UserError(f"{spec.path}: the harness has no metric {name}; what it downloads is not run")


def _example(task: Any, example: Any) -> str:
    question, answer = task.doc_to_text(example), task.doc_to_target(example)
    if isinstance(answer, int) and task.config.doc_to_choice is not None:
        answer = task.doc_to_choice(example)[answer]
    return f"{question}{task.config.target_delimiter}{answer}"


def _sandbox(utils: Any) -> None:
    """Render templates where they reach no code: a task's file comes from anywhere."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    if not isinstance(utils.env, ImmutableSandboxedEnvironment):
        plain = utils.env
        utils.env = ImmutableSandboxedEnvironment(
            undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
        )
        utils.env.filters.update(plain.filters)


def _leave_machine_alone(evaluator: Any) -> None:
    """Let no git, pip and lscpu be started to describe this machine: seconds each time, and git's complaints."""
    evaluator.get_git_commit_hash = lambda: None
    evaluator.add_env_info = lambda results: None


@contextmanager
def _told(spec: TaskSpec) -> Iterator[None]:
    """Turn whatever the harness trips over into a sentence that names the task; its bars and remarks are not shown."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    except (UserError, RunFailed):
        raise
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # files, columns, templates: all are about the task
        raise UserError(f"{spec.path}: {type(error).__name__}: {one_line(error)}") from error


def _figures(results: dict[str, dict[str, Any]]) -> dict[str, Estimate]:
    """Name -> figure; one of a group's tasks, or with a filter, says so in its name."""
    found = {}
    for task, values in results.items():
        for key, value in values.items():
            metric, comma, chain = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{chain}")
            name = metric if chain == "none" else f"{metric} ({chain})"
            name = name if len(results) == 1 else f"{task} {name}"
            found[name] = Estimate(float(value), float(error) if isinstance(error, int | float) else math.nan)
    return found
