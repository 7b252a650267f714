"""Micro-batches of labelled rows: they are cut to their longest row, and lose padding alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from sslm.cli.parse import parse
from sslm.data.stream.batches import step_batch, with_tensors
from sslm.data.stream.recipe import is_target
from sslm.objectives.choose import choose_objective, open_data
from sslm.training.micro_batches import micro_batches

WIDTH = 32
ROWS: dict[str, Any] = {
    "text_to_text --model.model_type t5": lambda n: {"source": f"{n}", "target": "word " * (9 + n % 5)},
    "text_to_text --model.model_type llama": lambda n: {"source": f"{n}", "target": "word " * (9 + n % 5)},
    "classification --objective.multi_label true": lambda n: {"text": f"{n}", "label": [f"{n % WIDTH}"]},
    "tagging": lambda n: {"text": ["word"] * (3 + n % 5), "label": [["O", "B-X"][n % 2]] * (3 + n % 5)},
}


@pytest.mark.parametrize("objective", ROWS)
def test_micro_batches_have_all_targets(objective: str, tmp_path: Path) -> None:
    file, size = tmp_path / "rows.jsonl", 8
    file.write_text("".join(json.dumps(ROWS[objective](n)) + "\n" for n in range(10 * WIDTH)))
    arguments = ["--objective", *objective.split(), "--data.tokenizer=bpe:300", f"--seq_len={WIDTH}", "--batch_size=8"]
    config = parse([*arguments, f"--data.train={file}", f"--data.cache_dir={tmp_path}/cache"])
    _, recipe = choose_objective(config)
    data = open_data(config, recipe)
    steps = data.held_out.steps(3 * size)  # the last has micro-batches of rows that only fill it up
    for loaded in (with_tensors(steps[step]) for step in range(steps.num_steps)):
        batch = step_batch(loaded, 1, task=recipe.task(WIDTH))
        micros = [micro.tensors for micro in micro_batches(batch, size)]
        assert [sum(int(is_target(tensors["labels"].numpy()).sum()) for tensors in micros)] == batch["scored"]
        assert all(tensors["labels"].shape[1] for tensors in micros)
        if "llama" not in objective:  # there sources and targets make one long row
            assert all(tensors["input_ids"].shape[1] < WIDTH for tensors in micros)
    data.teardown("fit")
