"""What docs/formats.md says is enough: small readers that go by that page alone read what a real run left."""

import hashlib
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sslm.cli.parse import parse
from sslm.objectives.choose import choose_objective, open_data
from tests.support.processes import Ranks

DTYPES = {"F32": "<f4", "I64": "<i8"}


@pytest.fixture(scope="module")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two processes that share the weights, so that tensors lie in pieces."""
    folder = tmp_path_factory.mktemp("formats")
    flags = ["--strategy", "fsdp", "--optim.average_decay", "0.9", "--run_dir", str(folder / "run")]
    ranks = Ranks([*tiny, *flags], folder / "log", world=2)
    assert ranks.wait(120) == [0, 0], ranks.said()
    return folder / "run"


def newest(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints/latest").read_text().strip()


def pieces_in(file: Path) -> dict[str, tuple[list[int], NDArray[Any]]]:
    """Name -> (where the piece begins in the tensor, its values)."""
    data = file.read_bytes()
    [length] = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    places = json.loads(header.pop("__metadata__", {}).get("DCP_SHARDING_INFO", "{}"))
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(body[begin:end], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        found[name] = (places[name]["saved_offsets"] if name in places else [0] * values.ndim, values)
    return found


def tensors_in(folder: Path) -> dict[str, NDArray[Any]]:
    pieces: dict[str, list[tuple[list[int], NDArray[Any]]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, piece in pieces_in(file).items():
            pieces.setdefault(name, []).append(piece)
    return {name: joined(found) for name, found in pieces.items()}


def joined(pieces: list[tuple[list[int], NDArray[Any]]]) -> NDArray[Any]:
    ends = [[o + n for o, n in zip(offsets, values.shape, strict=True)] for offsets, values in pieces]
    whole = np.empty([max(end) for end in zip(*ends, strict=True)], pieces[0][1].dtype)
    for offsets, values in pieces:
        whole[tuple(slice(o, o + n) for o, n in zip(offsets, values.shape, strict=True))] = values
    assert whole.size == sum(values.size for _, values in pieces)
    return whole


def test_every_file_is_as_the_manifest_says(run: Path) -> None:
    checkpoint = newest(run)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    files = {str(f.relative_to(checkpoint)): f.read_bytes() for f in checkpoint.rglob("*") if f.is_file()}
    del files["manifest.json"]
    assert manifest == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    assert {"state.json", "model/config.json", "shard-00000.safetensors", "shard-00001.safetensors"} <= files.keys()


def test_pieces_make_up_the_tensors_that_the_page_names(run: Path) -> None:
    tensors, exported = tensors_in(newest(run)), tensors_in(run / "export")
    weights = [name.removeprefix("model.model.") for name in tensors if name.startswith("model.model.")]
    expected = {f"model.model.{name}" for name in weights} | {f"average.model.{name}" for name in weights}
    expected |= {f"optim.state.model.{name}.{state}" for name in weights for state in ("exp_avg", "exp_avg_sq", "step")}
    assert tensors.keys() == expected
    assert exported.keys() == set(weights)
    for name, values in exported.items():  # what is exported is the average
        assert np.array_equal(tensors[f"average.model.{name}"], values), name
        assert tensors[f"optim.state.model.{name}.exp_avg"].shape == values.shape
        assert tensors[f"optim.state.model.{name}.step"] == 8


def test_state_and_status_have_the_keys_that_the_page_lists(run: Path) -> None:
    state = json.loads((newest(run) / "state.json").read_text())
    must, may = keys_of_the_page("state.json")
    assert must <= state.keys() <= must | may
    assert (state["format"], state["step"], state["position"], state["amendments"]) == (1, 8, 32, [])
    assert state["fingerprint"].keys() == {"seed", "window_len", "stages", "sources"}
    assert state["fingerprint"]["sources"][""].keys() == {
        "tokenizer",
        "shards",
        "block_shards",
        "packing",
        "num_windows",
    }
    status = json.loads((run / "status.json").read_text())
    assert status.keys() == {"state", "exit_code", "step", "time", "reason"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", status["time"])


def test_rows_have_the_keys_that_the_page_lists(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    must, may = keys_of_the_page("A training row")
    for row in rows:
        assert row["tokens"] == row["step"] * 4 * 32
        if "samples" in row:
            assert {"step", "tokens", "val/loss", "val/perplexity", "val/accuracy", "samples"} <= row.keys()
            assert math.isclose(row["val/perplexity"], math.exp(row["val/loss"]), rel_tol=1e-5)
        else:
            assert {"step", "tokens"} | must <= row.keys() <= {"step", "tokens"} | must | may


def test_files_of_a_run_are_those_that_the_page_lists(run: Path) -> None:
    listed = {name.rstrip("/") for name in re.findall(r"^\| `([\w.]+/?)` \|", section("## Run folder"), re.MULTILINE)}
    assert {file.name for file in run.iterdir()} <= listed


def test_a_digest_is_computed_from_a_batchs_arrays(run: Path) -> None:
    config = parse(["--config", str(run / "config.yaml")])
    recipe = choose_objective(config)[1]
    data = open_data(config, recipe)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    digests = {row["step"]: row["batch_digest"] for row in rows if "batch_digest" in row}
    for step in (1, 5):
        positions = np.arange((step - 1) * 4, step * 4)
        arrays = recipe.make_batch(data.train_stream.at(positions), None, config.seed)
        assert f"{digest(arrays, positions.tolist()):016x}" == digests[step]


def digest(arrays: dict[str, NDArray[Any]], positions: list[int]) -> int:
    """By the page, with Python's own integers."""
    total = 0
    for row, position in enumerate(positions):
        h = mix(position)
        for name in sorted(arrays):
            key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
            values = arrays[name][row].ravel().tolist()
            h = mix(h + sum(value * (mix(j + key) | 1) for j, value in enumerate(values)))
        total += h
    return total % (1 << 64)


def mix(x: int) -> int:
    x %= 1 << 64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
    x = (x ^ x >> 27) * 0x94D049BB133111EB % (1 << 64)
    return x ^ x >> 31


# ------------------------------------------------------------------------------------------------ the page itself


def section(heading: str) -> str:
    page = (Path(__file__).parent.parent / "docs/formats.md").read_text()
    return page[page.index(heading) :].split("\n## ")[0]


def keys_of_the_page(before: str) -> tuple[set[str], set[str]]:
    """Keys of the first table after some words: those that are always there, and the optional ones."""
    where = "## Checkpoint" if before == "state.json" else "## Metrics rows"
    text = section(where)
    table = text[text.index("| key | type | what |", text.index(before)) :].split("\n\n")[0]
    must, may = set(), set()
    for names, kind in re.findall(r"^\| (`.+?`) \| (.+?) \|", table, re.MULTILINE):
        (may if "optional" in kind else must).update(re.findall(r"`([^`]+)`", names))
    return must, may
