"""What Lightning's ModelCheckpoint keeps of an objective, in plain values, and the objective's arguments made of it."""

import json
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from sslm.config import AnomalyConfig, OptimConfig, RobustConfig
from sslm.data.stream.recipe import Recipe
from sslm.models.build import construct
from sslm.system.errors import UserError, one_line

SECTIONS = {"optim": OptimConfig, "robust": RobustConfig, "anomaly": AnomalyConfig}
KEY = "hyper_parameters"
"""Lightning's key for what a module was made of."""
AVERAGE, ANOMALY, PRUNING = "sslm_average", "sslm_anomaly", "sslm_pruning"
"""Our keys for the weights' average, for what anomalies are found by, and for what has been pruned."""
WEIGHTS = "network.model."


class Saved(NamedTuple):
    """A file of ModelCheckpoint."""

    objective: str
    """Name of the class."""
    config: PreTrainedConfig
    recipe: dict[str, Any]
    settings: dict[str, Any]
    """The objective's other arguments."""
    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor] | None
    """Of the weights, by name; None if the run has none."""


def plain(objective: str, config: PreTrainedConfig, recipe: Recipe, **settings: Any) -> dict[str, Any]:
    """Write down an objective's arguments without anything that would have to be unpickled."""
    sections = {name: asdict(value) if name in SECTIONS else value for name, value in settings.items()}
    return {
        "objective": objective,
        "model": config.to_json_string(use_diff=False),
        "recipe": asdict(recipe),
        "settings": sections,
    }


def read(file: str | Path) -> Saved:
    """Read a file of ModelCheckpoint; nothing in it is unpickled but tensors and plain values.

    Raises:
        UserError: it is something else.
    """
    if Path(file).is_dir():
        raise UserError(
            f"{file}: a folder, not a file of Lightning's ModelCheckpoint; a run's model is loaded by transformers, "
            f"from its export folder"
        )
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        kept = checkpoint[KEY]
        config = json.loads(kept["model"])
        settings = {
            name: SECTIONS[name](**value) if name in SECTIONS else value for name, value in kept["settings"].items()
        }
        state = checkpoint["state_dict"]
        weights = {name.removeprefix(WEIGHTS): tensor for name, tensor in state.items() if name.startswith(WEIGHTS)}
        model_config = CONFIG_MAPPING[config["model_type"]].from_dict(config)
        return Saved(kept["objective"], model_config, kept["recipe"], settings, weights, checkpoint.get(AVERAGE))
    except (UnpicklingError, EOFError, RuntimeError, KeyError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{file}: not what ModelCheckpoint keeps of an objective of sslm ({why})") from None


def model_of(saved: Saved, auto_class: str, strict: bool) -> PreTrainedModel:
    """Make the model, with the weights that were saved."""
    with torch.random.fork_rng(devices=[]):
        model = construct(saved.config, auto_class)
    model.load_state_dict(saved.weights, strict=strict)
    return model
