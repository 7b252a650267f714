"""Checkpoints between different numbers of processes: real gloo ranks, sharded weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import LlamaConfig

from sslm.config import CheckpointConfig
from sslm.models.build import build
from sslm.models.head import LanguageModel
from sslm.parallel.parallelize import parallelize
from sslm.runs.checkpoints.buffer import ALIGNMENT, Buffer
from sslm.runs.checkpoints.folder import damage_of, name_of, newest_first
from sslm.runs.checkpoints.replicas import checksum
from sslm.runs.checkpoints.retention import expired
from sslm.runs.checkpoints.saver import Saver
from sslm.runs.checkpoints.states import States
from sslm.runs.checkpoints.tensors import pieces_of, read_tensors
from sslm.system.errors import RunFailed
from sslm.system.terminal import keep_libraries_quiet
from tests.support.processes import run_ranks

CONFIG: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "tie_word_embeddings": True,
}


def mesh_of(world: int) -> DeviceMesh:
    return init_device_mesh("cpu", (world, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))


def make(world: int) -> tuple[LanguageModel, torch.optim.Optimizer]:
    keep_libraries_quiet()
    network = LanguageModel(build(LlamaConfig(**CONFIG), "AutoModelForCausalLM", 0))
    parallelize(network, network.model, mesh_of(world) if world > 1 else None)
    return network, torch.optim.AdamW(network.parameters(), lr=1e-2)


def step(network: LanguageModel, optimizer: torch.optim.Optimizer) -> float:
    ids = torch.arange(34).reshape(2, 17) % 50
    loss = network(labels=ids[:, 1:], input_ids=ids[:, :-1]).sum() / 32
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def save(folder: Path, tensors: Any, step: int, group: dist.ProcessGroup | None = None) -> Path:
    return save_with(Saver(folder, group, lambda checkpoint: []), tensors, step)


def save_with(saver: Saver, tensors: Any, step: int) -> Path:
    saver.save(tensors, {"step": step, "position": step, "fingerprint": {}}, {"model/config.json": b"{}"})
    saver.wait()
    assert saver.newest is not None
    return saver.newest


def save_and_go_on(rank: int, world: int, folder: Path) -> None:
    network, optimizer = make(world)
    step(network, optimizer)
    group = dist.group.WORLD if world > 1 else None
    save(folder, States(network, optimizer).tensors(), 1, group)
    losses = [step(network, optimizer) for _ in range(3)]
    if rank == 0:
        (folder / f"losses-{world}.json").write_text(json.dumps(losses))


def load_and_go_on(rank: int, world: int, folder: Path, losses: list[float]) -> None:
    network, optimizer = make(world)
    States(network, optimizer).load(folder / "step-000001")
    assert [step(network, optimizer) for _ in range(3)] == pytest.approx(losses, abs=1e-6)


def fail_on_rank_1(rank: int, world: int, folder: Path) -> None:
    saver = Saver(folder, dist.group.WORLD, lambda checkpoint: [])
    tensors = States(*make(world)).tensors()
    save_with(saver, tensors, 1)
    if rank == 1:
        (folder / ".step-000002.tmp/shard-00001.safetensors").mkdir(parents=True)  # in the way of its file
    with pytest.raises((OSError, SafetensorError, RuntimeError), match="irectory" if rank else "rank 1 could not save"):
        save_with(saver, tensors, 2)
    save_with(saver, tensors, 3)


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"),
    [pytest.param(1, 2, marks=pytest.mark.slow), (2, 1), pytest.param(2, 3, marks=pytest.mark.slow)],
)
def test_any_number_of_ranks_goes_on_from_any_others(saved_by: int, loaded_by: int, tmp_path: Path) -> None:
    if saved_by == 1:
        save_and_go_on(0, 1, tmp_path)
    else:
        run_ranks(save_and_go_on, saved_by, tmp_path, tmp_path)
    losses = json.loads((tmp_path / f"losses-{saved_by}.json").read_text())
    if loaded_by == 1:
        load_and_go_on(0, 1, tmp_path, losses)
    else:
        run_ranks(load_and_go_on, loaded_by, tmp_path, tmp_path, losses)


def test_no_rank_waits_for_one_that_could_not_save(tmp_path: Path) -> None:
    run_ranks(fail_on_rank_1, 2, tmp_path, tmp_path / "checkpoints")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "latest",
        "step-000001",
        "step-000003",
    ]


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    save_and_go_on(0, 1, tmp_path)
    kinds = {file.suffix for file in (tmp_path / "step-000001").rglob("*") if file.is_file()}
    assert kinds == {".json", ".safetensors"}


def test_what_is_saved_is_of_the_moment_at_which_it_was_asked_for(tmp_path: Path) -> None:
    tensors = {"weight": torch.arange(1000.0), "step": torch.tensor(3.0)}
    saver = Saver(tmp_path, None, lambda checkpoint: [])
    state = {"position": 0, "fingerprint": {}}
    for step in (1, 2):
        saver.save(tensors, {"step": step, **state}, {})
        tensors["weight"] += 1  # training goes on
    saver.wait()
    for step in (1, 2):
        read = {"weight": torch.empty(1000), "step": torch.empty(())}
        read_tensors(tmp_path / name_of(step), read)
        assert read["weight"].tolist() == (torch.arange(1000.0) + step - 1).tolist()
        assert read["step"] == 3
    assert saver.longest_seconds is not None


def test_copies_lie_in_one_block_that_is_as_large_as_they_are_and_is_used_again() -> None:
    tensors = {
        "weight": torch.arange(48.0).view(6, 8).T,
        "bias": torch.ones(3, dtype=torch.bfloat16),
        "step": torch.tensor(7),
        "nothing": torch.empty(0, 4),
    }
    pieces = pieces_of(tensors)
    buffer = Buffer(pieces)
    for _ in range(2):
        copies = buffer.copied(pieces)
        assert all(torch.equal(copy.values, piece.values) for copy, piece in zip(copies, pieces, strict=True))
        [block] = {copy.values.untyped_storage().data_ptr() for copy in copies}
        assert block == buffer.block.data_ptr()
        tensors["weight"] += 1
    assert buffer.block.nbytes <= sum(piece.values.nbytes for piece in pieces) + len(pieces) * ALIGNMENT
    assert buffer.holds(pieces)
    assert not buffer.holds(pieces[1:])


def test_each_piece_is_written_by_one_of_those_that_hold_it_and_all_write_about_as_much(tmp_path: Path) -> None:
    run_ranks(share_out, 3, tmp_path, tmp_path)
    sizes = [(tmp_path / f"step-000001/shard-{rank:05d}.safetensors").stat().st_size for rank in range(3)]
    assert max(sizes) < 1.2 * min(sizes)
    read = {f"weight.{n}": torch.empty(100, 10) for n in range(9)}
    read_tensors(tmp_path / "step-000001", read)
    assert all((tensor == int(name[-1])).all() for name, tensor in read.items())


def share_out(rank: int, world: int, folder: Path) -> None:
    save(folder, {f"weight.{n}": torch.full((100, 10), float(n)) for n in range(9)}, 1, dist.group.WORLD)


def test_torchs_own_reader_knows_the_layout(tmp_path: Path) -> None:
    metadata = HuggingFaceStorageReader(str(save(tmp_path, {"weight": torch.ones(3, 4)}, 1))).read_metadata()
    assert metadata.state_dict_metadata["weight"].size == (3, 4)  # type: ignore[union-attr]


def test_best_and_nth_checkpoints_are_kept_beside_the_last(tmp_path: Path) -> None:
    metrics = {100: 3.0, 200: 2.0, 300: None, 400: 2.5, 500: 2.6, 600: 9.0}
    assert expired(metrics, 600, CheckpointConfig(keep_last=1)) == [100, 200, 300, 400, 500]
    assert expired(metrics, 600, CheckpointConfig(keep_last=2, keep_best=2)) == [100, 300]
    assert expired(metrics, 600, CheckpointConfig(keep_last=1, keep_best=1, best_is="highest")) == [
        100,
        200,
        300,
        400,
        500,
    ]
    assert expired(metrics, 600, CheckpointConfig(keep_last=1, keep_every_steps=300)) == [100, 200, 400, 500]
    assert expired(metrics, 400, CheckpointConfig(keep_last=1)) == [100, 200, 300]
    assert expired(metrics, 600, CheckpointConfig(keep_last=None)) == []


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "model/../../x", "a\\b"])
def test_a_manifest_that_leads_out_of_its_folder_is_damage(name: str, tmp_path: Path) -> None:
    checkpoint = save(tmp_path, {"weight": torch.ones(3)}, 1)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps(manifest | {name: {"bytes": 0, "sha256": ""}}))
    assert damage_of(checkpoint).startswith("no sound manifest.json (it names a file outside of the checkpoint")


def flip_a_bit(rank: int, world: int, folder: Path) -> None:
    tensors = {"weight": torch.arange(1000.0), "bias": torch.ones(10, dtype=torch.bfloat16), "step": torch.tensor(1.0)}
    saver = Saver(folder, dist.group.WORLD, lambda checkpoint: [])
    save_with(saver, tensors, 1)
    if rank == 1:
        tensors["weight"].view(torch.int32)[777] ^= 1 << 3
    with pytest.raises(RunFailed, match=r"drifted apart: weight differs on rank 1 of 0, 1, 2"):
        saver.save(tensors, {"step": 2}, {})


def test_a_flipped_bit_in_one_replica_is_found_before_a_checkpoint_is_written(tmp_path: Path) -> None:
    run_ranks(flip_a_bit, 3, tmp_path, tmp_path / "checkpoints")
    assert [path.name for path in newest_first(tmp_path / "checkpoints")] == ["step-000001"]


def test_every_bit_counts_in_a_checksum() -> None:
    values = torch.randn(257, generator=torch.Generator().manual_seed(0))
    for bit in range(32):
        for place in (0, 100, 256):
            changed = values.clone()
            changed.view(torch.int32)[place] ^= 1 << bit if bit < 31 else -(1 << 31)
            assert checksum(changed) != checksum(values)
    assert checksum(values[[1, 0, *range(2, 257)]]) != checksum(values)
