"""What goes as a whole: heads, neurons, layers; and where each stands in a model's weights.

Nothing here knows an architecture: a model of one unit less is built on the meta device, and the shapes that differ
tell. See docs/prune.md, 'Heads, neurons, layers'.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from sslm.models.architecture import HALVES
from sslm.models.blocks import is_block
from sslm.system.errors import UserError

NEURONS = ("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "d_ff", "n_inner", "hidden_dim")
HEADS = (("num_attention_heads", "num_key_value_heads"), ("encoder_attention_heads",), ("decoder_attention_heads",))
LAYERS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers")
"""Names that configs have for these numbers."""


class Size(NamedTuple):
    """A number of a config that can be smaller."""

    pattern: str
    """What it counts: heads, neurons, or layers."""
    part: str
    """The half of an encoder–decoder whose config has it, or empty."""
    per_unit: dict[str, int]
    """Key -> what it loses with each unit."""
    number: int
    """Units there are."""

    @property
    def words(self) -> str:
        return " and ".join(f"{self.part}.{key}".removeprefix(".") for key in self.per_unit)


class Place(NamedTuple):
    """Where units stand in a weight: along `dim`, in `chunks` parts that each have all units; or the whole is one."""

    number: int
    dim: int = 0
    chunks: int = 1
    whole: int | None = None
    """Number of the unit that the whole weight belongs to."""

    def sums(self, scores: Tensor) -> Tensor:
        """[number] sum of each unit's scores."""
        if self.whole is not None:
            return (
                torch.zeros(self.number, device=scores.device).index_fill(0, _at(self.whole, scores), 1) * scores.sum()
            )
        others = [dim for dim in range(scores.ndim) if dim != self.dim]
        along = scores.sum(others) if others else scores
        return along.reshape(self.chunks, self.number, -1).sum((0, 2))

    def of_weight(self, kept: Tensor, shape: torch.Size) -> Tensor:
        """Mark what stays of a weight of this shape if the units `kept` ([number], bool) stay."""
        if self.whole is not None:
            return kept[self.whole].expand(shape)
        along = self.along(kept, shape[self.dim])
        return along.reshape([-1 if dim == self.dim else 1 for dim in range(len(shape))]).expand(shape)

    def along(self, kept: Tensor, length: int) -> Tensor:
        """[length] what stays along the dimension."""
        return kept.repeat_interleave(length // (self.chunks * self.number)).repeat(self.chunks)


def _at(number: int, like: Tensor) -> Tensor:
    return torch.tensor([number], device=like.device)


class Group(NamedTuple):
    """Alike units of which the least go: a block's neurons, or heads; an encoder's or a decoder's layers."""

    name: str
    size: Size
    places: dict[str, Place]
    """Name of a weight -> where units stand in it."""


def groups(model: PreTrainedModel, pattern: str) -> list[Group]:
    """Find a model's units of a pattern: heads, neurons or layers. Nothing of it is read but config and shapes.

    Raises:
        UserError: no config can say that there are fewer.
    """
    found = find_groups(model, pattern)
    if not found:
        kind = model.config.model_type
        others = ", ".join(other for other in ("neurons", "layers", "unstructured") if other != pattern)
        why = f"the config of {kind} has no number of {pattern} that could be smaller with all else as it is"
        raise UserError(f"prune.pattern {pattern}: {why}; give {others}")
    return found


def find_groups(model: PreTrainedModel, pattern: str) -> list[Group]:
    """Find a model's units as `groups` does; none if no config can say that there are fewer."""
    return [group for size in sizes(model.config, pattern) for group in _groups_of(model, size)]


def sizes(config: PreTrainedConfig, pattern: str) -> Iterator[Size]:
    """Numbers in a config, and in those of its halves, that count a pattern's units."""
    for part, own in [("", config), *((half, getattr(config, half, None)) for half in HALVES)]:
        if not isinstance(own, PreTrainedConfig):
            continue
        names = HEADS if pattern == "heads" else tuple((key,) for key in (NEURONS if pattern == "neurons" else LAYERS))
        seen: set[str] = set()
        for keys in names:
            canonical = [own.attribute_map.get(key, key) for key in keys]
            numbers = {key: number for key in canonical if isinstance(number := _number(own, key), int) and number > 0}
            if numbers and not seen & set(numbers):
                seen |= set(numbers)
                units = min(numbers.values())
                if all(number % units == 0 for number in numbers.values()):
                    yield Size(pattern, part, {key: number // units for key, number in numbers.items()}, units)


def _number(config: PreTrainedConfig, key: str) -> Any:
    found = getattr(config, key, None)
    return 4 * config.hidden_size if key == "n_inner" and found is None and hasattr(config, "n_inner") else found


def resized(config: PreTrainedConfig, size: Size, number: int, kept: list[int] | None = None) -> PreTrainedConfig:
    """Make a config with fewer units.

    Args:
        kept: numbers of the layers that stay, by which lists that say something of each are cut; None: the first.

    Raises:
        ValueError, or what else the architecture raises: it takes no such number.
    """
    tree = config.to_dict()
    own, part = (tree[size.part], getattr(config, size.part)) if size.part else (tree, config)
    own |= {key: number * each for key, each in size.per_unit.items()}
    if size.pattern == "heads":
        own[part.attribute_map.get("head_dim", "head_dim")] = head_width(part)
    if size.pattern == "layers":
        stay = range(number) if kept is None else kept
        lists = {key: value for key, value in own.items() if isinstance(value, list) and len(value) == size.number}
        own |= {key: [value[place] for place in stay] for key, value in lists.items() if key != "architectures"}
    made: PreTrainedConfig = type(config).from_dict(tree)
    return made


def head_width(config: PreTrainedConfig) -> int:
    """Numbers in a head's queries."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def on_meta(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"), no_init_weights():
        return kind(config)


def _shapes(kind: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in on_meta(kind, config).named_parameters()}


def _groups_of(model: PreTrainedModel, size: Size) -> list[Group]:
    smaller = _smaller(model, size)
    if smaller is None:
        return []
    fewer, less = smaller
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    names = {name for name, module in model.named_modules() if is_block(module)}
    if size.pattern == "layers":
        return _stack(size, shapes, less, names)
    by_block: dict[str, dict[str, Place]] = defaultdict(dict)
    for name, shape in shapes.items():
        if shape == less.get(name):
            continue
        changed = [dim for dim, (here, there) in enumerate(zip(shape, less[name], strict=True)) if here != there]
        block = next((block for block in names if name.startswith(f"{block}.")), None)
        per_unit, rest = divmod(shape[changed[0]] - less[name][changed[0]], size.number - fewer)
        if len(changed) != 1 or block is None or rest or per_unit * size.number != shape[changed[0]]:
            return []
        by_block[block][name] = Place(size.number, changed[0], per_unit if size.pattern == "neurons" else 1)
    return [Group(block, size, places) for block, places in _alike(by_block).items()]


def _smaller(model: PreTrainedModel, size: Size) -> tuple[int, dict[str, torch.Size]] | None:
    """Shapes of a model with the most units that are fewer, and how many; None if there can be none."""
    for number in range(size.number - 1, 0, -1):
        try:
            return number, _shapes(type(model), resized(model.config, size, number))
        except Exception:  # each architecture refuses in its own way
            if size.pattern != "heads":
                return None
    return None


def _stack(size: Size, shapes: dict[str, torch.Size], less: dict[str, torch.Size], names: set[str]) -> list[Group]:
    """The layers of which the last one goes first."""
    gone = [block for block in names if not any(name.startswith(f"{block}.") for name in less)]
    if len(gone) != 1 or not gone[0].endswith(f".{size.number - 1}"):
        return []
    stack = gone[0].rpartition(".")[0]
    inside = [name.removeprefix(f"{stack}.").partition(".") for name in shapes if name.startswith(f"{stack}.")]
    times = Counter(leaf for _, _, leaf in inside)  # what the first of T5 alone has serves all
    places = {f"{stack}.{n}.{leaf}": Place(size.number, whole=int(n)) for n, _, leaf in inside if times[leaf] > 1}
    return [Group(stack, size, places)]


def _alike(by_block: dict[str, dict[str, Place]]) -> dict[str, dict[str, Place]]:
    """Blocks that differ in what they hold lose the same units: the first one of T5 has the position biases of all."""
    stacks: dict[str, dict[str, Place]] = defaultdict(dict)
    leaves: dict[str, set[frozenset[str]]] = defaultdict(set)
    for block, places in by_block.items():
        stack = block.rpartition(".")[0]
        stacks[stack] |= places
        leaves[stack].add(frozenset(name.removeprefix(f"{block}.") for name in places))
    apart = {block: places for block, places in by_block.items() if len(leaves[block.rpartition(".")[0]]) == 1}
    return apart | {stack: places for stack, places in stacks.items() if len(leaves[stack]) > 1}
