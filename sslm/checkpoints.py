"""Checkpoints on disk: a folder that is whole or not there, the same whatever the strategy that wrote it.

    step-000100/
      state.json                   step, position, fingerprint of the data
      shard-0000R-….safetensors    rank R's part of weights and optimizer states
      model/                       config and tokenizer, as transformers saves them
      manifest.json                size and SHA-256 of every file above

Tensors go through torch.distributed.checkpoint with its safetensors storage: any strategy and number of ranks reads any
other's, and nothing is ever unpickled.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from transformers import PreTrainedModel

from sslm.errors import UserError
from sslm.files import fsync, sha256_of, write_atomically
from sslm.models.head import LanguageModel

FORMAT = 1
_OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True, strict=False)

Tensors = dict[str, Any]


def name_of(step: int) -> str:
    return f"step-{step:06d}"


def found(folder: Path) -> list[Path]:
    """Checkpoints in a folder, newest first."""
    there = folder.iterdir() if folder.is_dir() else []
    return sorted((path for path in there if re.fullmatch(r"step-\d+", path.name)), key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def newest_good(folder: Path, tell: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are as they were written; others on the way are renamed, and told of."""
    for checkpoint in found(folder):
        if not (damage := damage_of(checkpoint)):
            return checkpoint
        aside = checkpoint.with_name(f"{checkpoint.name}.corrupt")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        tell(f"{checkpoint} is damaged ({damage}): set aside as {aside.name}")
    return None


def damage_of(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files; empty: nothing."""
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        files = {name: (was["bytes"], was["sha256"]) for name, was in manifest.items()}
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return "no sound manifest.json"
    for name, (size, digest) in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size or sha256_of(file) != digest:
            return f"{name} has changed"
    try:
        return (
            ""
            if {"format", "step", "position", "fingerprint"} <= read_state(checkpoint).keys()
            else "state.json lacks keys"
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):  # sound, but of a newer format: whoever reads it will say so
            return ""
        return "no sound state.json"


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's state.json.

    Raises:
        UserError: it is of a newer format.
    """
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text())
    if state["format"] > FORMAT:
        raise UserError(f"{checkpoint}: written by a newer sslm (format {state['format']}); upgrade to go on from it")
    return state


def step_of(checkpoint: Path | None) -> int:
    """The step at which a checkpoint was made; 0: there is none."""
    return int(read_state(checkpoint)["step"]) if checkpoint else 0


def check_weights(checkpoint: Path, model: PreTrainedModel) -> None:
    """Refuse a checkpoint of another model.

    Args:
        model: may be on the meta device; only names and shapes are compared.

    Raises:
        UserError: weights that one has and the other lacks, or whose shapes differ.
    """
    metadata = HuggingFaceStorageReader(str(checkpoint)).read_metadata().state_dict_metadata
    prefix = "model.model."
    has = {n.removeprefix(prefix): tuple(t.size) for n, t in metadata.items() if n.startswith(prefix)}  # type: ignore[union-attr]
    needs = {name: tuple(t.shape) for name, t in model.state_dict().items() if name not in tied_names(model)}
    if different := sorted(name for name in has.keys() | needs.keys() if has.get(name) != needs.get(name)):
        raise UserError(f"{checkpoint}: holds another model's weights ({len(different)} differ, {different[0]} first); give the "
                        f"--model flags it was made with, or another --run_dir")  # fmt: skip


def save(
    folder: Path,
    tensors: Tensors,
    state: dict[str, Any],
    save_model_files: Callable[[Path], None],
    keep_last: int | None,
    group: dist.ProcessGroup | None,
) -> Path:
    """Write a checkpoint; all ranks call it together, and none waits for one that failed.

    Args:
        folder: where checkpoints are kept.
        tensors: this rank's part of weights and optimizer states.
        state: what state.json holds; `step` names the checkpoint.
        save_model_files: writes config and tokenizer into a folder; called on rank 0.
        keep_last: how many to keep, this one included; None: all.
        group: a CPU process group of all ranks; None: there is one process.
    """
    final = folder / name_of(state["step"])
    part = folder / f".{final.name}.tmp"

    def begin() -> None:
        for left_over in folder.glob(".step-*.tmp"):
            shutil.rmtree(left_over, ignore_errors=True)
        part.mkdir(parents=True)

    def finish() -> None:
        save_model_files(part / "model")
        (part / "state.json").write_text(json.dumps({"format": FORMAT, **state}, indent=1) + "\n")
        _seal(part, final)
        for old in [c for c in found(folder) if _step(c) <= state["step"]][keep_last:] if keep_last else []:
            shutil.rmtree(old, ignore_errors=True)

    try:
        _on_first_rank(begin, group)
        _write_tensors(part, tensors)
        _on_first_rank(finish, group)
    except BaseException:
        if group is None or dist.get_rank() == 0:
            shutil.rmtree(part, ignore_errors=True)
        raise
    return final


def _on_first_rank(act: Callable[[], None], group: dist.ProcessGroup | None) -> None:
    """Act on rank 0; the others learn whether it went well, and raise if it did not."""
    failure: BaseException | None = None
    if group is None or dist.get_rank() == 0:
        try:
            act()
        except BaseException as error:
            failure = error
    if group is not None:
        failed = torch.tensor(int(failure is not None))
        dist.all_reduce(failed, group=group)
        if failed.item() and failure is None:
            raise RuntimeError("rank 0 could not save the checkpoint; its own message says why")
    if failure is not None:
        raise failure


def read(checkpoint: Path, tensors: Tensors, *, alone: bool = False) -> None:
    """Read tensors of a checkpoint into those given; all ranks call it together, or each `alone` for itself.

    Raises:
        UserError: it lacks one, or has another shape.
    """
    try:
        dcp_load(
            tensors,
            storage_reader=HuggingFaceStorageReader(str(checkpoint)),
            no_dist=alone or not dist.is_initialized(),
        )
    except CheckpointException as error:
        why = next(iter(error.failures.values()))[0]
        raise UserError(
            f"{checkpoint}: does not hold this model's weights ({' '.join(str(why).split())[:200]})"
        ) from error


class States:
    """Weights and optimizer states of a run as tensors by name, this rank's part of them; whatever Lightning's strategies make of
    them (plain tensors or DTensors)."""

    def __init__(self, network: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
        self.network, self.optimizer = network, optimizer

    def tensors(self) -> Tensors:
        return _model_tensors(self.network) | _optimizer_tensors(self.network, self.optimizer)

    def load(self, checkpoint: Path) -> None:
        """Read a checkpoint in place; all ranks call it together."""
        network, optimizer = self.network, self.optimizer
        model, states = _model_tensors(network), _optimizer_tensors(network, optimizer)
        tensors = model | states
        read(checkpoint, tensors)
        set_model_state_dict(network, _without("model.", {k: tensors[k] for k in model}), options=_OPTIONS)
        groups = {
            k: v for k, v in get_optimizer_state_dict(network, optimizer, options=_OPTIONS).items() if not _is_tensor(v)
        }
        set_optimizer_state_dict(
            network, optimizer, groups | _without("optim.", {k: tensors[k] for k in states}), options=_OPTIONS
        )


def read_weights(checkpoint: Path, shapes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint as whole tensors, without any process group.

    Args:
        shapes: the model's state dict (on the meta device will do); tied names are left out by the caller.
    """
    tensors = {f"model.model.{name}": torch.empty(t.shape, dtype=t.dtype) for name, t in shapes.items()}
    dcp_load(tensors, storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=True)
    return {name.removeprefix("model.model."): tensor for name, tensor in tensors.items()}


def tied_names(model: torch.nn.Module) -> set[str]:
    """Names of weights that are other weights' second name."""
    return set(getattr(model, "all_tied_weights_keys", None) or {})


def _model_tensors(network: LanguageModel) -> Tensors:
    tied = {f"model.{name}" for name in tied_names(network.model)}
    weights = get_model_state_dict(network, options=_OPTIONS)
    return {f"model.{name}": tensor for name, tensor in weights.items() if name not in tied}


def _optimizer_tensors(network: LanguageModel, optimizer: torch.optim.Optimizer) -> Tensors:
    states = get_optimizer_state_dict(network, optimizer, options=_OPTIONS)
    return {f"optim.{name}": value for name, value in states.items() if _is_tensor(value)}


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _without(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _write_tensors(folder: Path, tensors: Tensors) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        dcp_save(tensors, storage_writer=writer, no_dist=not dist.is_initialized())
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


def _seal(part: Path, final: Path) -> None:
    """Manifest, fsync, rename, `latest`: in this order, so that what has its final name is whole."""
    files = sorted(file for file in part.rglob("*") if file.is_file())
    manifest = {str(f.relative_to(part)): {"bytes": f.stat().st_size, "sha256": sha256_of(f)} for f in files}
    (part / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    for path in [*files, part / "manifest.json", *(p for p in part.rglob("*") if p.is_dir()), part]:
        fsync(path)
    shutil.rmtree(final, ignore_errors=True)
    os.rename(part, final)
    fsync(final.parent)
    write_atomically(final.parent / "latest", final.name + "\n")
