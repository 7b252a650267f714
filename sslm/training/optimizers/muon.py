"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): the momentum of each hidden matrix, orthogonalised.

With the scale of Liu et al. 2025, arXiv:2502.16982, its updates are as large as AdamW's, so that learning rate and
weight decay of AdamW hold. AdamW has the rest: embeddings, head, norms, biases.
"""

import math
from typing import Any

from torch import Tensor

from sslm.training.optimizers.adamw import AdamW
from sslm.training.optimizers.base import wide
from sslm.training.optimizers.groups import HIDDEN
from sslm.training.optimizers.newton_schulz import orthogonalised, working_dtype
from sslm.training.optimizers.placement import distributed_like, here, part_like
from sslm.training.optimizers.sharing import num_ranks, shared_among_ranks

MOMENTUM = 0.95
"""Nesterov's, of hidden matrices; AdamW's betas are the rest's."""
AT_ONCE = 1 << 26
"""Elements of matrices that a rank works on at once, or one matrix: each takes up to 20 bytes of passing memory."""
RMS = 0.2
"""Root mean square of an update at a learning rate of 1, about that of AdamW."""


class Muon(AdamW):
    """Needs whole matrices: ranks gather them, orthogonalise a share each, and give the results back."""

    name = "muon"

    def update(self, members: list[Tensor], group: dict[str, Any]) -> None:
        if not group.get(HIDDEN, False):
            return super().update(members, group)
        by_shape: dict[tuple[int, ...], list[Tensor]] = {}
        for parameter in members:
            by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
        for shape, alike in by_shape.items():
            number = max(AT_ONCE // math.prod(shape), 1) * num_ranks()
            for first in range(0, len(alike), number):
                self._update_alike(alike[first : first + number], group)

    def _update_alike(self, members: list[Tensor], group: dict[str, Any]) -> None:
        decay = 1 - group["lr"] * group["weight_decay"]
        size = group["lr"] * RMS * math.sqrt(max(members[0].shape))
        directions = (self._momentum(parameter) for parameter in members)
        for parameter, direction in zip(members, shared_among_ranks(directions, orthogonalised), strict=True):
            mine = wide(here(parameter))
            self.write(parameter, mine * decay - size * part_like(parameter, direction).to(mine.dtype))

    def _momentum(self, parameter: Tensor) -> Tensor:
        """Take the gradient into the momentum; return what Nesterov looks ahead to, distributed as the parameter is."""
        gradient, state = self.gradient_of(parameter), self.state[parameter]["momentum_buffer"]
        momentum = here(state).lerp(gradient, 1 - MOMENTUM)
        self.keep(here(state), momentum)
        ahead = gradient.lerp(momentum, MOMENTUM).to(working_dtype(parameter.device))
        return distributed_like(parameter, ahead)
