"""The same sequence of global batches on any number of processes, workers and micro-batches, stopped anywhere: with a
mixture whose weights change, batches that grow, packing, documents kept apart, and epochs that end on the way."""

from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from sslm.config import DataConfig, SourceConfig
from sslm.data.module import DataModule
from sslm.objectives.causal_lm import CausalLMRecipe
from tests.support.processes import Finished, train_forked
from tests.support.runs import TINY, TrainTiny, digests_of, losses_of, rows_of

GROWS = "4, 8 from 1000 tokens, 12 from 3500 tokens"
"""Eight steps of 4, in the ninth of which the weights change, ten of 8, and then 12."""


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> list[str]:
    """Command line of a run of 24 steps over three sources, the smallest of which is read twice and more."""
    folder = tmp_path_factory.mktemp("mixture")
    names = sorted(topics)
    for name, some, size in (
        ("large", names[:30], 99_999),
        ("middle", names[30:45], 30_000),
        ("small", names[45:50], 1_800),
    ):
        (folder / f"{name}.txt").write_text("\n---\n".join(topics[topic] for topic in some)[:size])
    sources = ", ".join(f"{{path: {folder}/{name}.txt, weight: size^0.5}}" for name in ("large", "middle", "small"))
    return [
        *TINY,
        "--data.sources",
        f"[{sources}]",
        "--data.stages",
        "[{at_tokens: 1500, weights: {large: 1, small: 2}}]",
        "--data.document_separator",
        "\n---\n",
        "--data.packing",
        "best_fit",
        "--data.document_mask",
        "true",
        "--data.cache_dir",
        str(cache),
        "--batch_size",
        GROWS,
        "--max_steps",
        "24",
        "--val_every",
        "12",
    ]


def start(mixture: list[str], run: Path, *flags: str) -> Finished:
    return train_forked([*mixture, "--run_dir", str(run), *flags], run.with_name(f"{run.name}.log"))


def train(mixture: list[str], run: Path, *flags: str) -> int:
    done = start(mixture, run, *flags)
    assert done.returncode in (0, 75), done.stdout
    return done.returncode


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, mixture: list[str]) -> Path:
    run = tmp_path_factory.mktemp("straight") / "run"
    train(mixture, run)
    assert len(set(digests_of(run))) == 24
    return run


def test_each_source_is_told_apart_in_the_metrics(straight: Path) -> None:
    rows = [row for row in rows_of(straight) if "train/loss" in row]
    last = rows[-1]
    tokens = [last[f"tokens/{name}"] for name in ("large", "middle", "small")]
    assert sum(tokens) == last["tokens"] == (8 * 4 + 10 * 8 + 6 * 12) * 32
    assert last["epochs/small"] > 1
    middle = [row["tokens/middle"] for row in rows]
    changed = 8 + -(-(1500 - 8 * 4 * 32) // (8 * 32))
    assert middle[changed] == middle[-1]  # its weight is 0 in the second stage
    assert middle[0] < middle[changed - 1]
    assert all(f"train/loss/{name}" in row for row in rows[changed:] for name in ("large", "small"))
    assert not any("train/loss/middle" in row for row in rows[changed:])
    validated = [row for row in rows_of(straight) if "val/loss" in row]
    assert {"val/loss/large", "val/loss/middle", "val/loss/small"} <= validated[0].keys()


@pytest.mark.slow
def test_stopped_and_resumed_with_other_workers_and_micro_batch(
    mixture: list[str], straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert train(mixture, run, "--stop_after", "7steps", "--data.num_workers", "2") == 75
    assert train(mixture, run, "--stop_after", "9steps", "--micro_batch_size", "1") == 75
    assert train(mixture, run) == 0
    assert digests_of(run) == digests_of(straight)
    assert losses_of(run) == pytest.approx(losses_of(straight), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "worlds"), [("ddp", (2, 4, 1)), ("fsdp", (1, 4, 2))])
def test_stopped_and_resumed_on_other_numbers_of_processes(
    mixture: list[str], straight: Path, tmp_path: Path, strategy: str, worlds: tuple[int, ...]
) -> None:
    run = tmp_path / "run"
    for part, world in enumerate(worlds):
        flags = ["--devices", str(world), "--strategy", strategy if world > 1 else "single"]
        assert train(mixture, run, *flags, *(["--stop_after", "8steps"] if part < 2 else [])) == (75 if part < 2 else 0)
    assert digests_of(run) == digests_of(straight)
    assert losses_of(run) == pytest.approx(losses_of(straight), abs=1e-5)


SHORT_AT_FIRST = ["--seq_len", "8, 32 from 1000 tokens", "--batch_size", "4, 8 from 1500 tokens", "--max_steps", "14"]
"""Eight steps of 16 sequences of 8 tokens, four of 4 of 32 tokens, and two of 8 of them."""


def test_sequences_that_are_short_at_first_go_on_in_the_middle_of_a_stage_and_at_its_edge(
    train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    flags = [*SHORT_AT_FIRST, "--micro_batch_size", "2", "--model.attention_dropout", "0.1"]
    assert train_tiny(straight, *flags) == 0
    said = capsys.readouterr().out
    assert "Before 1k tokens: each is cut into 4 of 8\n" in said
    assert "16 sequences of 8 tokens (4 of 32 tokens from step 9, 8 of 32 tokens from step 13)" in said
    for steps in ("3steps", "5steps", "2steps"):
        assert train_tiny(stopped, *flags, "--stop_after", steps) == 75
    assert train_tiny(stopped, *flags) == 0
    assert digests_of(stopped) == digests_of(straight)
    assert losses_of(stopped) == losses_of(straight)
    rows = [row for row in rows_of(straight) if "train/loss" in row]
    assert [row["tokens"] for row in rows] == [*range(128, 12 * 128 + 1, 128), 14 * 128, 16 * 128]
    spent = np.diff([row["flops"] for row in rows[:12]])
    assert len(set(spent[:6])) == len(set(spent[7:])) == 1
    assert spent[0] < spent[-1]  # each token attends to fewer


@pytest.mark.slow
def test_short_sequences_at_first_are_those_of_one_process_on_several(
    tiny: list[str], train_tiny: TrainTiny, tmp_path: Path
) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert train_tiny(straight, *SHORT_AT_FIRST) == 0
    for strategy, steps in (("ddp", "6steps"), ("fsdp", "4steps")):
        train([*tiny, *SHORT_AT_FIRST], run, "--strategy", strategy, "--devices", "2", "--stop_after", steps)
    assert train_tiny(run, *SHORT_AT_FIRST, "--micro_batch_size", "1") == 0
    assert digests_of(run) == digests_of(straight)
    assert losses_of(run) == pytest.approx(losses_of(straight), abs=1e-6)


NOISE = "crop 0.1, join 0.2, lowercase 0.1, typos 0.1, ocr 0.05, token_dropout 0.1, token_swap 0.1, token_insert 0.05"


def test_noisy_text_is_the_same_when_a_run_goes_on_with_other_workers_and_micro_batches(
    tiny: list[str], train_tiny: TrainTiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    flags = ["--data.augment", NOISE]
    assert train_tiny(straight, *flags) == 0
    assert f"Noise: {NOISE}; in training alone\n" in capsys.readouterr().out
    assert train([*tiny, *flags], stopped, "--stop_after", "3steps", "--data.num_workers", "1") == 75
    assert train_tiny(stopped, "--data.augment", NOISE.replace("ocr 0.05, ", "")) == 2
    assert "data.augment (was " in capsys.readouterr().err
    assert train_tiny(stopped, *flags, "--micro_batch_size", "1") == 0
    assert digests_of(stopped) == digests_of(straight)


@pytest.mark.slow
def test_noisy_text_is_that_of_one_process_on_several(tiny: list[str], train_tiny: TrainTiny, tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    flags = ["--data.augment", NOISE]
    assert train_tiny(straight, *flags) == 0
    train([*tiny, *flags], run, "--strategy", "fsdp", "--devices", "2", "--stop_after", "4steps")
    assert train_tiny(run, *flags) == 0
    assert digests_of(run) == digests_of(straight)


def test_other_sources_weights_or_packing_are_another_run(mixture: list[str], straight: Path) -> None:
    given = mixture[mixture.index("--data.sources") + 1]
    for flags in (
        ["--data.sources", f"{given[:-1]}, {{path: embedded, weight: size^0.5}}]"],
        ["--data.packing", "concat"],
        ["--data.stages", "[{at_tokens: 9000, weights: {large: 1}}]"],
    ):
        done = start(mixture, straight, *flags, "--max_steps", "30")
        assert done.returncode == 2
        [error] = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
        assert flags[0].removeprefix("--") in error
        assert done.stdout.endswith(f"{error}\n")


def test_source_of_weight_nothing_is_not_read(text: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(topics["integers"] * 9)
    sources = [
        SourceConfig(str(text), weight=1, name="read"),
        SourceConfig(str(tmp_path / "other.txt"), weight=0, name="not"),
    ]
    data = DataModule(
        DataConfig(sources=sources, tokenizer="bpe:512", cache_dir=str(cache), val_sequences=20),
        CausalLMRecipe(),
        seq_len=32,
        batch_size=4,
        total_steps=30,
    )
    data.setup()
    assert {int(source) for batch in data.train_dataloader() for source in batch["sources"]} == {0}
    assert set(data.held_out.places.sources.tolist()) == {0}
    assert data.train_stream.seen(120) == {
        "read": (120, pytest.approx(120 / data.train_stream.sources[0].num_windows)),
        "not": (0, 0),
    }
