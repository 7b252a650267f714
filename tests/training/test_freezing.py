"""--model.freeze: what is frozen stays bit for bit, on one process or several, and after a resume; the rest learns."""

import re
from pathlib import Path

import pytest
import torch

from sslm.models.freezing import parse_freeze
from sslm.system.errors import UserError
from tests.support.processes import train_forked
from tests.support.runs import losses_of, tensors_of

FREEZE = ["--model.freeze", "embeddings,blocks:1", "--model.tie_word_embeddings", "false"]


@pytest.mark.parametrize(
    "strategy",
    ["single", "ddp", "fsdp", *(pytest.param(f"deepspeed_{stage}", marks=pytest.mark.slow) for stage in (1, 2, 3))],
)
def test_frozen_parts_stay_and_the_rest_learns(tiny: list[str], tmp_path: Path, strategy: str) -> None:
    run = tmp_path / "run"
    two = [] if strategy == "single" else ["--devices", "2"]
    command = [*tiny, "--run_dir", str(run), *FREEZE, "--strategy", strategy, *two, "--checkpoint.keep_last", "9"]
    for more, code in ((["--stop_after", "6steps"], 75), ([], 0)):
        done = train_forked([*command, *more], tmp_path / "log")
        assert done.returncode == code, done.stdout
    assert len(losses_of(run)) == 8
    first, last = (tensors_of(run / f"checkpoints/step-00000{step}") for step in (4, 8))
    weights = [name for name in first if name.startswith("model.") and name.endswith("weight")]
    still = {name for name in weights if torch.equal(first[name], last[name])}
    assert still == {name for name in weights if re.search(r"embed_tokens|layers\.0\.", name)}
    assert not any(name.startswith("optim.") and "layers.0." in name for name in first)


def test_too_many_blocks_and_other_words_are_refused(tiny: list[str], tmp_path: Path) -> None:
    done = train_forked([*tiny, "--run_dir", str(tmp_path / "run"), "--model.freeze", "blocks:7"], tmp_path / "log")
    assert done.returncode == 2
    assert "--model.freeze blocks:7: a llama of this size has 2; give fewer" in done.stdout
    for text in ("block:2", "", "embeddings;blocks:2"):
        with pytest.raises(UserError, match="expected embeddings, blocks:6"):
            parse_freeze(text)
