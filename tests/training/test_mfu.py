"""Model FLOPs utilisation is of tokens: padding earns nothing."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from sslm.cli.parse import parse
from sslm.config.batch_sizes import BatchSizes
from sslm.data.stream.batches import step_batch, with_tensors
from sslm.objectives.choose import choose_objective, open_data
from sslm.parallel.planning.machines import peak_flops
from sslm.train import main
from tests.support.runs import TINY, rows_of

SEQ_LEN = 32
DOCUMENT = "one of these documents is longer than half a row, so that none has room for two of them\n\n"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents that leave each row that holds whole ones with padding."""
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    file.write_text("".join(f'{{"text": "{n} {DOCUMENT.strip()}"}}\n' for n in range(200)))
    return file


@pytest.mark.parametrize(
    ("objective", "document_mask"),
    [("span_corruption", "false"), *product(("causal_lm", "masked_lm", "denoising"), ("false", "true"))],
)
def test_places_that_are_read_are_those_that_are_not_padding(objective: str, document_mask: str, text: Path) -> None:
    arguments = ["--objective", objective, "--data.tokenizer=bpe:300", f"--seq_len={SEQ_LEN}", "--batch_size=8"]
    arguments += ["--data.packing=best_fit", f"--data.document_mask={document_mask}", f"--data.train={text}"]
    config = parse([*arguments, f"--data.cache_dir={text.parent}/cache"])
    _, recipe = choose_objective(config)
    data = open_data(config, recipe)
    batch = with_tensors(data._train_steps_of(BatchSizes.even(8), substitute=False)[0])
    ids, lengths = batch["tensors"]["input_ids"].numpy(), data.train_stream.at(batch["positions"]).lengths
    made = step_batch(batch, 1, predicts_next_token=recipe.predicts_next_token)
    if objective == "causal_lm" and document_mask == "false":  # the last token of a row has no target
        read = lengths.sum() - len(lengths)
    elif objective == "causal_lm":
        read = np.minimum(lengths, SEQ_LEN).sum()
    else:
        assert data.vocabulary is not None
        read = np.count_nonzero(ids != data.vocabulary.pad)
    assert made["num_read"] == read < ids.size
    data.teardown("fit")


def test_padding_lowers_mfu(text: Path, tmp_path: Path) -> None:
    """Of equal speed in tokens and padding, the share that is tokens."""
    arguments = [*TINY, "--data.train", str(text), "--data.cache_dir", f"{tmp_path}/cache", "--max_steps", "2"]
    fills = {}
    for packing in ("concat", "best_fit"):
        run = tmp_path / packing
        assert main([*arguments, "--data.packing", packing, "--run_dir", str(run)]) == 0
        row = next(row for row in rows_of(run) if "mfu" in row)
        of_all_places = row["tokens_per_second"] * row["flops"] / row["tokens"]
        fills[packing] = row["mfu"] * peak_flops(torch.device("cpu"), torch.float32) / of_all_places
    assert fills["concat"] == pytest.approx(1.0, rel=1e-3)
    assert 0.5 < fills["best_fit"] < 0.95
