"""README and the pages of docs/ say what is true: their commands parse, their Python runs."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import GPT2Config, LlamaConfig

from sslm.cli import VERBS, ckpt, seeds
from sslm.cli.evaluate.flags import parsed as evaluate_flags
from sslm.cli.generate.flags import parsed as generate_flags
from sslm.cli.parse import parse
from sslm.config import FLAGS
from sslm.objectives import OBJECTIVES
from sslm.train import main
from tests.support.runs import losses_of

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINES = [line for page in PAGES for line in page.read_text().splitlines() if line.startswith("    ")]
COMMANDS = list(dict.fromkeys(line.strip().split("  #")[0].strip() for line in LINES))


@pytest.mark.parametrize("command", [c for c in COMMANDS if "sslm.train" in c or "pretrain.sbatch" in c])
def test_train_commands_parse(command: str) -> None:
    words = shlex.split(command)
    start = next(i for i, word in enumerate(words) if word == "sslm.train" or word.endswith(".sbatch"))
    flags = words[start + 1 :]
    if flags != ["--help"]:
        parse(flags)


def test_make_commands_are_targets() -> None:
    targets = set(re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {command.split()[1] for command in COMMANDS if command.startswith("make ")} <= targets


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("sslm ")])
def test_verbs_exist(command: str) -> None:
    verb, *flags = shlex.split(command)[1:]
    assert verb in VERBS
    if verb in ("train", "finetune"):
        parse(seeds.taken(flags)[1] if "--seeds" in flags else flags)
    if verb == "generate":
        generate_flags(flags)
    if verb == "evaluate":
        evaluate_flags(flags)
    if verb == "ckpt":
        with pytest.raises(SystemExit, match="0"):
            ckpt.main([flags[0], "--help"])


def test_settings_named_beside_another_trainers_are_ours() -> None:
    """Theirs stand in the first column of a table; whatever else begins with -- is ours, and so are values."""
    lines = [line for line in (ROOT / "docs/coming_from.md").read_text().splitlines() if not line.startswith("    ")]
    text = "\n".join(line.split("|", 2)[-1] if line.startswith("| ") else line for line in lines)
    spans = [shlex.split(span) for span in re.findall(r"`(?:sslm finetune )?(--[^`]+)`", text)]
    assert spans
    for flag, *rest in spans:
        section, _, key = flag.removeprefix("--").rpartition(".")
        if section == "model" and f"model.{key}" not in FLAGS:
            assert hasattr(LlamaConfig, key) or key in vars(LlamaConfig()) | vars(GPT2Config()), flag
        elif section != "objective":
            assert flag.removeprefix("--") in FLAGS or flag == "--objective", flag
        if rest:
            parse([flag, *rest])


def test_every_objective_is_in_the_table() -> None:
    for name in OBJECTIVES:
        assert f"`{name}`" in TEXT


def test_python_example_trains(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.txt").write_text(text.read_text())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    [code] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    quick = {
        "max_steps=100": "max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False",
        "bpe:4096": "bpe:500",
    }
    for long, short in quick.items():
        assert long in code
        code = code.replace(long, short)
    exec(code, names)
    assert names["trainer"].global_step == 2  # type: ignore[attr-defined]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the guide's objective, from which Python imports."""
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL)
    (folder := tmp_path / "own").mkdir()
    (folder / "prefix_lm.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("prefix_lm", None)


def test_the_guides_objective_is_one_that_trains(tmp_path: Path, tiny: list[str], own: Path) -> None:
    """As a stranger would write it: a module of its own, first named by itself and then as an entry point."""
    runs = [tmp_path / "whole", tmp_path / "parts"]
    flags = [*tiny, "--objective.longest", "0.9", "--data.packing", "best_fit", "--objective"]
    assert main([*flags, "prefix_lm:PrefixLM", "--run_dir", str(runs[0])]) == 0
    (own / "own-1.dist-info").mkdir()
    (own / "own-1.dist-info/entry_points.txt").write_text("[sslm.objectives]\nmy_prefix = prefix_lm:PrefixLM\n")
    assert main([*flags, "my_prefix", "--run_dir", str(runs[1]), "--stop_after", "3steps"]) == 75
    assert main([*flags, "my_prefix", "--run_dir", str(runs[1])]) == 0
    assert losses_of(runs[0]) == losses_of(runs[1])
    assert (runs[1] / "export/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("prefix_lm:Prefix", "is no subclass of"),
        ("os:path", "is no subclass of"),
        ("no_such_module:Prefix", "no_such_module can't be imported"),
        ("prefix", "allowed: causal_lm,"),
    ],
)
def test_what_is_no_objective_of_ones_own_gets_a_sentence(
    name: str, says: str, tiny: list[str], own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "--objective", name, "--run_dir", str(own / "run")]) == 2
    assert says in capsys.readouterr().err


def test_settings_import_no_objective(
    tmp_path: Path, tiny: list[str], own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("objective: prefix_lm:PrefixLM\n")
    assert main([*tiny, "--config", str(tmp_path / "config.yaml"), "--run_dir", str(tmp_path / "run")]) == 2
    assert "settings, which import nothing" in capsys.readouterr().err
    assert "prefix_lm" not in sys.modules
