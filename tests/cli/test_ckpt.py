"""sslm ckpt: checkpoints of a real run, of real ranks, damaged ones and malicious ones, by the command line."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from sslm import __main__ as front
from sslm import train
from sslm.cli import export, plan
from sslm.cli.ckpt import main
from sslm.cli.ckpt.reshard import divided
from sslm.runs.checkpoints import shards as chunks
from sslm.runs.checkpoints.folder import damage_of, name_of, newest_first
from sslm.runs.checkpoints.shards import Stored, index
from sslm.runs.checkpoints.tensors import read_tensors
from sslm.runs.folder import RunFolder
from sslm.system.errors import UserError
from sslm.system.files import sha256_of
from tests.support.files import flip
from tests.support.processes import run_command, run_ranks

Captured = pytest.CaptureFixture[str]
STATE = {"format": 1, "sslm": "0.1.0", "step": 7, "position": 28, "fingerprint": {}}


@pytest.fixture(scope="module")
def trained(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps with checkpoints of steps 4 and 8; not to be written to."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert train.main([*tiny, "--run_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """The same, a copy for one test."""
    return shutil.copytree(trained, tmp_path / "run")


def of_step(run: Path, step: int) -> Path:
    return run / "checkpoints" / name_of(step)


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "even": torch.randn(8, 6, generator=generator),
        "uneven": torch.randn(7, 5, generator=generator),
        "single": torch.randn(1, generator=generator),
        "deep": torch.randn(5, 3, 4, generator=generator).to(torch.bfloat16),
        "ids": torch.randint(-9, 9, (9,), generator=generator),
        "flags": torch.rand(5, generator=generator) > 0.5,
        "step": torch.tensor(7.0),
    }


def seal(checkpoint: Path, **more: Any) -> Path:
    """Make a folder of shards a checkpoint, as a saving run would; again after it was tampered with."""
    (checkpoint / "model").mkdir(exist_ok=True)
    if not (checkpoint / "state.json").exists():
        (checkpoint / "state.json").write_text(json.dumps({**STATE, **more}))
    files = [f for f in checkpoint.rglob("*") if f.is_file() and f.name != "manifest.json"]
    manifest = {str(f.relative_to(checkpoint)): {"bytes": f.stat().st_size, "sha256": sha256_of(f)} for f in files}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return checkpoint


def made(checkpoint: Path, tensors: dict[str, torch.Tensor], **more: Any) -> Path:
    """A checkpoint of one shard."""
    checkpoint.mkdir(parents=True)
    save_file(tensors, checkpoint / "shard-00000.safetensors")
    return seal(checkpoint, **more)


def save_with_torch(rank: int, world: int, checkpoint: Path) -> None:
    """torch's own writer, with rows shared out (evenly or not, or fewer than ranks), columns, and replicas."""
    mesh = init_device_mesh("cpu", (world,))
    placements = {"even": Shard(0), "uneven": Shard(0), "single": Shard(0), "deep": Shard(1), "ids": Replicate()}
    tensors = {
        name: distribute_tensor(tensor, mesh, [placements[name]]) if name in placements else tensor
        for name, tensor in some_tensors().items()
    }
    dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(checkpoint), save_distributed=True))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`some_tensors` by two ranks; not to be written to."""
    folder = tmp_path_factory.mktemp("sharded")
    run_ranks(save_with_torch, 2, folder, folder / "step-000007", timeout=120)
    return seal(folder / "step-000007")


def in_grid(tensor: torch.Tensor, rows: list[int], columns: list[int]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Offsets and values of each cell, as fsdp_tp has them."""
    for row, strip in zip([0, *rows], tensor.tensor_split(rows), strict=True):
        for column, cell in zip([0, *columns], strip.tensor_split(columns, dim=1), strict=True):
            yield [row, column], cell.contiguous()


def read_by_torch(checkpoint: Path) -> dict[str, torch.Tensor]:
    tensors = {name: torch.zeros_like(tensor) for name, tensor in some_tensors().items()}
    read_tensors(checkpoint, tensors)
    return tensors


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def table(text: str) -> dict[str, str]:
    """The lines of `ls` by name."""
    return {line.split()[0]: line for line in text.splitlines()}


# ------------------------------------------------------------------------------------------------ ls


def test_the_front_door_knows_the_verb(run: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["sslm", "ckpt", "ls", str(run)])
    assert front.main() == 0
    assert "step-000008" in capsys.readouterr().out


def test_ls_tells_steps_tokens_sizes_and_which_is_the_latest(run: Path, capsys: Captured) -> None:
    assert main(["ls", str(run)]) == 0
    lines = table(capsys.readouterr().out)
    assert list(lines) == ["name", "step-000004", "step-000008"]
    assert lines["step-000008"].split()[1:3] == ["8", "1.02k"]  # 4 sequences a step, of 32 tokens
    assert "latest" in lines["step-000008"]
    assert "latest" not in lines["step-000004"]
    assert main(["ls", str(run / "checkpoints")]) == 0
    assert table(capsys.readouterr().out) == lines


def test_ls_tells_the_best_by_the_metric_that_the_run_was_given(tmp_path: Path, capsys: Captured) -> None:
    for step, loss in ((1, 3.5), (2, 3.25), (3, float("nan"))):
        made(of_step(tmp_path, step), some_tensors(), step=step, metrics={"val/accuracy": step / 10, "val/loss": loss})
    main(["ls", str(tmp_path)])
    lines = table(capsys.readouterr().out)
    assert "val/loss 3.2500" in lines["step-000002"]
    assert ["best" in lines[f"step-00000{step}"] for step in (1, 2, 3)] == [False, True, False]
    (tmp_path / "config.yaml").write_text("checkpoint: {best_metric: val/accuracy, best_is: highest}\n")
    main(["ls", str(tmp_path)])
    lines = table(capsys.readouterr().out)
    assert ["best" in lines[f"step-00000{step}"] for step in (1, 2, 3)] == [False, False, True]


def test_ls_tells_of_what_is_set_aside_left_over_or_cut_short(run: Path, capsys: Captured) -> None:
    shutil.copytree(of_step(run, 4), run / "checkpoints/step-000002.corrupt")
    (run / "checkpoints/.step-000012.tmp").mkdir()
    (run / "checkpoints/.step-000001.old").mkdir()
    shard = next(of_step(run, 8).glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    (of_step(run, 4) / "state.json").write_text("[1")
    assert main(["ls", str(run)]) == 0
    lines = table(capsys.readouterr().out)
    assert "half-removed" in lines[".step-000001.old"]
    assert "corrupt, set aside" in lines["step-000002.corrupt"]
    assert "no sound state.json" in lines["step-000004"]
    now = shard.stat().st_size
    assert f"{shard.name} has {now} bytes instead of {now + 1}" in lines["step-000008"]
    assert "half-written" in lines[".step-000012.tmp"]


# ------------------------------------------------------------------------------------------------ verify


def test_a_run_as_it_was_written_is_good(run: Path, sharded: Path, capsys: Captured) -> None:
    assert main(["verify", str(run), str(sharded)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [": good (" in line for line in lines] == [True] * 3


@pytest.mark.parametrize("pattern", ["*.safetensors", "state.json", "model/config.json"])
def test_a_flipped_bit_in_any_file_is_found_and_named_and_nothing_is_renamed(
    pattern: str, run: Path, capsys: Captured
) -> None:
    file = next(of_step(run, 4).glob(pattern))
    flip(file, file.stat().st_size // 2)
    before = contents(run)
    assert main(["verify", str(run)]) == 1
    bad, good = capsys.readouterr().out.splitlines()
    assert f"DAMAGED: {file.relative_to(of_step(run, 4))} has changed" in bad
    assert ": good (" in good
    assert contents(run) == before


def test_commands_that_read_skip_a_damaged_checkpoint_and_leave_the_run_as_it_is(
    run: Path, tiny: list[str], tmp_path: Path, capsys: Captured
) -> None:
    flip(of_step(run, 8) / "shard-00000.safetensors")
    before = {path: path.stat().st_mtime_ns for path in [run, *run.rglob("*")]}
    assert export.main([str(run), "--out", str(tmp_path / "exported")]) == 0
    said = capsys.readouterr().out
    assert f"{of_step(run, 8)} is damaged (shard-00000.safetensors has changed): skipped" in said
    assert f"{of_step(run, 4)} -> {tmp_path / 'exported'}" in said
    assert main(["ls", str(run)]) == 0
    assert main(["verify", str(run)]) == 1
    assert main(["diff", str(of_step(run, 4)), str(of_step(run, 8))]) == 1
    assert plan.main([*tiny, "--run_dir", str(run)]) == 0
    assert {path: path.stat().st_mtime_ns for path in [run, *run.rglob("*")]} == before


def test_missing_shortened_and_unknown_files_are_named(run: Path, capsys: Captured) -> None:
    checkpoint = of_step(run, 8)
    (checkpoint / "notes.txt").write_text("mine")
    assert main(["verify", str(checkpoint)]) == 0
    assert "good" in (line := capsys.readouterr().out)
    assert "not in its manifest: notes.txt" in line
    (checkpoint / "model/config.json").unlink()
    shard = next(checkpoint.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-5])
    assert main(["verify", str(checkpoint)]) == 1
    line = capsys.readouterr().out
    assert "model/config.json is missing" in line
    assert f"{shard.name} has {shard.stat().st_size} bytes instead of {shard.stat().st_size + 5}" in line
    (checkpoint / "manifest.json").unlink()
    assert main(["verify", str(checkpoint)]) == 1
    assert "no sound manifest.json" in capsys.readouterr().out


def test_a_checkpoint_of_a_shard_too_few_is_damaged_whatever_its_manifest_says(
    sharded: Path, tmp_path: Path, capsys: Captured
) -> None:
    checkpoint = shutil.copytree(sharded, tmp_path / "step-000007")
    min(checkpoint.glob("*.safetensors")).unlink()
    seal(checkpoint)
    assert main(["verify", str(checkpoint)]) == 1
    assert "leave gaps, or overlap" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ diff


def test_what_two_ranks_wrote_is_identical_to_what_one_did(sharded: Path, tmp_path: Path, capsys: Captured) -> None:
    one = made(tmp_path / "step-000007", some_tensors())
    assert len(list(sharded.glob("*.safetensors"))) == 2
    assert main(["diff", str(one), str(sharded)]) == 0
    assert capsys.readouterr().out == "identical (7 tensors)\n"


def test_cells_of_rows_and_columns_are_identical_to_the_whole_and_must_fill_it(
    tmp_path: Path, capsys: Captured
) -> None:
    tensor = torch.arange(42.0).view(7, 6)
    one = made(tmp_path / "one", {"x": tensor})
    cells = list(in_grid(tensor, [2, 4], [1, 5]))
    shifted = [([0, 0], tensor[:2]), ([1, 0], tensor[:3]), ([5, 0], tensor[:2])]
    for name, there, code in (
        ("all", cells, 0),
        ("gap", cells[:4] + cells[5:], 2),
        ("gap at the edge", cells[:5] + cells[6:], 2),
        ("twice", [*cells, cells[4]], 2),
        ("gap and overlap", shifted, 2),
    ):
        checkpoint = tmp_path / name
        checkpoint.mkdir()
        for number, (offsets, cell) in enumerate(there):
            info = {"DCP_SHARDING_INFO": json.dumps({"x": {"saved_offsets": offsets}})}
            save_file({"x": cell}, checkpoint / f"shard-{number:05d}.safetensors", info)
        assert main(["diff", str(one), str(seal(checkpoint))]) == code, name
    assert "identical (1 tensor)" in (said := capsys.readouterr()).out
    assert said.err.count("the chunks of x leave gaps, or overlap") == 4


def test_diff_tells_what_differs_in_state_files_shapes_and_values(tmp_path: Path, capsys: Captured) -> None:
    tensors = some_tensors()
    a = made(tmp_path / "a", tensors, notes={"seed": 1, "same": [1]})
    other = {
        **tensors,
        "even": tensors["even"].clone(),
        "single": tensors["single"] * 2,
        "deep": tensors["deep"].float(),
    }
    other["even"][7, 5] += 8
    other["even"][0, 0] += 4
    other["new"] = other.pop("ids")
    b = made(tmp_path / "b", other, notes={"seed": 2, "same": [1]}, step=8)
    (b / "model/config.json").write_text("{}")
    assert main(["diff", str(a), str(b)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:6] == [
        "state.json: step: 7 | 8",
        "state.json: notes.seed: 1 | 2",
        "only in B: model/config.json",
        "only in A: ids I64 [9]",
        "only in B: new I64 [9]",
        "deep: BF16 [5, 3, 4] | F32 [5, 3, 4]",
    ]
    assert lines[6] == "2 of 5 tensors with other values:"
    assert lines[8].split() == ["8", "2", "of", "48", "even"]
    assert lines[9].split()[1:] == ["1", "of", "1", "single"]


def test_values_are_compared_bit_by_bit(tmp_path: Path, capsys: Captured) -> None:
    a = made(tmp_path / "a", {"x": torch.tensor([float("nan"), 0.0, 1.0])})
    assert main(["diff", str(a), str(a)]) == 0
    minus_zero = made(tmp_path / "b", {"x": torch.tensor([float("nan"), -0.0, 1.0])})
    assert main(["diff", str(a), str(minus_zero)]) == 1
    assert capsys.readouterr().out.split()[-5:] == ["0", "1", "of", "3", "x"]
    nan = made(tmp_path / "c", {"x": torch.tensor([float("nan"), 9.0, float("nan")])})
    assert main(["diff", str(a), str(nan)]) == 1
    assert capsys.readouterr().out.split()[-5:] == ["nan", "2", "of", "3", "x"]


def test_the_first_twenty_are_shown_largest_first_and_the_others_counted(tmp_path: Path, capsys: Captured) -> None:
    a = made(tmp_path / "a", {f"x{n:02d}": torch.zeros(2) for n in range(30)})
    b = made(tmp_path / "b", {f"x{n:02d}": torch.full((2,), float(n)) for n in range(30)})
    assert main(["diff", str(a), str(b)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[2:22]] == [f"x{n}" for n in range(29, 9, -1)]
    assert (lines[0], lines[-1]) == ("29 of 30 tensors with other values:", "… and 9 more")


def test_a_run_stands_for_its_newest_checkpoint(run: Path, capsys: Captured) -> None:
    assert main(["diff", str(run), str(of_step(run, 8))]) == 0
    assert main(["diff", str(of_step(run, 4)), str(run)]) == 1
    assert "state.json: step: 4 | 8" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ reshard


@pytest.fixture
def _in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these tensors take several."""
    monkeypatch.setattr(chunks, "BLOCK_BYTES", 50)


@pytest.mark.usefixtures("_in_small_blocks")
@pytest.mark.parametrize("num_shards", [1, 2, 5, 9])
def test_torch_reads_the_same_tensors_from_any_number_of_files(num_shards: int, sharded: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["reshard", str(sharded), "--shards", str(num_shards), "--out", str(out)]) == 0
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) == num_shards
    data = [shard.stat().st_size - 8 - int.from_bytes(shard.read_bytes()[:8], "little") for shard in shards]
    assert max(data) - min(data) <= 48  # two rows
    for shard in shards:
        header, _ = header_of(shard)
        for name, tensor in some_tensors().items():
            assert name not in header or header[name]["data_offsets"][0] % tensor.element_size() == 0  # aligned
    assert damage_of(out) == ""
    for name, tensor in read_by_torch(out).items():
        assert torch.equal(tensor, some_tensors()[name]), name
    assert main(["diff", str(sharded), str(out)]) == 0
    if num_shards == 1:
        with safe_open(shards[0], "pt") as file:
            assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in some_tensors().items())


def test_a_run_goes_on_from_a_resharded_checkpoint_as_from_the_original(
    trained: Path, tiny: list[str], tmp_path: Path
) -> None:
    assert main(["reshard", str(of_step(trained, 4)), "--shards", "6", "--out", str(tmp_path / "six")]) == 0
    resumed = tmp_path / "resumed"
    assert train.main([*tiny, "--run_dir", str(resumed), "--resume", str(tmp_path / "six")]) == 0
    assert main(["diff", str(trained), str(resumed)]) == 0


def test_reshard_leaves_nothing_behind_when_it_cannot(sharded: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "here/out"
    assert main(["reshard", str(sharded), "--shards", "1000", "--out", str(out)]) == 2
    assert "give fewer" in capsys.readouterr().err
    damaged = shutil.copytree(sharded, tmp_path / "damaged")
    flip(next(damaged.glob("*.safetensors")), -1)
    assert main(["reshard", str(damaged), "--shards", "2", "--out", str(out)]) == 2
    assert "is damaged" in capsys.readouterr().err
    stranger = shutil.copytree(sharded, tmp_path / "stranger")
    save_file({"stranger": torch.ones(2)}, stranger / "more.safetensors")
    assert main(["reshard", str(stranger), "--shards", "2", "--out", str(out)]) == 2
    assert "more.safetensors is not in its manifest" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    assert main(["reshard", str(sharded), "--shards", "2", "--out", str(tmp_path / "taken")]) == 2
    assert main(["reshard", str(sharded), "--shards", "0", "--out", str(out)]) == 2
    assert not out.exists()
    assert not list(tmp_path.rglob("*.tmp"))


@given(shapes=st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=12), num_shards=st.integers(1, 12))
def test_each_row_is_in_one_file_and_each_file_has_a_fair_share(shapes: list[list[int]], num_shards: int) -> None:
    tensors = {str(i): Stored(str(i), "F32", tuple(shape), ()) for i, shape in enumerate(shapes)}
    try:
        shards = divided(tensors, num_shards)
    except UserError:
        return
    for name, tensor in tensors.items():
        slabs = [slab for shard in shards for slab in shard if slab.of.name == name]
        assert [row for slab in slabs for row in range(slab.begin, slab.end)] == list(range(tensor.num_rows))
    sizes = [sum((slab.end - slab.begin) * slab.of.row_bytes for slab in shard) for shard in shards]
    share, row = sum(sizes) / num_shards, max(tensor.row_bytes for tensor in tensors.values())
    assert all(abs(size - share) <= row for size in sizes)
    assert all(len({slab.of.name for slab in shard}) == len(shard) for shard in shards)


@pytest.mark.slow
def test_a_tensor_larger_than_the_memory_that_is_taken(tmp_path: Path) -> None:
    a = made(tmp_path / "a", {"large": torch.arange(1 << 26).view(-1, 1024)})  # 537 MB
    script = """
import resource, sys
from sslm.cli.ckpt import main
import sslm.cli.ckpt.diff, sslm.cli.ckpt.reshard
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert main(["reshard", sys.argv[1], "--shards", "2", "--out", sys.argv[2]]) == 0
assert main(["diff", sys.argv[1], sys.argv[2]]) == 0
print("MB:", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    done = run_command(["-c", script, str(a), str(tmp_path / "b")])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("MB:")[1]) < 250


# ------------------------------------------------------------------------------------------------ rm


def test_rm_takes_steps_and_names(run: Path, capsys: Captured) -> None:
    shutil.copytree(of_step(run, 4), run / "checkpoints/step-000002.corrupt")
    (run / "checkpoints/.step-000012.tmp").mkdir()
    assert main(["rm", str(run), "4", "step-000002.corrupt", ".step-000012.tmp"]) == 0
    assert "step-000004 removed (" in capsys.readouterr().out
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-000008", "latest"}
    assert main(["verify", str(run)]) == 0


def test_the_newest_good_one_stays_unless_forced_and_latest_is_true(run: Path, capsys: Captured) -> None:
    assert main(["rm", str(run), "8"]) == 2
    assert "step-000008 is the newest good checkpoint" in capsys.readouterr().err
    assert of_step(run, 8).is_dir()
    assert main(["rm", str(run), "8", "--force"]) == 0
    assert (run / "checkpoints/latest").read_text() == "step-000004\n"
    assert main(["rm", str(run), "4", "--force"]) == 0
    assert list((run / "checkpoints").iterdir()) == []


def test_a_damaged_newest_one_does_not_count(run: Path, capsys: Captured) -> None:
    flip(next(of_step(run, 8).glob("*.safetensors")), -1)
    assert main(["rm", str(run), "--keep_last", "1"]) == 2
    assert "step-000004 is the newest good checkpoint" in capsys.readouterr().err
    assert main(["rm", str(run), "8"]) == 0
    assert (run / "checkpoints/latest").read_text() == "step-000004\n"


def test_keep_last_keeps_the_last(run: Path, capsys: Captured) -> None:
    assert main(["rm", str(run), "--keep-last", "2"]) == 0
    assert "nothing to remove" in capsys.readouterr().out
    assert main(["rm", str(run), "--keep_last", "1"]) == 0
    assert newest_first(run / "checkpoints") == [of_step(run, 8)]


def test_nothing_is_removed_while_the_run_trains(run: Path, capsys: Captured) -> None:
    with RunFolder(run).locked():
        assert main(["rm", str(run), "4"]) == 2
    assert "this run is training" in capsys.readouterr().err
    assert of_step(run, 4).is_dir()


@pytest.mark.parametrize("arguments", [[], ["4", "--keep_last", "1"], ["--keep_last", "0"], ["5"], ["../run"], ["²"]])
def test_rm_refuses_what_is_not_there_in_a_sentence(arguments: list[str], run: Path, capsys: Captured) -> None:
    before = contents(run)
    assert main(["rm", str(run), *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert contents(run) == before


@pytest.mark.parametrize("verb", [["ls"], ["verify"], ["rm", "--keep_last", "1"], ["diff", "."]])
def test_a_folder_without_checkpoints_is_refused_in_a_sentence(
    verb: list[str], tmp_path: Path, capsys: Captured
) -> None:
    assert main([*verb, str(tmp_path)]) == 2
    assert "run folder" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ malice and decay


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "model/../../secret", "link/secret", "model/link"])
def test_a_manifest_that_leads_out_of_the_checkpoint_is_refused(name: str, tmp_path: Path, capsys: Captured) -> None:
    secret = tmp_path / "secret"
    secret.write_text("mine")
    a = made(tmp_path / "a", some_tensors())
    (a / "link").symlink_to(tmp_path)
    (a / "model/link").symlink_to(secret)
    manifest = json.loads((a / "manifest.json").read_text())
    manifest[name] = {"bytes": 4, "sha256": sha256_of(secret)}
    (a / "manifest.json").write_text(json.dumps(manifest))
    assert main(["verify", str(a)]) == 1
    assert "outside of the checkpoint" in capsys.readouterr().out
    assert main(["reshard", str(a), "--shards", "1", "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def header_of(shard: Path) -> tuple[dict[str, Any], bytes]:
    whole = shard.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:end]), whole[end:]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"shape": [1 << 62, 6]}, "not a sound safetensors file"),
        ({"shape": [-8, -6]}, "not a sound safetensors file"),
        ({"shape": [8.0, 6]}, "not a sound safetensors file"),
        ({"dtype": "F4096"}, "not a sound safetensors file"),
        ({"dtype": ["F32"]}, "not a sound safetensors file"),
        ({"data_offsets": [1 << 40, 1 << 41]}, "not a sound safetensors file"),
        ({"data_offsets": [0]}, "not a sound safetensors file"),
        ({"shape": [1] * 1000}, "not a sound safetensors file"),
    ],
)
def test_sizes_and_offsets_that_are_nonsense_are_told(
    entry: dict[str, Any], said: str, tmp_path: Path, capsys: Captured
) -> None:
    a = made(tmp_path / "a", {"even": some_tensors()["even"]})
    (shard,) = a.glob("*.safetensors")
    header, data = header_of(shard)
    header["even"].update(entry)
    text = json.dumps(header).encode()
    shard.write_bytes(len(text).to_bytes(8, "little") + text + data)
    seal(a)
    assert main(["verify", str(a)]) == 1
    assert said in capsys.readouterr().out
    assert main(["diff", str(a), str(a)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, "9" * 5000, "null", '"x"', "{}", "\xff"]
)
@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_json_that_is_nonsense_is_told(name: str, text: str, tmp_path: Path, capsys: Captured) -> None:
    a = made(tmp_path / "a/checkpoints/step-000007", some_tensors())
    (a / name).write_text(text, encoding="latin-1")
    if name != "manifest.json":
        seal(a)
    assert main(["verify", str(a)]) == 1
    assert main(["ls", str(tmp_path / "a")]) == 0
    assert name.removesuffix(".json") in capsys.readouterr().out


def test_names_do_not_steer_the_terminal(tmp_path: Path, capsys: Captured) -> None:
    a = made(tmp_path / "a", {"\x1b[2Jx": torch.ones(2)})
    b = made(tmp_path / "b", {"\x1b[2Jx": torch.zeros(2)}, **{"\x1b[2Jkey": 1})
    (b / "\x1b[2Jfile").write_text("")
    assert main(["diff", str(a), str(b)]) == 1
    assert main(["verify", str(b)]) == 0
    assert "\x1b" not in (out := capsys.readouterr().out)
    assert out.count("\\x1b[2J") == 4


def test_numbers_too_large_to_be_true_are_left_out(tmp_path: Path, capsys: Captured) -> None:
    made(of_step(tmp_path, 7), some_tensors(), step=10**400, position=10**400, metrics={"val/loss": 10**400})
    (tmp_path / "config.yaml").write_text("seq_len: 32\n")
    assert main(["ls", str(tmp_path)]) == 0
    assert table(capsys.readouterr().out)["step-000007"].split()[1:3] == ["-"] * 2


def tampered(file: Path, dice: random.Random) -> None:
    """Change a few bytes of a JSON file, or of a shard's header."""
    whole = bytearray(file.read_bytes())
    end = min(8 + int.from_bytes(whole[:8], "little"), len(whole)) if file.suffix == ".safetensors" else len(whole)
    for _ in range(dice.choice((1, 1, 2, 5))):
        at = dice.randrange(end)
        match dice.randrange(4):
            case 0:
                whole[at] ^= 1 << dice.randrange(8)
            case 1:
                whole[at] = dice.choice(b'0123456789[]{},:"-.e ')
            case 2:
                whole[at : at + dice.randrange(1, 9)] = b""
            case 3:
                whole[at:at] = bytes(dice.choice(b'0123456789[]{},:"-.e') for _ in range(dice.randrange(1, 5)))
        end = max(min(end, len(whole)), 1)
    file.write_bytes(whole)


@pytest.mark.parametrize("seed", range(4))
def test_no_tampered_file_ends_in_a_traceback(seed: int, sharded: Path, tmp_path: Path, capsys: Captured) -> None:
    dice, codes = random.Random(seed), set()
    sound = made(tmp_path / "sound", some_tensors(), metrics={"val/loss": 3.0})
    for trial in range(20):
        a = shutil.copytree(dice.choice((sharded, sound)), tmp_path / f"{trial}/checkpoints/step-000007")
        file = dice.choice([f for f in a.rglob("*") if f.is_file()])
        tampered(file, dice)
        if file.name != "manifest.json":
            seal(a)
        assert main(["ls", str(a)]) == 0
        codes.add(main(["verify", str(a)]))
        codes.add(main(["diff", str(a), str(sound)]))
        codes.add(main(["reshard", str(a), "--shards", "3", "--out", str(tmp_path / f"{trial}/out")]))
    assert codes <= {0, 1, 2}
    assert {1, 2} <= codes


def test_what_the_index_takes_is_what_safetensors_takes(sharded: Path) -> None:
    names = set()
    for shard in sharded.glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            names |= set(file.keys())
    assert index(sharded).keys() == names == some_tensors().keys()
