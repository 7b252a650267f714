"""`from sslm import …`: every public name is there, typed, and brought only when it is asked for."""

import ast
import os
from pathlib import Path

import pytest

import sslm
from tests.support.processes import run_command

STUB = ast.parse(Path(sslm.__file__).with_suffix(".pyi").read_text())
HEAVY = ("torch", "transformers", "lightning", "numpy", "datasets", "yaml", "jsonargparse", "rich")
SCRIPT = """
from lightning.pytorch import Trainer
from transformers import LlamaConfig

from sslm import CausalLM, DataConfig, DataModule, MaskedLM, UserError

model = CausalLM(LlamaConfig(vocab_size=4096))
data = DataModule(DataConfig(train="my.txt", tokenizer="bpe:4096"), model.recipe, seq_len=128, batch_size=16)
reveal_type(model)
reveal_type(data)
try:
    Trainer(max_steps=100).fit(model, datamodule=data)
except UserError as error:
    reveal_type(error)
wrong: int = MaskedLM
"""


def test_stub_and_module_have_the_same_names_and_each_resolves() -> None:
    imported = {
        alias.name: node.module for node in STUB.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    listed = next(
        ast.literal_eval(node.value)
        for node in STUB.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert sorted(sslm.__all__) == sorted(listed) == sorted([*imported, "__version__"])
    for name, module in imported.items():
        assert getattr(sslm, name).__module__ == module
    assert set(sslm.__all__) <= set(dir(sslm))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'CasualLM'"):
        sslm.CasualLM  # type: ignore[attr-defined]  # noqa: B018


def test_importing_sslm_imports_nothing_heavy() -> None:
    code = f"import sys, sslm; print([name for name in {HEAVY} if name in sys.modules])"
    assert run_command(["-c", code]).stdout.strip() == "[]"


@pytest.mark.slow
def test_a_script_is_checked_against_the_real_types(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    root = Path(sslm.__file__).parents[1]  # our own settings, so that `make check` has checked sslm already
    options = ["--config-file", str(root / "pyproject.toml"), "--cache-dir", str(root / ".mypy_cache")]
    env = {**os.environ, "MYPYPATH": str(root)}
    said = run_command(["-m", "mypy", *options, str(tmp_path / "script.py")], timeout=300, env=env).stdout
    assert 'Revealed type is "sslm.objectives.causal_lm.CausalLM"' in said
    assert 'Revealed type is "sslm.data.module.DataModule"' in said
    assert 'Revealed type is "sslm.system.errors.UserError"' in said
    errors = [line for line in said.splitlines() if ": error:" in line]
    assert len(errors) == 1, said
    assert "script.py:15: error: Incompatible types" in errors[0]
