"""Checkpoints: a folder that is whole or not there, the same whatever the strategy that wrote it.

    step-000100/
      state.json                   step, position, fingerprint of the data, loss scale, metrics …
      shard-0000R.safetensors      rank R's part of weights, optimizer states and averages
      model/                       config and tokenizer, as transformers saves them
      manifest.json                size and SHA-256 of every file above

`folder` is what lies on the disk, `tensors` what lies in the shards, `states` a run's tensors, `saver` writes while training
goes on, `retention` says what is kept, `mirror` brings it elsewhere and back. Nothing is ever unpickled.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sslm.runs.checkpoints.folder import FORMAT, damage_of, found, name_of, newest_good, read_state, step_of
from sslm.runs.checkpoints.transaction import remove, seal, sweep

if TYPE_CHECKING:
    from sslm.runs.checkpoints.saver import Saver
    from sslm.runs.checkpoints.states import States
    from sslm.runs.checkpoints.tensors import Tensors, check_weights, read, read_weights, shapes_in

_HEAVY = {
    "Saver": "saver",
    "States": "states",
    "Tensors": "tensors",
    "check_weights": "tensors",
    "read": "tensors",
    "read_weights": "tensors",
    "shapes_in": "tensors",
}
"""What needs torch and transformers: loaded when first asked for."""

__all__ = [
    "FORMAT",
    "Saver",
    "States",
    "Tensors",
    "check_weights",
    "damage_of",
    "found",
    "name_of",
    "newest_good",
    "read",
    "read_state",
    "read_weights",
    "remove",
    "seal",
    "shapes_in",
    "step_of",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name in _HEAVY:
        return getattr(import_module(f"sslm.runs.checkpoints.{_HEAVY[name]}"), name)
    raise AttributeError(f"module 'sslm.runs.checkpoints' has no attribute {name!r}")
