"""A smaller model that begins with some layers of a larger one (DistilBERT, Sanh et al. 2019, arXiv:1910.01108)."""

import copy
import re
from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from sslm.models.blocks import stacks
from sslm.system.errors import UserError, short

DEPTHS = ("num_hidden_layers", "num_decoder_layers", "decoder_layers")
"""Keys of a config that count layers, by the names that all architectures understand, and those of a second half."""
Layers = tuple[int, ...] | int
"""Numbers of layers, counted from 0, or every how many to take one."""


def parse_layers(text: str) -> Layers:
    """Parse what `--distill.from_layers` takes.

    Raises:
        UserError: it says something else.

    >>> parse_layers("0,2,4"), parse_layers("every 2")
    ((0, 2, 4), 2)
    """
    if found := re.fullmatch(r"every ([1-9][0-9]{0,5})", text.strip(), re.ASCII):
        return int(found[1])
    if re.fullmatch(r"[0-9]{1,6}(\s*,\s*[0-9]{1,6})*", text.strip(), re.ASCII):
        numbers = tuple(int(number) for number in text.split(","))
        if list(numbers) == sorted(set(numbers)):
            return numbers
    expected = "expected numbers of layers from 0 on, rising, such as 0,2,4, or every 2"
    raise UserError(f"--distill.from_layers {short(text)}: {expected}")


def student_config(teacher: PreTrainedConfig, layers: Layers) -> PreTrainedConfig:
    """Return the config of a model with these of the teacher's layers; of two halves with these of each.

    Raises:
        UserError: the teacher doesn't have so many.
    """
    config: Any = copy.deepcopy(teacher)
    for key in DEPTHS:
        if isinstance(depth := getattr(teacher, key, None), int):
            taken = _taken(layers, depth)
            setattr(config, key, len(taken))
            if key == DEPTHS[0] and isinstance(kinds := getattr(teacher, "layer_types", None), list):
                config.layer_types = [kinds[number] for number in taken]
    return config  # type: ignore[no-any-return]


def _taken(layers: Layers, depth: int) -> tuple[int, ...]:
    taken = tuple(range(0, depth, layers)) if isinstance(layers, int) else layers
    if taken[-1] >= depth:
        raise UserError(f"--distill.from_layers: there is no layer {taken[-1]}; the teacher has 0 to {depth - 1}")
    return taken


@torch.no_grad()
def layers_of(teacher: PreTrainedModel, layers: Layers) -> PreTrainedModel:
    """Make a model, in fp32, that has these of a teacher's layers and all that is outside of them.

    Raises:
        UserError: weights are not alike in all layers, or don't follow the config's depth.
    """
    with torch.random.fork_rng(devices=[]):
        student: PreTrainedModel = type(teacher)(student_config(teacher.config, layers))
    names = {module: name for name, module in teacher.named_modules()}
    depths = {names[stack]: len(stack) for stack in stacks(teacher)}
    places = {
        f"{name}.{number}.": f"{name}.{place}."
        for name, depth in depths.items()
        for place, number in enumerate(_taken(layers, depth))
    }
    theirs = teacher.state_dict()
    renamed = {_renamed(name, places, depths): tensor.float() for name, tensor in theirs.items()}
    renamed.pop("", None)
    ours = student.state_dict()
    alike = renamed.keys() == ours.keys() and all(renamed[name].shape == ours[name].shape for name in ours)
    if not places or not alike:
        other = sorted(renamed.keys() ^ ours.keys()) or ["shapes"]
        what = f"{teacher.config.model_type} can't be made of these layers ({other[0]} differs)"
        raise UserError(f"--distill.from_layers: {what}; take layer 0 too, or leave the flag out")
    student.load_state_dict(renamed)
    student.tie_weights()
    return student


def _renamed(name: str, places: dict[str, str], of_stacks: Iterable[str]) -> str:
    """A weight's name in the student; empty if its layer is not taken."""
    stack = next((stack for stack in of_stacks if name.startswith(f"{stack}.")), None)
    if stack is None:
        return name
    number = name.removeprefix(f"{stack}.").partition(".")[0]
    old = f"{stack}.{number}."
    return places[old] + name.removeprefix(old) if old in places else ""
