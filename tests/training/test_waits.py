"""Between logged steps the host never waits for the device: nothing asks for a tensor's value."""

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from sslm.train import main
from sslm.training.module import Objective
from tests.support.runs import SMALL_LLAMA, SMALL_RUN

READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2")
"""Operations whose result, or its size, the host must have before it goes on."""


class Reads(TorchDispatchMode):
    """Counts operations for which the host would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().removeprefix("aten::").partition(".")[0]
        self.found.update([name] if name in READS else [])
        return function(*args, **(kwargs or {}))


SMALL_BERT = "--model.hidden_size 32 --model.intermediate_size 64 --model.num_hidden_layers 2 " + (
    "--model.num_attention_heads 2 --model.max_position_embeddings 64"
)


@pytest.mark.parametrize(
    "flags",
    [
        shlex.join(SMALL_LLAMA),
        f"{shlex.join(SMALL_LLAMA)} --data.document_mask true --optim.average_decay 0.9 --micro_batch_size 2",
        f"{shlex.join(SMALL_LLAMA)} --precision bf16-true --robust.embedding_noise 5",
        f"{shlex.join(SMALL_LLAMA)} --precision 16-mixed --robust.adversarial fgm",
        f"--objective masked_lm --model.model_type roberta {SMALL_BERT} --data.document_mask true "
        "--model.max_position_embeddings 600",
        "--objective span_corruption --model.d_model 32 --model.num_layers 2",
        "--objective denoising --model.d_model 32",
    ],
    ids=lambda flags: " ".join(word for word in shlex.split(flags) if not word.isdigit() and "model." not in word),
)
def test_no_step_reads_a_value_from_the_device(flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, reads = Objective.training_step, Reads()

    def watched(module: Objective, batch: Any, number: int) -> Any:
        if module.global_step + 1 in (4, 8):  # logged, validated, and the last: the host must know
            return step(module, batch, number)
        with reads:
            return step(module, batch, number)

    monkeypatch.setattr(Objective, "training_step", watched)
    logged = ["--log_every", "4", "--max_steps", "8", "--val_every", "4", "--run_dir", str(tmp_path / "run")]
    assert main([*SMALL_RUN, *logged, *shlex.split(flags)]) == 0
    assert not reads.found
