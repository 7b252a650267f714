"""A run's tensors by name, under any of Lightning's strategies: weights, optimizer states, averages, masks."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint import state_dict
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from sslm.models.network import Network
from sslm.models.weights import OPTIONS, weights_of
from sslm.runs.checkpoints.tensors import Tensors, read_tensors


class States:
    """This rank's part of a run's tensors, plain or DTensors.

    Args:
        averages: gives name -> average of a weight (`training/average.py`), where there are any.
        others: gives what else belongs to the state, under the names that it has in checkpoints (`training/pruning/`).
    """

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        averages: Callable[[], Tensors] = dict,
        others: Callable[[], Tensors] = dict,
    ) -> None:
        self.network, self.optimizer, self.averages, self.others = network, optimizer, averages, others

    def tensors(self) -> Tensors:
        states = _optimizer_tensors(self.network, self.optimizer)
        return _model_tensors(self.network) | states | self._averages() | self.others()

    def weights(self, keeps: bool) -> dict[str, Tensor]:
        """Gather the model's weights, or their averages if there are any; all ranks call it together.

        Args:
            keeps: whether this rank wants them; else it gets none.

        Returns:
            Whole tensors in the host's memory, by their names in the model.
        """
        tensors = self.averages() or weights_of(self.network)
        whole = ((name, w.full_tensor() if isinstance(w, DTensor) else w) for name, w in tensors.items())
        found = {name: weight.detach().to("cpu", copy=True) for name, weight in whole if keeps}
        return _without("model.", {name: weight for name, weight in found.items() if name.startswith("model.")})

    def load(self, checkpoint: Path) -> None:
        """Read a checkpoint in place; all ranks call it together."""
        network, optimizer = self.network, self.optimizer
        model, states = _model_tensors(network), _optimizer_tensors(network, optimizer)
        tensors = model | states | self._averages() | self.others()
        read_tensors(checkpoint, tensors)
        state_dict.set_model_state_dict(network, _without("model.", {k: tensors[k] for k in model}), options=OPTIONS)
        everything = state_dict.get_optimizer_state_dict(network, optimizer, options=OPTIONS)
        groups = {k: v for k, v in everything.items() if not _is_tensor(v)}
        read = _without("optim.", {k: tensors[k] for k in states})
        state_dict.set_optimizer_state_dict(network, optimizer, groups | read, options=OPTIONS)

    def _averages(self) -> Tensors:
        return {f"average.{name}": tensor for name, tensor in self.averages().items()}


def _model_tensors(network: Network) -> Tensors:
    return {f"model.{name}": weight for name, weight in weights_of(network).items()}


def _optimizer_tensors(network: Network, optimizer: Optimizer) -> Tensors:
    states = state_dict.get_optimizer_state_dict(network, optimizer, options=OPTIONS)
    return {f"optim.{name}": value for name, value in states.items() if _is_tensor(value)}


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _without(prefix: str, tensors: Tensors) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
