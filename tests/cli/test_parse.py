"""Settings: where each comes from, what the flags are called, that every YAML in configs/ builds."""

import contextlib
import itertools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.cli.parse import parse
from sslm.config import FLAGS, SECTIONS, Config, parse_stop_after
from sslm.config.written import to_tree, to_yaml
from sslm.models.architecture import model_config
from sslm.models.build import on_meta
from sslm.objectives import OBJECTIVES, load_objective
from sslm.runs.changes import differences
from sslm.system import other_names
from sslm.system.errors import UserError
from sslm.system.plain_yaml import dump
from sslm.system.typed import typed

CONFIGS = sorted(Path(__file__).parents[2].joinpath("configs").glob("*.yaml"))


RUNS_CODE = {"class_path": "os.mkdir", "init_args": {"path": "made"}}


def test_no_setting_names_a_class_that_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = (RUNS_CODE, [RUNS_CODE], {"a": RUNS_CODE}, [[RUNS_CODE]], "os.mkdir", {**RUNS_CODE, "path": "x"})
    one_of_each_type = {str(flag.type): name for name, flag in FLAGS.items()}.values()
    for name, value in itertools.product(one_of_each_type, values):
        section, _, key = name.rpartition(".")
        with contextlib.suppress(UserError):
            typed(SECTIONS[section], section, {key: value})
    for name, value in itertools.product(("model.hidden_size", "objective.ratio", "seed", "nothing"), values):
        section, _, key = name.rpartition(".")
        (tmp_path / "a.yaml").write_text(dump({section: {key: value}} if section else {key: value}))
        for arguments in (["--config", "a.yaml"], [f"--{name}", dump(value)]):
            with contextlib.suppress(UserError):
                parse(arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["a.yaml"]


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("os.mkdir")
KEYS = st.sampled_from(["class_path", "init_args", "name", "path", "weight", "at_tokens", "weights"]) | st.text(
    max_size=4
)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=6)


@given(
    st.dictionaries(st.sampled_from([*FLAGS, *SECTIONS, "model.hidden_size", "objective.ratio"]), VALUES, max_size=4)
)
def test_whatever_a_file_says_is_refused_in_a_sentence_or_taken_and_written_alike(settings: dict[str, Any]) -> None:
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        section, _, key = name.rpartition(".")
        inner = tree.setdefault(section, {}) if section else tree
        if isinstance(inner, dict) and key not in inner:
            inner[key] = value
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(dump(tree))
        file.flush()
        with contextlib.suppress(UserError):
            written = to_yaml(parse(["--config", file.name]))
            Path(file.name).write_text(written)
            assert to_yaml(parse(["--config", file.name])) == written


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("max_steps: 010", 10),
        ("precision: 32", "32"),
        ("run_dir: 2024", "2024"),
        ("run_dir: no", "no"),
        ("max_tokens: 1e9", 1_000_000_000),
        ("max_tokens: 10_000", 10_000),
        ("val_every: 1:30", "--val_every 1:30: expected a whole number"),
        ("dry_run: no", "--dry_run no: expected true or false"),
        ("seed: 1\nseed: 2", "line 2: the key seed is given twice"),
        (f"seed: {'9' * 5000}", "line 1: a number of 5000 digits"),
        ("model: {n_head: &a [*a]}", "line 1: an alias stands inside of what it names"),
    ],
)
def test_yaml_means_what_its_version_1_2_says(line: str, wanted: Any, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(line)
    if isinstance(wanted, str) and ": " in wanted:
        with pytest.raises(UserError, match=wanted):
            parse(["--config", f"{tmp_path}/a.yaml"])
    else:
        assert getattr(parse(["--config", f"{tmp_path}/a.yaml"]), line.partition(":")[0]) == wanted


def test_keys_of_weights_are_names(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "data:\n  sources: [{path: a, name: no}, {path: b, name: 2024}]\n"
        "  stages: [{at_tokens: 0, weights: {no: 1, 2024: 2}}]"
    )
    data = parse(["--config", f"{tmp_path}/a.yaml"]).data
    assert [source.name for source in data.sources or []] == ["no", "2024"]
    assert (data.stages or [])[0].weights == {"no": 1, "2024": 2}


def test_flags_win_over_files_and_later_files_over_earlier_whatever_the_order_typed(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "batch_size: 2\nseq_len: 2\nmodel: {hidden_size: 2, num_hidden_layers: 2}\noptim: {lr: 2e-3}\n"
    )
    (tmp_path / "b.yaml").write_text("seq_len: 3\nmodel: {num_hidden_layers: 3}\n")
    files = [f"--config={tmp_path}/a.yaml", "--config", f"{tmp_path}/b.yaml"]
    flags = ["--optim.lr", "4e-3", "--model.hidden_size=4"]
    for arguments in ([*files, *flags], [*flags, *files]):
        config = parse(arguments)
        assert (config.batch_size, config.seq_len, config.optim.lr) == (2, 3, 4e-3)
        assert config.model.settings == {"hidden_size": 4, "num_hidden_layers": 3}


@pytest.mark.parametrize(("former", "now"), [("false", "off"), ("true", "block"), ("off", "off")])
def test_values_of_older_runs_mean_what_they_meant(former: str, now: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"compile: {former}\n")
    assert parse(["--config", str(tmp_path / "config.yaml")]).compile == now


def test_config_written_to_yaml_is_read_back_equal(tmp_path: Path) -> None:
    config = parse(
        ["--model.model_type", "gpt2", "--model.n_embd", "8", "--data.document_separator", "\n--\n", "--dry_run"]
    )
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert parse(["--config", str(tmp_path / "config.yaml")]) == config
    assert config.dry_run


def test_printed_config_is_a_file_that_means_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--objective", "masked_lm", "--objective.unit", "word", "--data.train", "~/a.txt", "--optim.lr", "1e-3"]
    with pytest.raises(SystemExit, match="0"):
        parse([*flags, "--print_config"])
    (tmp_path / "a.yaml").write_text(capsys.readouterr().out)
    assert parse(["--config", f"{tmp_path}/a.yaml"]) == parse(flags)
    with pytest.raises(UserError, match="there is no flag --optim"):
        parse(["--print_config", "--optim.lrr", "1"])


def test_whole_numbers_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("max_tokens: 1e9\n")
    assert parse(["--config", f"{tmp_path}/a.yaml"]).max_tokens == parse(["--max_tokens", "1e9"]).max_tokens == 10**9


def test_earlier_of_max_steps_and_max_tokens_ends_a_run() -> None:
    batch = Config().batch_size * Config().seq_len
    assert parse(["--max_tokens", str(batch * 7)]).total_steps == 7
    assert parse(["--max_tokens", str(batch * 7), "--max_steps", "5"]).total_steps == 5
    assert parse(["--max_steps", "9"]).total_steps == 9


def test_stop_after_takes_times_and_steps() -> None:
    assert parse_stop_after("3h50m") == (13800.0, None)
    assert parse_stop_after("90s") == (90.0, None)
    assert parse_stop_after("200steps") == (None, 200)


def test_differences_name_keys_that_may_not_change() -> None:
    old = to_tree(parse(["--model.hidden_size", "8"]))
    new = to_tree(parse(["--optim.lr", "1", "--strategy", "ddp", "--max_steps", "7", "--checkpoint.every_steps", "3"]))
    assert differences(old, new) == {"model.hidden_size": (8, None), "optim.lr": (None, 1.0)}


def test_keys_of_a_source_that_came_since_a_run_began_have_their_default() -> None:
    new = to_tree(parse(["--data.sources", "[{path: a, weight: 2}]"]))
    old = {**new, "data": {**new["data"], "sources": [{"path": "a", "weight": 2, "max_epochs": 4.0}]}}
    assert not differences(old, new)
    noisy = to_tree(parse(["--data.sources", "[{path: a, weight: 2, augment: typos 0.1}]"]))
    assert set(differences(old, noisy)) == {"data.sources"}


NAMES = """
run_dir resume resume_with seed strategy context_parallel_size expert_parallel_size tensor_parallel_size
precision accelerator devices num_nodes seq_len batch_size
micro_batch_size max_steps max_tokens max_epochs stop_after stop_when profile log_every val_every predictions eval_every
eval_tasks eval_data eval_num_fewshot eval_limit logger compile attention activation_checkpointing
start_timeout_seconds collective_timeout_seconds watchdog_seconds dry_run objective.name
model.model_type model.pretrained model.freeze model.embedding_init model.embedding_project lora.rank lora.alpha
lora.dropout lora.targets data.train data.val
data.sources data.stages data.augment data.packing data.document_mask data.text_field data.pair_field data.label_field
data.label_separator data.source_field data.target_field data.document_separator data.end_id data.special_tokens
data.bos data.tokenizer data.cache_dir data.cache_gb data.block_shards data.on_bad_shard data.num_workers
data.val_sequences optim.name optim.lr optim.layer_decay optim.mup optim.groups optim.schedule optim.cycles
optim.warmup_steps optim.decay_fraction optim.min_lr_ratio
optim.weight_decay optim.beta1 optim.beta2 optim.eps optim.clip_norm optim.average_decay
prune.sparsity prune.method prune.pattern prune.begin prune.end robust.label_smoothing
robust.z_loss robust.embedding_noise robust.adversarial robust.epsilon robust.adversarial_steps
fsdp.reshard_after_forward fsdp.prefetch fsdp.reduce_gradients fsdp.replicas
deepspeed.offload_optimizer deepspeed.offload_parameters
deepspeed.config checkpoint.every_steps checkpoint.every_minutes checkpoint.keep_last checkpoint.keep_best
checkpoint.best_metric checkpoint.best_is checkpoint.export checkpoint.keep_every_steps checkpoint.sync
checkpoint.upload anomaly.action anomaly.spike_z anomaly.patience anomaly.max_rewinds
distill.teacher distill.cache distill.weight distill.temperature distill.divergence
distill.hidden_weight distill.attention_weight distill.layer_map
distill.from_layers distill.precision quantize.aware quantize.group_size
"""
MOST_FLAGS = 131
"""A flag that comes takes another's place: this number goes down, but for what no other flag can say."""


def test_flags_are_these_and_no_more_than_there_were() -> None:
    assert list(FLAGS) == NAMES.split()
    assert len(FLAGS) <= MOST_FLAGS


def test_every_flag_has_its_phrase_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert ".settings" not in said
    for flag in FLAGS:
        name = "objective" if flag == "objective.name" else flag
        assert f"--{name} " in said
        explained = said.split(f"--{name} ")[-1]
        assert len(explained.split(" --")[0].split()) > 4, flag


def test_help_of_an_objective_lists_its_settings(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("objective: {name: masked_lm, unit: word}")
    for arguments in (["--objective", "masked_lm"], ["--objective.name=masked_lm"], ["--config", f"{tmp_path}/a.yaml"]):
        with pytest.raises(SystemExit):
            parse([*arguments, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        for name in ("ratio", "unit", "masked", "random"):
            assert f"--objective.{name} " in said
        assert "Share of a row's tokens that are chosen" in said
    with pytest.raises(UserError, match="did you mean masked_lm"):
        parse(["--objective", "mlm", "-h"])


def test_names_of_other_tools_mean_settings_and_objectives_that_exist() -> None:
    assert set(other_names.OBJECTIVES_KNOWN_AS) <= set(OBJECTIVES)
    assert not other_names.SETTINGS.keys() & FLAGS.keys() - {"seed"}
    keys = {f"objective.{key}" for key in ("ratio", "mean_span")}
    heads = {"num_attention_heads", "num_key_value_heads", "attention_dropout"}
    llama = {"hidden_size", "num_hidden_layers", "intermediate_size", *heads}
    known = {*FLAGS, "objective", *keys, *(f"model.{key}" for key in llama)}
    for meant in other_names.SETTINGS_KNOWN_AS:
        for flag in meant.split(" or --"):
            name, _, value = flag.partition(" ")
            assert name in known
            assert not value or value.isupper() or "--" in value or ":" in value or parse([f"--{name}", value])


def test_laptop_config_is_the_default_run() -> None:
    config = parse(["--config", str(next(f for f in CONFIGS if f.stem == "laptop"))])
    default = Config()
    kept = {k: v for k, v in load_objective("causal_lm").default_model.items() if k != "model_type"}
    assert config.model.settings == kept
    assert config.total_steps == default.total_steps
    for section in ("optim", "data", "checkpoint", "seq_len", "batch_size", "val_every", "log_every"):
        ours, theirs = getattr(config, section), getattr(default, section)
        assert ours == theirs or (section == "data" and ours.tokenizer == "bpe:2048"), section


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_parses_and_builds_and_explains_each_key(file: Path) -> None:
    config = parse(["--config", str(file)])
    objective = load_objective(config.objective.name)
    objective.make_recipe(typed(objective.recipe_class, "objective", config.objective.settings))
    built = model_config(
        config.model.settings,
        model_type=config.model.model_type,
        default=objective.default_model,
        auto_class=objective.auto_class,
        vocab_size=512,
        seq_len=config.seq_len,
        special_ids={"eos_token_id": 0},
    )
    parameters = sum(p.numel() for p in on_meta(built, objective.auto_class).parameters())
    # the tokenizer is a small one here: where the vocabulary follows it, a model is smaller than in its paper
    expected = {
        "gpt2-124m": 124.5e6,
        "llama-1b": 0.97e9,
        "laptop": 0.92e6,
        "mixture": 0.92e6,
        "masked_lm": 86.4e6,
        "span_corruption": 198.9e6,
        "denoising": 100.4e6,
        "token_order": 86.4e6,
    }
    assert parameters == pytest.approx(expected[file.stem], rel=0.02)
    lines = file.read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"\s*\w+: \S", line):
            assert before.strip().startswith("#"), f"{file.name}: no comment above {line!r}"


def test_help_of_sslm_comes_at_once_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, runpy; sys.argv = ['sslm', '--help']\n"
        "try: runpy.run_module('sslm', run_name='__main__')\nexcept SystemExit: pass\n"
    )
    code += "print([m for m in ('torch', 'transformers', 'lightning', 'numpy', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *screen, heavy = done.stdout.splitlines()
    assert "prepare" in done.stdout
    assert heavy == "[]"
    assert len(screen) < 24  # the prompt takes a line
    assert max(map(len, screen)) <= 80


def test_help_of_train_imports_nothing_heavy() -> None:
    code = "import sys; from sslm.train import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'transformers', 'lightning', 'datasets') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"}
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_unknown_verb_names_the_nearest() -> None:
    done = subprocess.run([sys.executable, "-m", "sslm", "trian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "did you mean train?" in done.stderr
