"""Bad input: one sentence on stderr, exit code 2, no traceback, nothing half-written."""

import gzip
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from sslm.cli.parse import parse
from sslm.runs.folder import RunFolder
from sslm.system.errors import UserError
from sslm.system.typed import typed
from sslm.train import main


@pytest.fixture
def refuse(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """refuse(flags, words) asserts that training refuses and says these words, and that a dry run says the same."""

    def check(flags: list[str], *words: str) -> None:
        run = tmp_path / "run"
        capsys.readouterr()
        assert main([*tiny, "--run_dir", str(run), *flags]) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert len(message.splitlines()) == 1, message
        for word in words:
            assert word in message
        assert main([*tiny, "--run_dir", str(run), *flags, "--dry_run"]) == 2
        assert capsys.readouterr().err == message
        assert not run.exists()

    return check


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batchsize", "8"], ["--batchsize", "did you mean --batch_size?"]),
        (["--optim.lrr", "8"], ["--optim.lrr", "--optim.lr"]),
        (["--strategy", "fsdq"], ["fsdq", "auto, single, ddp, fsdp", "did you mean fsdp?"]),
        (["--batch_size", "many"], ["--batch_size many", "a whole number"]),
        (["--batch_size"], ["needs a value"]),
        (["--batch_size="], ["--batch_size", "a whole number"]),
        (["--robust.adversarial", "fgmm"], ["fgmm: expected one of fgm, pgd, freelb or null (did you mean fgm?)"]),
        (["--optim.name", "adam"], ["--optim.name adam: expected one of adamw, adamw_8bit", "(did you mean adamw?)"]),
        (["8"], ["not a flag"]),
        (["--max_steps", "0"], ["--max_steps 0", "above 0"]),
        (["--tensor_parallel_size", "0"], ["--tensor_parallel_size 0", "above 0"]),
        (["--fsdp.replicas", "0"], ["--fsdp.replicas 0", "above 0"]),
        (["--start_timeout_seconds", "0"], ["--start_timeout_seconds 0", "above 0"]),
        (["--collective_timeout_seconds", "-1"], ["--collective_timeout_seconds -1", "above 0"]),
        (["--stop_after", "soon"], ["soon", "3h50m", "200steps"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["--micro_batch_size", "0"], ["--micro_batch_size 0", "above 0"]),
        (["--micro_batch_size", "autoo"], ["a whole number, auto or null (did you mean auto?)"]),
        (["--micro_batch_size", "3e0"], ["--micro_batch_size 3:", "1, 2, 4"]),
        (["--micro_batch_size", "3"], ["--micro_batch_size 3", "1, 2, 4"]),
        (["--batch_size", "5", "--devices", "2"], ["--batch_size 5", "multiple of 2", "6"]),
        (["--devices", "5000"], ["--devices 5000", "CPU cores"]),
        (["--accelerator", "gpu"], ["--accelerator gpu", "no GPU"]),
        (["--strategy", "single", "--devices", "2"], ["--strategy single", "--devices 1"]),
        (["--objective", "casual_lm"], ["casual_lm", "did you mean causal_lm?"]),
        (["--objective", "mlm"], ["--objective mlm", "did you mean masked_lm?"]),
        (["--lr", "1e-3"], ["--lr (did you mean --optim.lr?)"]),
        (["--train.lr_warmup_steps", "1"], ["did you mean --optim.warmup_steps?"]),
        (["--train-iters", "1"], ["--train-iters (did you mean --max_steps?)"]),
        (["--bf16"], ["--bf16 (did you mean --precision bf16-mixed?)"]),
        (["--num_train_epochs", "3"], ["did you mean --max_epochs?"]),
        (["--objective.ratio", "0.1"], ["--objective.ratio", "no such setting"]),
        (["--model.model_type", "lama"], ["lama", "did you mean llama?"]),
        (["--model.model_type", "vit"], ["vit", "AutoModelForCausalLM"]),
        (["--model.hiden_size", "64"], ["--model.hiden_size", "did you mean hidden_size?"]),
        (["--model.n_layer", "2"], ["--model.n_layer", "did you mean num_hidden_layers?"]),
        (["--model.hidden_size", "wide"], ["hidden_size", "int"]),
        (["--model.num_attention_heads", "5"], ["multiple of the number of attention heads"]),
        (["--model.max_position_embeddings", "16"], ["--seq_len 32", "16 positions"]),
        (["--model.vocab_size", "100"], ["--model.vocab_size 100", "512"]),
        (["--model.pretrained", "./nowhere"], ["nowhere"]),
        (["--data.tokenizer", "./nowhere"], ["./nowhere", "no such folder"]),
        (["--data.tokenizer", "bpe:5"], ["bpe:5", "257"]),
        (["--data.document_separator", "("], ["not a regular expression"]),
        (["--data.document_separator", "x*"], ["matches the empty text"]),
        (["--data.train", "./nowhere.txt"], ["./nowhere.txt", "no such file"]),
        (["--data.train", "nowhere-*.txt"], ["no file matches"]),
        (["--batch_size", "40000"], ["too short", "one step takes 1,280,000"]),
        (["--resume", "./nowhere"], ["./nowhere", "neither a run folder"]),
        (["--data.train="], ["--data.train needs a value"]),
        (["--config", "--dry_run"], ["--config needs a file"]),
        (["--data.num_workers", "100000"], ["CPU cores"]),
        (["--seed", "-1"], ["--seed -1", "2^63"]),
        (["--optim.lr", "1e400"], ["above 0"]),
        (["--optim.beta1", "1"], ["--optim.beta1 1", "below 1"]),
        (["--optim.weight_decay", "-1"], ["0 or more"]),
        (["--model.hidden_act", "[1"], ["can't be read"]),
        (["--model.hidden_act", "foo"], ["can't be built with these settings", "foo"]),
        (["--model.hidden_size", "-4"], ["can't be built with these settings"]),
        (["--model.num_hidden_layers", "0"], ["expected at least 1"]),
        (["--model.num_key_value_heads", "3"], ["fails on a few tokens"]),
        (["--model.attention_dropout", "2"], ["fails on a few tokens"]),
        (["--model.model_type", "gemma3"], ["gemma3"]),
        (["--data.sources", "x"], ["--data.sources x", "expected a list"]),
        (["--data.train", "\x1b[31m文.txt"], ["\\x1b[31m文.txt"]),
        (["--data.sources", "[{weight: 1}]"], ["path is missing"]),
        (["--data.sources", "[{path: a, weight: [1]}]"], ["weight ['1']", "a whole number, a number or text"]),
        (["--data.sources", "[{path: a, wieght: 1}]"], ["did you mean weight?"]),
        (["--data.stages", "[{at_tokens: x, weights: {a: 1}}]"], ["at_tokens x", "a whole number"]),
        (["--data.stages", "[{at_tokens: 9, weights: 3}]"], ["weights 3", "names and numbers"]),
        (["--run_dir", "/dev/null/x"], ["/dev/null"]),
        (["--data.cache_dir", "/dev/null/x"], ["/dev/null"]),
        (["--data.train", "x" * 300 + ".txt"], ["too long"]),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_wrong_flags(refuse, flags: list[str], words: list[str]) -> None:  # type: ignore[no-untyped-def]
    refuse(flags, *words)


def test_micro_batch_size_is_a_number_or_auto() -> None:
    sizes = [parse(["--micro_batch_size", size]).micro_batch_size for size in ("1e2", "7", "auto", "null")]
    assert sizes == [100, 7, "auto", None]


@dataclass
class Item:
    size: int | Literal["auto"] | None
    weight: str | float


def test_values_may_be_of_any_part_of_a_union() -> None:
    for size in (3, "auto", None):
        assert typed(Item, "items", {"size": size}) == {"size": size}
    for size in (True, 0.5, "text", [3]):
        with pytest.raises(UserError, match="expected a whole number, auto or null"):
            typed(Item, "items", {"size": size})
    for weight in (3, 0.5, "text"):
        assert typed(Item, "items", {"weight": weight}) == {"weight": weight}


def test_null_is_no_number(refuse, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.yaml").write_text("optim: {beta1: null}\n")
    refuse(["--config", str(tmp_path / "a.yaml")], "--optim.beta1 null: expected a number")


def test_yaml_key_that_does_not_exist(refuse, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.yaml").write_text("optim: {learning_rate: 1}\n")
    refuse(["--config", str(tmp_path / "a.yaml")], "optim.learning_rate")
    (tmp_path / "a.yaml").write_text("batchsize: 8\n")
    refuse(["--config", str(tmp_path / "a.yaml")], "batchsize", "did you mean batch_size?")
    (tmp_path / "a.yaml").write_text("learning_rate: 1")
    refuse(["--config", str(tmp_path / "a.yaml")], "did you mean optim.lr?")
    (tmp_path / "a.yaml").write_text("a: [\n")
    refuse(["--config", str(tmp_path / "a.yaml")], "not a YAML file")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", ["empty"]),
        ("blank.txt", b"  \n\n ", ["no text"]),
        ("nul.txt", b"some text\0more" * 9, ["not text", "NUL"]),
        ("latin.txt", "façade déjà vu ".encode("latin-1") * 99, ["not UTF-8", "iconv"]),
        ("a.csv", b"a,b\n", ["unknown kind of file", ".txt"]),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', ["line 2", "not JSON"]),
        ("list.jsonl", b"[1]\n", ["line 1", "expected an object"]),
        ("field.jsonl", b'{"txt": "a"}\n', ["no field 'text'", "did you mean txt?", "--data.text_field"]),
        ("number.jsonl", b'{"text": 3}\n', ["holds int, not text"]),
        ("torn.txt.gz", gzip.compress(b"hello " * 9999)[:40], ["damaged"]),
        ("deep.jsonl", b"[" * 100_000, ["line 1", "not JSON"]),
        ("no.parquet", b"nothing of the kind", ["not a Parquet file"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_files(refuse, tmp_path: Path, cache: Path, name: str, content: bytes, words: list[str]) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / name).write_bytes(content)
    before = sorted((cache / "corpora").glob("*"))
    refuse(["--data.train", str(tmp_path / name)], *words)
    left = [path for path in (cache / "corpora").glob("*") if path not in before]
    assert not left


def test_corpus_prepared_with_another_tokenizer(refuse, tmp_path: Path, text: Path) -> None:  # type: ignore[no-untyped-def]
    from sslm.cli.prepare import main as prepare

    assert prepare([str(text), "--out", str(tmp_path / "corpus"), "--tokenizer", "bpe:400"]) == 0
    refuse(["--data.train", str(tmp_path / "corpus")], "another tokenizer than bpe:512")
    index = tmp_path / "corpus/index.json"
    index.write_text(index.read_text().replace('"num_tokens": ', '"num_tokens": 1'))
    refuse(["--data.train", str(tmp_path / "corpus"), "--data.tokenizer", "bpe:400"], "damaged")
    index.write_text(json.dumps({"format": 99}))
    refuse(["--data.train", str(tmp_path / "corpus"), "--data.tokenizer", "bpe:400"], "newer sslm")


def test_full_disk_is_said_in_a_sentence() -> None:
    import errno

    from sslm.system.errors import sentence_of

    assert "the disk is full" in str(sentence_of(OSError(errno.ENOSPC, "No space left on device", "/x")))
    assert sentence_of(RuntimeError("a bug")) is None


@pytest.fixture
def refused_folder(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """A short run in a folder, and a check that going on with it is refused in a sentence."""
    run = tmp_path / "run"
    assert main([*tiny, "--run_dir", str(run), "--max_steps", "2"]) == 0

    def check(*words: str, flags: list[str] | None = None) -> None:
        before = sorted(run.rglob("*"))
        for last in ([], ["--dry_run"]):
            capsys.readouterr()
            assert main([*tiny, "--run_dir", str(run), "--max_steps", "4", *(flags or []), *last]) == 2
            message = capsys.readouterr().err
            assert len(message.splitlines()) == 1
            assert all(word in message for word in words), message
        assert sorted(run.rglob("*")) == before

    return run, check


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"- a list", b"data: 3", b"[" * 9000])
def test_damaged_config_of_a_run(refused_folder, content: bytes) -> None:  # type: ignore[no-untyped-def]
    run, check = refused_folder
    (run / "config.yaml").write_bytes(content)
    check("config.yaml")


def test_checkpoint_of_another_model(refused_folder, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run, check = refused_folder
    (run / "config.yaml").unlink()
    check("another model's weights", flags=["--model.num_hidden_layers", "1"])
    check("--batch_size 4, now 8", flags=["--batch_size", "8"])


def test_settings_that_differ_come_after_those_that_do_not_exist(
    refused_folder, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    run, check = refused_folder
    check("belongs to a run with other settings: optim.lr (was not set, now 1.0)", flags=["--optim.lr", "1"])
    check("--model.hiden_size: llama has no such key", flags=["--model.hiden_size", "64", "--optim.lr", "1"])
    check("--objective.x: there is no such setting", flags=["--objective.x", "64", "--optim.lr", "1"])
    check("has checkpoints already", flags=["--resume", "never"])
    other = ["--run_dir", str(tmp_path / "other"), "--resume", str(run)]
    check(f"{run} belongs to a run with other settings: optim.lr", flags=[*other, "--optim.lr", "1"])
    check("is at step 2 already, this run ends at 1", flags=[*other, "--max_steps", "1"])
    (run / "checkpoints/step-000003").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for flags in ([], other):
        capsys.readouterr()
        assert main([*tiny, "--run_dir", str(run), *flags, "--dry_run"]) == 0
        assert f"leave --dry_run out to resume from {run}/checkpoints/step-000002" in " ".join(
            capsys.readouterr().out.split()
        )
    assert sorted(tmp_path.rglob("*")) == before
    with RunFolder(run).locked():
        check("another process is training in this run folder")


def test_damaged_rows_and_manifests_are_passed_over(refused_folder, tiny: list[str]) -> None:  # type: ignore[no-untyped-def]
    run, _ = refused_folder
    (run / "metrics.jsonl").write_bytes(
        b'\xff\x00\n{"step": "x"}\n{"step": 1}\n{"step": 1, "tokens": 2, "val/loss": "x"}\n'
    )
    (run / "checkpoints/step-000009.bak").mkdir()
    for step, content in ((3, "[]"), (4, '{"state.json": 3}'), (5, "{}")):
        (run / f"checkpoints/step-{step:06d}").mkdir()
        (run / f"checkpoints/step-{step:06d}/manifest.json").write_text(content)
    assert main([*tiny, "--run_dir", str(run), "--max_steps", "4"]) == 0
    assert json.loads((run / "status.json").read_text())["step"] == 4
    assert sum(path.name.endswith(".corrupt") for path in (run / "checkpoints").iterdir()) == 3


def test_pretrained_weights_of_other_shapes(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "--run_dir", str(tmp_path / "run"), "--max_steps", "1"]) == 0
    pretrained = ["--model.pretrained", str(tmp_path / "run"), "--run_dir", str(tmp_path / "other"), "--max_steps", "1"]
    for flags, word in (
        (["--model.hidden_size", "64"], "other shapes"),
        (["--model.model_type", "gpt2"], "is a llama"),
        (["--model.hidden_size", "abc"], "refuses these settings"),
    ):
        capsys.readouterr()
        for last in ([], ["--dry_run"]):
            assert main([*tiny, *pretrained, *flags, *last]) == 2
            assert word in capsys.readouterr().err
    weights = tmp_path / "run/export/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    for last in ([], ["--dry_run"]):
        assert main([*tiny, *pretrained, *last]) == 2
        assert "weights can't be read" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_tokenizer_exchanged_in_a_prepared_corpus(refuse, tmp_path: Path, text: Path) -> None:  # type: ignore[no-untyped-def]
    from sslm.cli.prepare import main as prepare

    for size in (400, 512):
        assert prepare([str(text), "--out", str(tmp_path / f"{size}"), "--tokenizer", f"bpe:{size}"]) == 0
    shutil.copytree(tmp_path / "400/tokenizer", tmp_path / "512/tokenizer", dirs_exist_ok=True)
    refuse(["--data.train", str(tmp_path / "512")], "is not the tokenizer this corpus was prepared with")
