"""Losses and gradients out of the ordinary are found, left out, and gone back behind when they persist, the same way
on any number of processes and however often the run is killed.

What is broken here is real: a model whose embedding of one token is not a number, a corpus in which that token stands
in some windows, and windows of a token that the model has never seen.
"""

import hashlib
import json
import math
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from sslm.cli.prepare import main as prepare
from sslm.config import AnomalyConfig, DataConfig
from sslm.config.batch_sizes import BatchSizes
from sslm.data.corpus.shards import Corpus
from sslm.data.module import DataModule
from sslm.data.stream.amendments import Amendment, Skip
from sslm.data.stream.batches import TrainSteps, step_batch, with_tensors
from sslm.objectives.causal_lm import CausalLMRecipe
from sslm.runs.checkpoints.folder import newest_first
from sslm.train import main
from sslm.training.anomalies import FEWEST, LAG, Anomaly, AnomalyDetector
from tests.support.processes import Ranks, train_forked
from tests.support.runs import SMALL_RUN, TINY, TrainTiny, losses_of, rows_of, tensors_of, val_of, wait_for_rows
from tests.support.streams import make_corpus, make_stream

BATCH = 4
STRANGE = 511
"""A token that stands nowhere but in windows that are spoilt; the last of the vocabulary."""

# ------------------------------------------------------------------------------------------------ the detector


def detector_of(spike_z: float | None = 12.0, steps: int = 60) -> AnomalyDetector:
    """One that has seen so many good steps."""
    detector, chance = AnomalyDetector(AnomalyConfig(spike_z=spike_z)), random.Random(0)
    for step in range(steps):
        assert take(detector, step, chance.gauss(3.0, 0.1), math.exp(chance.gauss(0.0, 0.2))) is None
    return detector


def take(
    detector: AnomalyDetector, step: int, loss: float, norm: float, begins_stage: bool = False, learns_all: bool = True
) -> Anomaly | None:
    """Take a step as a run does, and say what is then found, of this step or of the one LAG before it."""
    detector.judge(step, lambda: (loss, norm), begins_stage)
    if learns_all:
        detector.learn(before=step + 1)
    return detector.last


def test_what_is_far_above_the_last_steps_is_an_anomaly_and_what_is_below_is_not() -> None:
    for loss, norm, kind in (
        (4.8, 1.0, "loss spike, z "),
        (3.0, 500.0, "grad norm spike, z "),
        (float("nan"), 1.0, "loss is nan"),
        (3.0, float("inf"), "grad norm is inf"),
        (3.3, 2.0, None),
        (0.1, 1e-9, None),
        (3.0, 0.0, None),
    ):
        anomaly = take(detector_of(), 60, loss, norm)
        assert (anomaly is None) if kind is None else (anomaly is not None and anomaly.kind.startswith(kind))


def test_limits_are_where_the_host_finds_anomalies() -> None:
    """The device compares with the same two numbers."""
    limits = detector_of().judge(60, lambda: (0.0, 0.0))
    for beyond in (False, True):
        at_edge = [math.nextafter(limit, math.inf) if beyond else limit for limit in limits]
        for loss, norm in ((at_edge[0], 1.0), (3.0, at_edge[1])):
            assert (take(detector_of(), 60, loss, norm) is not None) == beyond


def test_few_steps_are_no_ground_for_a_spike() -> None:
    steps = FEWEST + LAG - 1  # the last that are known when a step is judged are LAG before it
    assert take(detector_of(steps=steps - 1), steps - 1, 99.0, 1.0) is None
    assert take(detector_of(steps=steps), steps, 99.0, 1.0) is not None
    assert take(detector_of(None), 60, 99.0, 1.0) is None
    assert take(AnomalyDetector(AnomalyConfig(spike_z=None)), 0, float("nan"), 1.0) is not None


def test_anomalies_are_not_remembered_and_the_state_passes_through_json() -> None:
    detector, other = detector_of(), AnomalyDetector(AnomalyConfig())
    before = detector.state()
    assert take(detector, 60, 99.0, 1.0) is not None
    assert detector.state() == before
    other.load(json.loads(json.dumps(before)))
    for one in (detector, other):  # the step comes again
        one.news.clear()
        for n in range(60, 80):
            take(one, n + (one is detector), 3.7 + (n - 60) / 10, 1.0)
    assert [kind for _, kind, *_ in detector.news] == [kind for _, kind, *_ in other.news] != []


@given(
    st.lists(st.sampled_from([(3.0, 1.0), (3.1, 1.1), (9.0, 1.0), (math.nan, 1.0)]), min_size=8, max_size=60),
    st.lists(st.booleans(), min_size=60, max_size=60),
    st.sets(st.integers(0, 100), max_size=3),
)
def test_what_is_found_does_not_depend_on_when_the_host_learns_of_it(
    outcomes: list[tuple[float, float]], learns: list[bool], stages: set[int]
) -> None:
    """Nor on checkpoints in between, after which a streak's steps come again."""
    known = [(3.0 + step % 3 / 10, 1.0) for step in range(45)]
    straight, other = (AnomalyDetector(AnomalyConfig(action="skip")) for _ in range(2))
    found: dict[int, str] = {}
    for step, (loss, norm) in enumerate(known + outcomes):
        take(straight, step, loss, norm, step in stages, learns_all=False)
    straight.learn(before=len(known + outcomes))
    step = 0
    while step < len(known + outcomes):
        stops = step >= len(known) and learns[step - len(known)]
        take(other, step, *(known + outcomes)[step], begins_stage=step in stages, learns_all=stops)
        step += 1
        if stops:
            learns[step - 1 - len(known)] = False
            found |= {one.step: one.kind for one in other.news}
            state, step = json.loads(json.dumps(other.state())), step - other.streak
            other = AnomalyDetector(AnomalyConfig(action="skip"))
            other.load(state)
    other.learn(before=step)
    found |= {one.step: one.kind for one in other.news}
    assert found == {one.step: one.kind for one in straight.news}
    assert other.state() == straight.state()


def test_steps_of_another_mixture_are_no_measure() -> None:
    assert take(detector_of(), 60, 9.0, 1.0, begins_stage=True) is None
    detector = detector_of()
    take(detector, 60, 9.0, 1.0, begins_stage=True, learns_all=False)
    for step in range(61, 61 + FEWEST + LAG - 1):
        assert take(detector, step, 9.0 + step % 3 / 10, 1.0, learns_all=False) is None
    assert take(detector, 61 + FEWEST + LAG, 12.0, 1.0) is not None
    assert detector.last is not None
    assert detector.last.kind.startswith("loss spike")


# ------------------------------------------------------------------------------------------------ the stream


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("shards") / "c", [[400], [400], [400]])


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=4))
def test_skips_take_examples_out_of_the_sequence_one_after_another(
    shards: Corpus, skips: list[tuple[int, int]]
) -> None:
    stream, sequence = make_stream(shards), list(range(200))
    for first, num in skips:
        stream.amend(Skip(first, num, "test"))
        del sequence[first : first + num]
    assert stream.unskipped(np.arange(100)).tolist() == sequence[:100]
    assert stream.skipped_at(0, 100) == sum(num for _, num in skips)
    tokens = make_stream(shards).at(np.array(sequence[:100])).tokens
    assert (stream.at(np.arange(100)).tokens == tokens).all()


def test_bad_shards_and_skips_go_by_the_positions_of_the_run(shards: Corpus) -> None:
    stream, bad = make_stream(shards), Amendment(30, "a", "train-00001.bin", "bit rot")
    stream.amend(bad)
    before = stream.at(np.arange(90)).tokens
    stream.amend(Skip(50, 12, "test"))
    after = stream.at(np.arange(78)).tokens
    assert (after[:50] == before[:50]).all()
    assert (after[50:] == before[62:]).all()  # read in the place of the bad shard too
    earlier = make_stream(shards)
    earlier.amend(bad)
    earlier.amend(Skip(10, 12, "test"))
    tokens = earlier.at(np.arange(78)).tokens
    plain = make_stream(shards).at(np.arange(90)).tokens
    assert (tokens[10:30] == plain[22:42]).all()  # before position 30 of the run the shard was still read
    assert not ((tokens[30:] >= 400) & (tokens[30:] < 800)).any()


@pytest.mark.parametrize("world", [2, 4])
def test_batches_after_a_skip_are_the_same_on_any_number_of_ranks(shards: Corpus, world: int) -> None:
    stream = make_stream(shards)
    stream.amend(Skip(20, 8, "test"))

    def digest(world: int, step: int) -> int:
        steps = [TrainSteps(stream, CausalLMRecipe(), BatchSizes.even(4), 0, rank, world) for rank in range(world)]
        return sum(step_batch(with_tensors(one[step]), 1, with_digest=True)["digest"] for one in steps) % (1 << 64)

    digests = [digest(world, step) for step in range(12)]
    assert digests == [digest(1, step) for step in range(12)]
    assert len(set(digests)) == 12


def test_where_a_mixture_changes_is_known_though_examples_were_skipped(shards: Corpus, tmp_path: Path) -> None:
    stream = make_stream(shards, make_corpus(tmp_path / "d", [[400]]), weights=[(0, (1, 1)), (40, (1, 3))])
    assert [stream.begins_stage(n, n + 4) for n in (32, 36, 40, 44)] == [False, False, True, False]
    stream.amend(Skip(20, 8, "test"))
    assert [stream.begins_stage(n, n + 4) for n in (28, 32, 36, 40)] == [False, True, False, False]
    stream.amend(Skip(28, 8, "test"))  # over the edge
    assert [stream.begins_stage(n, n + 4) for n in (24, 28, 32)] == [False, True, False]


# ------------------------------------------------------------------------------------------------ runs

Spoil = Callable[..., list[str]]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A prepared corpus without the strange token."""
    corpus = tmp_path_factory.mktemp("sound") / "corpus"
    assert prepare([str(text), "--out", str(corpus), "--tokenizer", "bpe:512"]) == 0
    return corpus


def rewrite(corpus: Path, change: Callable[[np.ndarray[Any, Any]], None]) -> None:
    """Change the tokens of a corpus of one shard."""
    index = json.loads((corpus / "index.json").read_text())
    [shard] = [shard for shard in index["shards"] if shard["split"] == "train"]
    tokens = np.fromfile(corpus / shard["file"], np.uint16)
    change(tokens)
    tokens.tofile(corpus / shard["file"])
    shard["sha256"] = hashlib.sha256(tokens.tobytes()).hexdigest()
    (corpus / "index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def spoil(tmp_path_factory: pytest.TempPathFactory, sound: Path) -> Spoil:
    """spoil(positions, all_of_it) -> flags of a run whose examples at these positions hold the strange token."""

    def spoilt(positions: Sequence[int], all_of_it: bool = False) -> list[str]:
        folder = tmp_path_factory.mktemp("spoilt")
        corpus = shutil.copytree(sound, folder / "corpus")
        flags = ["--data.train", str(corpus), "--data.cache_dir", str(folder / "cache")]
        data = DataModule(
            DataConfig(train=str(corpus), cache_dir=str(folder / "cache")),
            CausalLMRecipe(),
            seq_len=32,
            batch_size=BATCH,
            total_steps=60,
        )
        data.setup()
        places = data.train_stream.places(np.array(positions, np.int64))
        [region] = data.train_stream.sources[0].regions

        def change(tokens: np.ndarray[Any, Any]) -> None:
            tokens[tokens == STRANGE] = STRANGE - 1
            for start in (region.start + places.windows * 32).tolist():
                tokens[start + 1 : start + 33] = STRANGE if all_of_it else tokens[start + 1 : start + 33]
                tokens[start + 16] = STRANGE

        rewrite(corpus, change)
        return flags

    return spoilt


def of_steps(*steps: int) -> list[int]:
    """Positions of the examples of some steps, numbered from 1 as in metrics.jsonl."""
    return [position for step in steps for position in range((step - 1) * BATCH, step * BATCH)]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, sound: Path) -> list[str]:
    """Flags of a run that begins with a model for which the strange token is not a number."""
    folder = tmp_path_factory.mktemp("broken")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_dropout=0.1,
        )
    )
    with torch.no_grad():
        model.get_input_embeddings().weight[STRANGE] = float("nan")
    model.save_pretrained(folder)
    shutil.copytree(sound / "tokenizer", folder, dirs_exist_ok=True)
    return [*SMALL_RUN[2:], "--model.pretrained", str(folder), "--checkpoint.keep_last", "3"]


def anomalies_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "anomalies.jsonl").read_text().splitlines()]


def steps_of(run: Path) -> list[int]:
    return [row["step"] for row in rows_of(run) if "lr" in row]


def train(run: Path, *flags: str) -> int:
    return main([*flags, "--run_dir", str(run)])


def test_update_is_left_out_and_nothing_else_changes(broken: list[str], spoil: Spoil, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = [*broken, *spoil([22]), "--checkpoint.every_steps", "1", "--log_every", "4", "--anomaly.action", "skip"]
    assert train(run, *flags, "--max_steps", "6") == 0
    [anomaly] = anomalies_of(run)
    assert (anomaly["step"], anomaly["positions"], anomaly["kind"], anomaly["action"]) == (
        6,
        [20, 24],
        "loss is nan",
        "skip",
    )
    assert len(anomaly["texts"]) == BATCH
    before, after = (tensors_of(run / f"checkpoints/step-00000{step}") for step in (5, 6))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].nan_to_num(7), after[name].nan_to_num(7)) for name in before)
    assert any("exp_avg" in name for name in before)
    [row] = [row for row in rows_of(run) if row["step"] == 6 and "lr" in row]  # which is no logged step
    assert row["anomaly"] == "loss is nan"
    assert math.isnan(row["train/loss"])


@pytest.fixture(scope="module")
def rewound(tmp_path_factory: pytest.TempPathFactory, broken: list[str], spoil: Spoil) -> tuple[Path, list[str]]:
    """A run that met an anomaly at step 6 and three in a row at steps 13 to 15, of which only the second device of two
    would know; and its flags."""
    run = tmp_path_factory.mktemp("rewound") / "run"
    flags = [*broken, *spoil([22, 51, 55, 59]), "--max_steps", "20"]
    assert train(run, *flags) == 0
    return run, flags


def test_when_it_persists_the_run_goes_back_and_leaves_those_examples_out(rewound: tuple[Path, list[str]]) -> None:
    run, _ = rewound
    assert [(one["step"], one["positions"][0], one["action"]) for one in anomalies_of(run)] == [
        (6, 20, "skip"),
        (13, 48, "skip"),
        (14, 52, "skip"),
        (15, 56, "rewind"),
    ]
    [amendment] = map(json.loads, (run / "amendments.jsonl").read_text().splitlines())
    assert (amendment["kind"], amendment["from_position"], amendment["num_positions"]) == ("skip", 48, 12)
    assert "steps 13 to 15" in amendment["reason"]
    assert json.loads((run / "checkpoints/step-000020/state.json").read_text())["amendments"] == [amendment]
    assert steps_of(run) == list(range(1, 21))
    assert {row["step"]: row["anomaly"] for row in rows_of(run) if "anomaly" in row} == {6: "loss is nan"}
    assert {row["step"]: row["skipped_positions"] for row in rows_of(run) if "skipped_positions" in row} == {13: 12}
    assert list(val_of(run)) == [0, 4, 8, 12, 16, 20]
    assert all(math.isfinite(loss) for loss in val_of(run).values())


def assert_same(run: Path, other: Path) -> None:
    """Bitwise."""
    for key in ("train/loss", "batch_digest", "anomaly", "skipped_positions", "grad_norm"):
        values = [[repr((row["step"], row[key])) for row in rows_of(one) if key in row] for one in (run, other)]
        assert values[0] == values[1], key
    assert val_of(run) == val_of(other)
    for name in ("export/model.safetensors", "anomalies.jsonl", "amendments.jsonl"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(
    "stops",
    [[14], *(pytest.param(stops, marks=pytest.mark.slow) for stops in ([12], [13], [15], [16], [6, 1, 6, 1, 1]))],
)
def test_stopped_anywhere_and_resumed_is_bitwise_the_uninterrupted_run(
    rewound: tuple[Path, list[str]], tmp_path: Path, stops: list[int]
) -> None:
    straight, flags = rewound
    flags = [*flags, "--checkpoint.keep_last", "1"]
    for steps in stops:
        assert train(tmp_path / "run", *flags, "--stop_after", f"{steps}steps") == 75
    assert train(tmp_path / "run", *flags) == 0
    assert_same(tmp_path / "run", straight)


def test_killed_when_it_had_just_been_written_down(rewound: tuple[Path, list[str]], tmp_path: Path) -> None:
    straight, flags = rewound
    run = tmp_path / "run"
    assert train(run, *flags, "--stop_after", "12steps") == 75
    shutil.copy(straight / "amendments.jsonl", run)
    shutil.copy(straight / "anomalies.jsonl", run)
    with open(run / "anomalies.jsonl", "a") as stream:
        stream.write('{"step": 15, "posit')
    assert train(run, *flags) == 0
    (run / "anomalies.jsonl").write_text((run / "anomalies.jsonl").read_text().removesuffix('{"step": 15, "posit'))
    assert_same(run, straight)


def test_anomaly_in_the_last_steps_of_a_run(broken: list[str], spoil: Spoil, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *broken, *spoil(of_steps(10, 11, 12)), "--max_steps", "12") == 0
    assert steps_of(run) == list(range(1, 13))
    assert not any("anomaly" in row for row in rows_of(run))
    assert newest_first(run / "checkpoints")[0].name == "step-000012"
    state = json.loads((run / "checkpoints/step-000012/state.json").read_text())
    assert [one["from_position"] for one in state["amendments"]] == [36]


def sentence_of(err: str) -> str:
    """The one that a run ended with. (transformers' bars are there too.)"""
    [said] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert err.endswith(said + "\n")
    assert "Traceback" not in err
    return said


def test_run_that_would_go_back_too_often_ends_with_a_sentence(
    broken: list[str], spoil: Spoil, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = [*broken, *spoil(of_steps(*range(6, 18))), "--max_steps", "20"]
    assert train(run, *flags, "--anomaly.max_rewinds", "2") == 1
    said = sentence_of(capsys.readouterr().err)
    for words in ("steps 6 to 8", "loss is nan", "after going back 2 times", "anomalies.jsonl", "--optim.lr"):
        assert words in said
    assert json.loads((run / "status.json").read_text())["exit_code"] == 1
    assert [one["positions"][0] for one in anomalies_of(run)] == list(range(20, 56, 4))
    assert train(run, *flags, "--anomaly.max_rewinds", "9") == 0  # which a run may change
    assert train(tmp_path / "straight", *flags, "--anomaly.max_rewinds", "9") == 0
    assert steps_of(run) == list(range(1, 21))
    assert_same(run, tmp_path / "straight")


def test_without_a_checkpoint_to_go_back_to_the_run_ends_with_a_sentence(
    broken: list[str], spoil: Spoil, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *broken, *spoil(of_steps(2, 3, 4))) == 1
    said = sentence_of(capsys.readouterr().err)
    assert "no earlier checkpoint" in said
    assert "--checkpoint.every_steps 1 " in said


def test_spikes_of_a_sound_model_are_found(spoil: Spoil, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = [
        *TINY,
        *spoil(of_steps(50, 51, 52), all_of_it=True),
        "--optim.lr",
        "2e-2",
        "--val_every",
        "60",
        "--checkpoint.every_steps",
        "20",
    ]
    assert train(run, *flags, "--max_steps", "60") == 0
    assert [one["step"] for one in anomalies_of(run)] == [50, 51, 52]
    assert all("spike, z " in one["kind"] for one in anomalies_of(run))
    assert steps_of(run) == list(range(1, 61))


def test_healthy_run_is_bitwise_what_it_is_when_nobody_looks(train_tiny: TrainTiny, tmp_path: Path) -> None:
    for name in ("rewind", "off"):
        assert train_tiny(tmp_path / name, "--anomaly.action", name, "--max_steps", "50", "--val_every", "50") == 0
    assert losses_of(tmp_path / "rewind") == losses_of(tmp_path / "off")
    weights = [(tmp_path / name / "export/model.safetensors").read_bytes() for name in ("rewind", "off")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "rewind/anomalies.jsonl").exists()


def test_search_for_a_loss_scale_is_no_anomaly(train_tiny: TrainTiny, tmp_path: Path) -> None:
    assert train_tiny(tmp_path / "run", "--precision", "16-mixed", "--robust.z_loss", "1e4", "--max_steps", "12") == 0
    norms = [row["grad_norm"] for row in rows_of(tmp_path / "run") if "grad_norm" in row]
    assert sum(not math.isfinite(norm) for norm in norms) > 3, "no scale was too large"
    assert not (tmp_path / "run/anomalies.jsonl").exists()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, broken: list[str], spoil: Spoil) -> tuple[Path, list[str]]:
    """A run like `rewound` of one process, without dropout; and its flags."""
    run = tmp_path_factory.mktemp("alone") / "run"
    flags = [*broken, *spoil([22, 51, 55, 59]), "--max_steps", "20", "--model.attention_dropout", "0"]
    assert train(run, *flags) == 0
    return run, flags


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ["--devices", "2", "--strategy", "ddp"],
        ["--devices", "2", "--strategy", "fsdp"],
        ["--data.num_workers", "2"],
        ["--micro_batch_size", "1"],
    ],
)
def test_runs_go_back_alike_on_any_number_of_processes(
    alone: tuple[Path, list[str]], tmp_path: Path, more: list[str]
) -> None:
    (run, flags), other_run = alone, tmp_path / "other"
    done = train_forked([*flags, *more, "--run_dir", str(other_run)], tmp_path / "log")
    assert done.returncode == 0, done.stdout
    one, other = map(rows_of, (run, other_run))
    digests = [[row.get("batch_digest") for row in rows] for rows in (one, other)]
    assert digests[0] == digests[1]
    assert (run / "amendments.jsonl").read_text() == (other_run / "amendments.jsonl").read_text()
    losses = [[loss for loss in losses_of(each) if math.isfinite(loss)] for each in (run, other_run)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    kept = ("step", "positions", "kind", "action", "texts")
    one, other = ([{key: entry[key] for key in kept} for entry in anomalies_of(each)] for each in (run, other_run))
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_processes_end_with_the_sentence_and_code_1(
    broken: list[str], spoil: Spoil, tmp_path: Path, strategy: str
) -> None:
    flags = [*broken, *spoil([22, 26, 30]), "--devices", "2", "--strategy", strategy, "--anomaly.max_rewinds", "0"]
    done = train_forked([*flags, "--run_dir", str(tmp_path / "run")], tmp_path / "log")
    assert done.returncode == 1
    [said] = {line for line in done.stdout.splitlines() if line.startswith("error: ")}
    assert "steps 6 to 8: loss is nan" in said
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "more"), [(4, []), (3, ["--devices", "2"])])
def test_killed_at_random_moments_of_going_back(
    broken: list[str], spoil: Spoil, tmp_path: Path, kills: int, more: list[str]
) -> None:
    flags = [*broken, *spoil(of_steps(7, 13, 14, 15, 16, 17, 18, 27, 28, 29)), "--max_steps", "32", *more]
    run, straight, chance = tmp_path / "run", tmp_path / "straight", random.Random(0)
    begin = [*flags, "--run_dir"]
    assert train_forked([*begin, str(straight)], tmp_path / "log").returncode == 0
    for _ in range(kills):
        rows = (run / "metrics.jsonl").read_bytes().count(b"\n") if (run / "metrics.jsonl").is_file() else 0
        ranks = Ranks([*begin, str(run)], tmp_path / "log")
        wait_for_rows(run, rows + chance.randint(0, 30 // kills), ranks)
        time.sleep(chance.random() * 0.1)
        ranks.signal(signal.SIGKILL)
        ranks.wait()
    assert train_forked([*begin, str(run)], tmp_path / "log").returncode == 0
    assert len(rows_of(straight)) > 32
    assert (straight / "amendments.jsonl").read_text().count("\n") == 3
    assert_same(run, straight)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["deepspeed_2", "deepspeed_3"])
def test_deepspeed_which_can_withhold_nothing_goes_back_at_once(
    broken: list[str], spoil: Spoil, tmp_path: Path, strategy: str
) -> None:
    pytest.importorskip("deepspeed")
    run = tmp_path / "run"
    flags = [*broken, *spoil([22, 59]), "--devices", "2", "--strategy", strategy, "--max_steps", "20"]
    done = train_forked([*flags, "--run_dir", str(run)], tmp_path / "log")
    assert done.returncode == 0, done.stdout
    amendments = [json.loads(line) for line in (run / "amendments.jsonl").read_text().splitlines()]
    assert [(one["from_position"], one["num_positions"]) for one in amendments] == [(20, 4), (52, 4)]
    assert steps_of(run) == list(range(1, 21))
    assert all(math.isfinite(loss) for loss in losses_of(run))
