"""Checkpoints between different numbers of processes: real gloo ranks, sharded weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import LlamaConfig

from sslm import checkpoints
from sslm.models.build import build
from sslm.models.head import LanguageModel
from sslm.models.parallelize import parallelize
from sslm.terminal import keep_libraries_quiet
from tests.processes import run_ranks

CONFIG: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2,
    "tie_word_embeddings": True,
}  # fmt: skip


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


def save_files(folder: Path) -> None:
    folder.mkdir()


def save_and_go_on(rank: int, world: int, folder: Path) -> None:
    network, optimizer = make(world)
    step(network, optimizer)
    group = dist.group.WORLD if world > 1 else None
    checkpoints.save(folder, checkpoints.States(network, optimizer).tensors(), {"step": 1}, save_files, None, group)
    losses = [step(network, optimizer) for _ in range(3)]
    if rank == 0:
        (folder / f"losses-{world}.json").write_text(json.dumps(losses))


def load_and_go_on(rank: int, world: int, folder: Path, losses: list[float]) -> None:
    network, optimizer = make(world)
    checkpoints.States(network, optimizer).load(folder / "step-000001")
    assert [step(network, optimizer) for _ in range(3)] == pytest.approx(losses, abs=1e-6)


def fail_on_rank_0(rank: int, world: int, folder: Path) -> None:
    network, optimizer = make(world)

    def no_room(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises((OSError, RuntimeError), match="No space left" if rank == 0 else "rank 0 could not save"):
        checkpoints.save(
            folder, checkpoints.States(network, optimizer).tensors(), {"step": 2}, no_room, None, dist.group.WORLD
        )


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
    run_ranks(fail_on_rank_0, 2, tmp_path, tmp_path / "checkpoints")
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    save_and_go_on(0, 1, tmp_path)
    kinds = {file.suffix for file in (tmp_path / "step-000001").rglob("*") if file.is_file()}
    assert kinds == {".json", ".safetensors"}
