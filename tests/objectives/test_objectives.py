"""Every objective, end to end: trained from the command line, resumed, exported, restored elsewhere."""

import functools
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sslm.cli.parse import parse
from sslm.config.batch_sizes import BatchSizes
from sslm.data.stream import batches
from sslm.objectives import PRETRAINING
from sslm.objectives.choose import choose_objective, open_data
from sslm.train import main
from tests.support import exact_gradients
from tests.support.exact_gradients import gradients
from tests.support.objectives import CASES, ENCODER, T5, Case
from tests.support.processes import run_command, train_forked
from tests.support.runs import SMALL_RUN, losses_of, rows_of, val_of

each_but_variants_slow = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case.name else ()) for case in CASES], ids=str
)


@pytest.fixture(scope="module")
def small_run(tiny: list[str]) -> list[str]:
    """Command line of a run of eight steps without a model."""
    return [*SMALL_RUN, *tiny[tiny.index("--data.train") :]]


def command(case: Case, run: Path, small_run: list[str], *more: str) -> list[str]:
    return [*small_run, "--objective", case.objective, *case.flags.split(), "--run_dir", str(run), *more]


def test_every_objective_is_tried_here() -> None:
    assert {case.objective for case in CASES} | {"causal_lm"} == set(PRETRAINING)


LOAD = """
import json, sys
import torch, transformers
assert not any(name.startswith("sslm") for name in sys.modules)
for line in open(sys.argv[1]):
    folder, auto_class, arrays = json.loads(line)
    model = getattr(transformers, auto_class).from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer), (model.config.vocab_size, len(tokenizer))
    inputs = {name: torch.tensor(values) for name, values in arrays.items()}
    long = tokenizer("word " * 1000, truncation=True, return_tensors="pt")
    assert 30 <= long.input_ids.shape[1] <= tokenizer.model_max_length <= 40, (folder, tokenizer.model_max_length)
    with torch.no_grad():
        model(**long, labels=long.input_ids)
        print(model(**inputs).loss.item())
"""


@pytest.fixture(scope="module")
def learned(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """A run of 30 steps of an objective, made once."""

    @functools.cache
    def run_of(case: Case) -> Path:
        run = tmp_path_factory.mktemp("learned") / "run"
        flags = "--max_steps 30 --optim.lr 1e-2 --val_every 30 --checkpoint.every_steps 30"
        assert main(command(case, run, small_run, *case.dropout.split(), *flags.split())) == 0
        return run

    return run_of


@each_but_variants_slow
def test_run_learns(case: Case, learned: Callable[[Case], Path], capsys: pytest.CaptureFixture[str]) -> None:
    run = learned(case)
    said = capsys.readouterr().out
    assert "Unigram loss" in said
    assert f"{case.auto_class}.from_pretrained" in said
    card = (run / "export/README.md").read_text()
    assert f"{case.auto_class}.from_pretrained" in card
    assert "Trained from scratch with sslm" in card
    first, last = val_of(run).values()
    assert last < first - 0.2
    row = [row for row in rows_of(run) if "val/loss" in row][-1]
    assert f"val/{case.metric}" in row
    assert 0 <= row["val/accuracy"] <= 1


@pytest.mark.parametrize("variants", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exports_give_the_same_loss_without_sslm(
    variants: bool, learned: Callable[[Case], Path], small_run: list[str], tmp_path: Path
) -> None:
    """But for those with a mask that transformers alone has not, or labels that it would shift."""
    apart = [case for case in CASES if "document_mask" in case.flags or case.name == "token_order-decoder"]
    cases = [case for case in CASES if bool(case.name) == variants and case not in apart]
    losses = []
    with open(tmp_path / "exports.jsonl", "w") as stream:
        for case in cases:
            loss, arrays = held_out(case, learned(case), small_run)
            losses.append(loss)
            print(json.dumps([str(learned(case) / "export"), case.auto_class, arrays]), file=stream)
    done = run_command(["-c", LOAD, str(tmp_path / "exports.jsonl")])
    assert done.returncode == 0, done.stderr
    assert list(map(float, done.stdout.split())) == pytest.approx(losses, abs=1e-5)
    assert len(cases) > 1


def held_out(case: Case, run: Path, small_run: list[str]) -> tuple[float, dict[str, Any]]:
    """Of the run's first held-out batch: our network's mean loss with the exported weights, and the arrays."""
    import transformers

    from sslm.cli.parse import parse
    from sslm.models.head import LanguageModel
    from sslm.objectives.choose import choose_objective, open_data

    config = parse(command(case, run, small_run))
    _, recipe = choose_objective(config)
    data = open_data(config, recipe)
    batch = next(iter(data.val_dataloader()))["tensors"]
    data.teardown("fit")
    model = getattr(transformers, case.auto_class).from_pretrained(run / "export").eval()
    with torch.no_grad():
        loss = LanguageModel(model, data.max_scored)(**batch).sum() / (batch["labels"] >= 0).sum()
    return loss.item(), {name: tensor.tolist() for name, tensor in batch.items()}


@pytest.mark.parametrize("case", [case for case in CASES if case.dropout and not case.name], ids=str)
def test_resumed_run_is_the_uninterrupted_one_bit_for_bit_with_dropout(
    case: Case, small_run: list[str], tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(command(case, whole, small_run)) == 0
    assert main(command(case, parts, small_run, "--stop_after", "3steps")) == 75
    assert main(command(case, parts, small_run)) == 0
    assert losses_of(parts) == losses_of(whole)
    weights, resumed = (load_file(run / "export/model.safetensors") for run in (whole, parts))
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--objective maskd_lm", ["maskd_lm", "masked_lm"]),
        ("--objective masked_lm --objective.ratio x", ["--objective.ratio x: expected a number"]),
        ("--objective masked_lm --objective.unit words", ["--objective.unit words: expected one of token, word"]),
        ("--objective masked_lm --objective.rato 0.3", ["--objective.rato", "ratio"]),
        ("--objective masked_lm --model.model_type llama", ["llama: has no model for this objective", "bert"]),
        ("--objective masked_lm --model.model_type bart", ["bart: has no model for this objective", "bert"]),
        ("--objective span_corruption --model.model_type bert", ["bert: has no model for this objective", "t5"]),
        ("--objective span_corruption --data.document_mask true", ["--data.document_mask true", "SpanCorruption"]),
        ("--objective causal_lm --objective.ratio 0.3", ["--objective.ratio", "no other one either"]),
    ],
)
def test_what_does_not_fit_gets_a_sentence(
    flags: str, says: list[str], small_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*small_run, *flags.split(), "--run_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in says), error
    assert not (tmp_path / "run").exists()


def test_a_pretrained_model_without_one_for_the_objective_gets_a_sentence(
    small_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import BartConfig

    BartConfig(vocab_size=1024).save_pretrained(tmp_path / "bart")
    flags = f"--objective masked_lm --model.pretrained {tmp_path / 'bart'} --run_dir {tmp_path / 'run'}"
    assert main([*small_run, *flags.split()]) == 2
    assert f"{tmp_path / 'bart'}: bart has no model for this objective (Auto" in capsys.readouterr().err


def differ(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference, beside the largest gradient."""
    assert ours.keys() == theirs.keys()
    largest = max(gradient.abs().max().item() for gradient in theirs.values())
    assert largest > 1e-6
    return max((ours[name] - theirs[name]).abs().max().item() for name in theirs) / largest


@pytest.mark.parametrize("objective", PRETRAINING)
def test_gradients_of_micro_batches_are_those_of_the_whole_batch(objective: str, text: Path, cache: Path) -> None:
    whole = gradients(objective, str(text), str(cache), None)
    for size in (1, 2):
        assert differ(gradients(objective, str(text), str(cache), size), whole) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("objective", PRETRAINING)
def test_gradients_of_two_ranks_are_those_of_the_whole_batch(
    objective: str, text: Path, cache: Path, tmp_path: Path
) -> None:
    arguments = [objective, str(text), str(cache), str(tmp_path / "gradients")]
    done = train_forked(arguments, tmp_path / "log", 2, verb=exact_gradients.main)
    assert done.returncode == 0, done.stdout
    assert differ(torch.load(tmp_path / "gradients"), gradients(objective, str(text), str(cache), None)) < 1e-9


@pytest.mark.parametrize("case", CASES, ids=str)
def test_batches_made_together_are_those_made_one_by_one(
    case: Case, text: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--data.train", str(text), "--data.cache_dir", str(cache), "--data.tokenizer", "bpe:512"]
    config = parse([*flags, "--objective", case.objective, *case.flags.split(), "--seq_len", "32"])
    data = open_data(config, choose_objective(config)[1])
    together = data._train_steps_of(BatchSizes.even(8), rank=1, world=2, substitute=False)
    alone = pickle.loads(pickle.dumps(together))  # as workers get it
    for step in (0, 1, 2, 70, 71, 1, 200):
        monkeypatch.setattr(batches, "TOKENS_AT_ONCE", 1 << 16)
        made = together[step]
        monkeypatch.setattr(batches, "TOKENS_AT_ONCE", 1)
        expected = alone[step]
        assert made["positions"].tolist() == expected["positions"].tolist() == list(range(8 * step + 4, 8 * step + 8))
        for name, array in expected["tensors"].items():
            assert np.array_equal(made["tensors"][name], array), (step, name)


def test_a_model_goes_on_with_the_corpus_it_was_made_on_and_gets_the_tokens_it_lacks(
    small_run: list[str], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    from sslm.cli.prepare import main as prepare

    corpus = str(tmp_path / "corpus")
    assert prepare([str(text), "--out", corpus, "--tokenizer", "bpe:500"]) == 0
    flags = [*small_run, "--data.train", corpus, "--max_steps", "2"]
    flags = [flag for n, flag in enumerate(flags) if "--data.tokenizer" not in (flag, flags[n - 1])]
    flags = [flag for n, flag in enumerate(flags) if "--data.document_separator" not in (flag, flags[n - 1])]
    first, second = tmp_path / "first", tmp_path / "second"
    t5 = ["--objective", "span_corruption", *T5.split()]
    assert main([*flags, *t5, "--run_dir", str(first)]) == 0
    few = AutoTokenizer.from_pretrained(first / "export")
    assert "another tokenizer" not in capsys.readouterr().out
    more = ["--objective", "span_corruption", "--model.pretrained", str(first), "--seq_len", "96"]
    assert main([*flags, *more, "--run_dir", str(second)]) == 0
    many = AutoTokenizer.from_pretrained(second / "export")
    sentinels = [sum(token.startswith("<extra_id_") for token in tokenizer.get_vocab()) for tokenizer in (few, many)]
    assert sentinels == [2, 5]
    said = capsys.readouterr().out
    assert "another tokenizer" not in said  # what was appended is no other
    assert f"{len(many) - len(few)} rows of the vocabulary" not in said  # rounded up to 64
    assert all(many.get_vocab()[token] == n for token, n in few.get_vocab().items())
    assert (few.model_max_length, many.model_max_length) == (32, 96)
    assert f"Continued from `{first}` with sslm" in (second / "export/README.md").read_text()
    assert json.loads((second / "export/config.json").read_text())["vocab_size"] == len(many)


def test_roberta_has_the_positions_that_it_needs(small_run: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = [
        "--objective",
        "masked_lm",
        "--model.model_type",
        "roberta",
        *ENCODER.split(),
        "--data.packing",
        "best_fit",
    ]
    assert main([*small_run, *flags, "--max_steps", "2", "--run_dir", str(run)]) == 0
    config = json.loads((run / "export/config.json").read_text())
    pad = config["pad_token_id"] or 0
    assert config["max_position_embeddings"] >= 32 + pad + 1
