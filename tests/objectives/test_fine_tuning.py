"""Objectives on labelled rows, end to end: they learn, resume, run in pairs, and what is exported predicts alike."""

import functools
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
import transformers
from safetensors.torch import load_file

from sslm.__main__ import main as sslm
from sslm.cli.parse import parse
from sslm.models.build import build
from sslm.objectives import FINE_TUNING
from sslm.objectives.choose import choose_model, choose_objective, open_data
from sslm.objectives.predicted_scores import scores_of
from sslm.train import main
from tests.support.objectives import ENCODER, T5
from tests.support.processes import train_forked
from tests.support.runs import digests_of, losses_of, rows_of, val_of

peft: Any = pytest.importorskip("peft")
COLOURS, NOUNS = ("red", "green", "blue"), ("house", "river", "stone", "garden", "window")
BERT = f"--model.model_type bert {ENCODER}"


@dataclass(frozen=True)
class Task:
    """An objective, its flags, what it must reach, and a labelled row."""

    name: str
    flags: str
    metric: str
    at_least: float
    auto_class: str
    row: Callable[[str, str, int], dict[str, Any]]
    steps: int = 60
    """In four epochs."""

    def __str__(self) -> str:
        return self.name

    @property
    def objective(self) -> str:
        return self.name.partition("-")[0]


def phrase(colour: str, noun: str) -> str:
    return f"the {colour} {noun} is here"


TASKS = [
    Task(
        "classification",
        BERT,
        "val/f1_macro",
        0.9,
        "AutoModelForSequenceClassification",
        lambda colour, noun, n: {"text": phrase(colour, noun), "label": colour},
    ),
    Task(
        "classification-several",
        f"{BERT} --objective.multi_label true",
        "val/f1_micro",
        0.7,
        "AutoModelForSequenceClassification",
        lambda colour, noun, n: {"text": phrase(colour, noun), "label": [colour, *(["warm"] * (colour == "red"))]},
    ),
    Task(
        "regression",
        BERT,
        "val/spearman",
        0.8,
        "AutoModelForSequenceClassification",
        lambda colour, noun, n: {"text": phrase(colour, noun), "label": COLOURS.index(colour) - 0.5},
    ),
    Task(
        "tagging",
        BERT,
        "val/f1",
        0.9,
        "AutoModelForTokenClassification",
        lambda colour, noun, n: {  # some of two windows
            "text": ["the", colour, noun, "is"] * (1 + n % 2 * 4),
            "label": ["O", "B-COLOUR", "I-COLOUR", "O"] * (1 + n % 2 * 4),
        },
        steps=60,
    ),
    Task(
        "extraction",
        f"{BERT} --objective.overlap 8",
        "val/exact_match",
        0.5,
        "AutoModelForQuestionAnswering",
        lambda colour, noun, n: {
            "id": str(n),
            "question": "which colour" if n % 7 else "which animal",
            "context": phrase(colour, noun) + " and so on" * (n % 3 * 6),  # of up to three windows
            "answers": {"text": [f"the {colour}", colour] * (n % 7 > 0), "answer_start": [0, 4] * (n % 7 > 0)},
        },
        steps=84,
    ),
    Task(
        "text_to_text",
        T5,
        "val/accuracy",
        0.5,
        "AutoModelForSeq2SeqLM",
        lambda colour, noun, n: {"source": phrase(colour, noun), "target": colour},
    ),
    Task(
        "text_to_text-causal",
        f"--model.model_type llama {ENCODER}",
        "val/accuracy",
        0.5,
        "AutoModelForCausalLM",
        lambda colour, noun, n: {"source": phrase(colour, noun), "target": colour},
    ),
    Task(
        "classification-lora",
        "--lora.rank 4 --lora.dropout 0.1 --optim.layer_decay 0.8",
        "val/f1_macro",
        0.5,
        "AutoModelForSequenceClassification",
        lambda colour, noun, n: {"text": phrase(colour, noun), "label": colour},
    ),
]
FEWER = 290
"""Entries of the pretrained model that gets adapters: the tokenizer has more."""
RESUMED = ("classification", "tagging", "classification-lora")
SHORT = shlex.split(
    "--data.tokenizer bpe:300 --seq_len 32 --batch_size 8 --optim.warmup_steps 2 --log_every 1 --accelerator cpu "
    "--optim.lr 1e-2 --checkpoint.every_steps 4 --val_every 4"
)


def test_every_objective_on_labelled_rows_is_tried_here() -> None:
    assert {task.objective for task in TASKS} == set(FINE_TUNING)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Task], list[str]]:
    """Flags that name a task's rows, which are written once."""
    folder = tmp_path_factory.mktemp("labelled")

    @functools.cache
    def flags_of(task: Task) -> list[str]:
        made = [task.row(COLOURS[n % 3], NOUNS[n % 5], n) for n in range(150)]
        files = {"train": made[:120], "val": made[120:]}
        for name, some in files.items():
            (folder / f"{task}-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
        named = [f"--data.{name}={folder}/{task}-{name}.jsonl" for name in files]
        if "--lora" in task.flags:
            sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
            bert = transformers.BertConfig(vocab_size=FEWER, max_position_embeddings=40, **sizes)
            build(bert, "AutoModelForMaskedLM", 0).save_pretrained(folder / "bert")
            named.append(f"--model.pretrained={folder}/bert")
        return [*named, f"--data.cache_dir={folder}/cache"]

    return flags_of


def command(task: Task, run: Path, rows: Callable[[Task], list[str]], *more: str) -> list[str]:
    asked = ["--objective", task.objective, *task.flags.split(), "--run_dir", str(run)]
    return [*SHORT, *rows(task), *asked, *more]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("task", TASKS, ids=str)
def test_a_task_is_learned_and_its_export_has_the_same_loss_in_transformers(
    task: Task, rows: Callable[[Task], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = command(task, run, rows, "--max_epochs", "4", "--val_every", "20", "--checkpoint.export", "last")
    assert sslm(["finetune", *arguments]) == 0
    said = capsys.readouterr().out
    first, *_, last = val_of(run).values()
    row = [row for row in rows_of(run) if "val/loss" in row][-1]
    assert row["step"] == task.steps
    assert last < first
    assert row[task.metric] >= task.at_least, (row, said)
    assert "120 rows" in said
    assert f"{task.auto_class}.from_pretrained" in said
    model = getattr(transformers, task.auto_class).from_pretrained(run / "export").eval()
    assert loss_in_transformers(task, model, arguments) == pytest.approx(last, abs=1e-5)
    if "--lora" in task.flags:
        base = getattr(transformers, task.auto_class).from_pretrained(
            named(arguments, "model.pretrained"), num_labels=3
        )
        assert model.config.vocab_size > FEWER
        base.resize_token_embeddings(model.config.vocab_size)
        adapted = peft.PeftModel.from_pretrained(base, str(run / "export/adapter")).eval()
        assert loss_in_transformers(task, adapted, arguments) == pytest.approx(last, abs=1e-5)
    said_of = predicted(run, named(arguments, "data.val"), tmp_path, can_plot=task.objective != "text_to_text")
    assert [row["row"] for row in said_of] == list(range(30))
    at_the_end = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    if task.objective in ("classification", "tagging", "extraction"):
        assert [row["predicted"] for row in at_the_end] == [row["predicted"] for row in said_of]
    assert [(row["row"], row["label"]) for row in at_the_end] == [(row["row"], row["label"]) for row in said_of]
    assert (run / "predicted.png").exists() == (task.objective != "text_to_text")
    if task.objective == "text_to_text":
        check_texts(said_of, run, tmp_path, capsys)
        return
    labels = list(getattr(model.config, "id2label", {}).values())
    scores = {f"val/{name}": score for name, score in scores_of(said_of, task.objective, labels).items()}
    assert task.metric in scores
    swapped = {"val/spearman": 1e-3}  # of predictions that are almost equal, rounding decides which is larger
    for name, score in scores.items():
        assert score == pytest.approx(row[name], abs=swapped.get(name, 1e-5)), name
    if task.objective == "classification":
        right = sum(said["predicted"] == said["label"] for said in said_of) / 30
        assert right == pytest.approx(row.get("val/exact_match", row["val/accuracy"]), abs=1e-6)
        (tmp_path / "plain.jsonl").write_text('{"text": "the red house"}\n')
        asked = ["--data", str(tmp_path / "plain.jsonl"), "--out", str(tmp_path / "plain.out")]
        assert sslm(["predict", str(run), *asked, "--plot", str(tmp_path / "plain.png")]) == 2
        assert not (tmp_path / "plain.out").exists()
        assert sslm(["predict", str(run), *asked]) == 0
    if task.objective == "regression":
        error = sum((said["predicted"] - said["label"]) ** 2 for said in said_of) / 30
        assert error == pytest.approx(last, abs=1e-5)
    if task.objective == "tagging":
        flat = [pair for said in said_of for pair in zip(said["predicted"], said["label"], strict=True)]
        assert sum(a == b for a, b in flat) / len(flat) == pytest.approx(row["val/accuracy"], abs=1e-6)
    if task.objective == "extraction":
        assert row["val/exact_match"] == pytest.approx(sum(is_right(said) for said in said_of) / 30)


def is_right(said: dict[str, Any]) -> bool:
    """Whether an answer is, without articles, one of those that are right, or none if there is none."""
    return said["predicted"].removeprefix("the ") in [text.removeprefix("the ") for text in said["label"] or [""]]


def named(arguments: list[str], which: str) -> str:
    """The file that a command line names as --WHICH."""
    return next(word.partition("=")[2] for word in arguments if word.startswith(f"--{which}="))


def check_texts(said_of: list[dict[str, Any]], run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts are those of `sslm generate`, and scores those that were told and that sacrebleu counts."""
    told = capsys.readouterr().out
    texts, right = [row["predicted"] for row in said_of], [row["label"] for row in said_of]
    assert f"bleu {sacrebleu.corpus_bleu(texts, [right]).score:.4f}, chrf" in told
    assert f"chrf {sacrebleu.corpus_chrf(texts, [right]).score:.4f}" in told
    exact = sum(map(str.__eq__, texts, right)) / 30
    assert f"exact_match {exact:.4f}" in told
    assert exact == pytest.approx([row["val/exact_match"] for row in rows_of(run) if "val/exact_match" in row][-1])
    assert "tok:13a" in told
    prompts, out = folder / "prompts.jsonl", folder / "written.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": row["text"]}) + "\n" for row in said_of))
    how = ["--temperature", "0", "--max_new_tokens", "16"]
    assert sslm(["generate", str(run), "--prompts", str(prompts), "--out", str(out), *how]) == 0
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == texts


def predicted(run: Path, file: str, folder: Path, can_plot: bool) -> list[dict[str, Any]]:
    """What `sslm predict` writes, in batches of 7, and that batches of another size give the same."""
    written = []
    for size in ("7", "30"):
        out = folder / f"{size}.jsonl"
        asked = ["--out", str(out), "--batch_size", size]
        asked += ["--plot", str(folder / "a.png")] if can_plot else ["--max_new_tokens", "16"]
        assert sslm(["predict", str(run), "--data", file, *asked]) == 0
        written.append([json.loads(line) for line in out.read_text().splitlines()])
    apart = ("scores", "score", "predicted") if isinstance(written[0][0]["predicted"], float) else ("scores", "score")
    first, second = ([{k: v for k, v in row.items() if k not in apart} for row in rows] for rows in written)
    assert first == second
    assert not can_plot or (folder / "a.png").stat().st_size > 10_000
    return written[0]


@torch.no_grad()
def loss_in_transformers(task: Task, model: Any, arguments: list[str]) -> float:
    """The held-out loss that transformers' own class tells, row by row without padding."""
    config = parse(arguments)
    data = open_data(config, choose_objective(config)[1])
    batch = data.held_out.rows(data.held_out.stream.num_windows)
    data.teardown("fit")
    losses, targets = 0.0, 0
    for number, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        inputs = {name: tensor[number : number + 1] for name, tensor in batch.items() if name != "context"}
        labels = inputs.pop("labels")
        inputs = {name: tensor[:, :length] for name, tensor in inputs.items()}
        if task.objective == "extraction":
            answer = {"start_positions": labels[:, 0], "end_positions": labels[:, 1]}
            losses, targets = losses + 2 * model(**inputs, **answer).loss.item(), targets + 2
            continue
        labels = labels[:, :length] if task.name in ("tagging", "text_to_text-causal") else labels
        num = int((labels != -100).sum())
        if task.name == "text_to_text-causal":  # its labels are the next tokens already
            loss = torch.nn.functional.cross_entropy(model(**inputs).logits[0], labels[0])
        else:
            wanted = labels[:, 0] if task.name in ("classification", "classification-lora") else labels
            wanted = labels.float() if task.name == "classification-several" else wanted
            loss = model(**inputs, labels=wanted).loss
        losses, targets = losses + num * loss.item(), targets + num
    return losses / targets


@pytest.mark.slow
def test_a_task_is_learned_step_by_step_as_the_trainer_of_transformers_learns_it(
    rows: Callable[[Task], list[str]], tmp_path: Path
) -> None:
    run, still = tmp_path / "run", ["--model.hidden_dropout_prob=0", "--model.attention_probs_dropout_prob=0"]
    constant = ["--optim.schedule=constant", "--optim.warmup_steps=0", "--optim.weight_decay=0.1", "--optim.lr=3e-3"]
    arguments = command(TASKS[0], run, rows, "--max_steps", "12", *still, *constant)
    assert main(arguments) == 0
    config = parse(arguments)
    objective, recipe = choose_objective(config)
    data = open_data(config, recipe)
    model = build(choose_model(config, objective, data), objective.auto_class, config.seed)
    batches = [batch["tensors"] for batch in islice(data.train_dataloader(), 12)]
    data.teardown("fit")
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path / "theirs"),
        per_device_train_batch_size=config.batch_size,
        max_steps=len(batches),
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        adam_beta2=config.optim.beta2,
        weight_decay=0.1,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    examples = [
        {name: tensor[n] if name != "labels" else tensor[n, 0] for name, tensor in batch.items()}
        for batch in batches
        for n in range(config.batch_size)
    ]
    losses: list[float] = []
    model.register_forward_hook(lambda _, inputs, outputs: losses.append(outputs.loss.item()))
    transformers.Trainer(model, settings, train_dataset=examples).train()  # type: ignore[arg-type]
    assert losses == pytest.approx(losses_of(run), rel=1e-5)


@pytest.mark.parametrize("task", [task for task in TASKS if task.name in RESUMED], ids=str)
def test_a_task_that_is_stopped_and_resumed_is_the_whole_one_bit_for_bit(
    task: Task, rows: Callable[[Task], list[str]], tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(command(task, whole, rows, "--max_steps", "20")) == 0
    assert main(command(task, parts, rows, "--max_steps", "20", "--stop_after", "7steps")) == 75
    assert main(command(task, parts, rows, "--max_steps", "20")) == 0
    assert losses_of(parts) == losses_of(whole)
    weights, resumed = (load_file(run / "export/model.safetensors") for run in (whole, parts))
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def without_dropout(task: Task, run: Path, rows: Callable[[Task], list[str]], *more: str) -> list[str]:
    """The command line of six steps in which nothing is drawn."""
    still = {
        "--lora": "lora.dropout model.hidden_dropout_prob model.attention_probs_dropout_prob",
        "llama": "",
        "bert": "model.hidden_dropout_prob model.attention_probs_dropout_prob",
        "": "model.dropout_rate",
    }
    kind = next(kind for kind in still if kind in task.flags)
    return command(task, run, rows, *(f"--{name}=0" for name in still[kind].split()), "--max_steps", "6", *more)


@pytest.fixture(scope="module")
def alone(rows: Callable[[Task], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Task], Path]:
    """A task's run on one process, made once."""

    @functools.cache
    def run_of(task: Task) -> Path:
        run = tmp_path_factory.mktemp(str(task)) / "run"
        done = train_forked(without_dropout(task, run, rows), run.with_name("log"))
        assert done.returncode == 0, done.stdout
        return run

    return run_of


@pytest.mark.parametrize(
    ("task", "strategy"),
    [
        (TASKS[0], "ddp"),
        *(pytest.param(task, "fsdp", marks=pytest.mark.slow) for task in TASKS),
        *(pytest.param(TASKS[-1], name, marks=pytest.mark.slow) for name in ("ddp", "deepspeed_2", "deepspeed_3")),
    ],
    ids=str,
)
def test_two_processes_learn_a_task_as_one_does(
    task: Task, strategy: str, rows: Callable[[Task], list[str]], alone: Callable[[Task], Path], tmp_path: Path
) -> None:
    one, two = alone(task), tmp_path / "two"
    flags = ["--strategy", strategy, "--devices", "2"]
    done = train_forked(without_dropout(task, two, rows, *flags), tmp_path / "log")
    assert done.returncode == 0, done.stdout
    assert digests_of(two) == digests_of(one)
    assert losses_of(two) == pytest.approx(losses_of(one), abs=1e-5)
    scores = [[row[name] for row in rows_of(run) for name in row if name.startswith("val/")] for run in (one, two)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-4, nan_ok=True)


def test_the_best_checkpoint_is_exported(rows: Callable[[Task], list[str]], tmp_path: Path) -> None:
    run, task = tmp_path / "run", TASKS[0]
    rising = ["--optim.schedule", "constant", "--checkpoint.best_metric", "val/loss", "--checkpoint.best_is", "highest"]
    assert main(command(task, run, rows, "--max_steps", "12", *rising)) == 0
    best = max(val_of(run).items(), key=lambda item: (item[1], item[0]))[0]
    assert (run / f"checkpoints/step-{best:06d}").is_dir()
    assert f" {best} optimizer steps" in (run / "export/README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--objective", "classification", "--data.pair_field"], "--data.pair_field needs a value"),
        ([], "sslm finetune: no --objective is given; choose one of classification, regression"),
        (["--objective", "masked_lm"], "sslm finetune: --objective masked_lm: is for pretraining (sslm train)"),
        (["--objective", "ner"], "--objective ner: there is no such objective (did you mean tagging?)"),
    ],
)
def test_finetune_is_for_labelled_rows(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sslm(["finetune", *arguments]) == 2
    assert said in capsys.readouterr().err
