"""Adversarial training: embeddings perturbed where it hurts most, within a ball of radius ε around each sequence's own.

    fgm     the mean of the loss and of that at ε · g / ‖g‖, g the gradient by the embeddings
            (Miyato et al. 2017, arXiv:1605.07725)
    pgd     the loss at the end of K steps uphill, each projected onto the ball (Madry et al. 2018, arXiv:1706.06083)
    freelb  the mean of the losses along K such steps from a random start, all of whose gradients are used
            (Zhu et al. 2020, arXiv:1909.11764, algorithm 1)

Each pass of a step has the same dropout, as FreeLB's authors ask for (section 3.3).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from sslm.config import RobustConfig
from sslm.models.network import Network
from sslm.training.dropout import seed_dropout

Backward = Callable[[Tensor, bool], None]
"""Takes a loss, and whether it is the last of its micro-batch."""


def adversarial_losses(
    network: Network, micro: dict[str, Tensor], how: RobustConfig, seed: int, backward: Backward
) -> Tensor:
    """Take the gradients of a micro-batch's adversarial loss.

    Args:
        micro: the micro-batch, as `network` takes it.
        seed: torch's, before each pass.
        backward: called with each pass' summed row losses, weighted so that the passes add up to the micro-batch's
            loss.

    Returns:
        [batch] each row's loss, the mean of the passes that count.
    """

    def losses_at(perturbation: Tensor) -> Tensor:
        seed_dropout(nothing.device, seed)
        network.perturbation = perturbation
        try:
            row_losses: Tensor = network(**micro)
        finally:
            network.perturbation = None
        return row_losses

    nothing = network.no_perturbation(micro["input_ids"]).requires_grad_()
    if how.adversarial == "fgm":
        clean = losses_at(nothing)
        backward(clean.sum() / 2, False)
        worst = losses_at(how.epsilon * direction(nothing.grad))
        backward(worst.sum() / 2, True)
        return (clean + worst).detach() / 2

    steps, size = how.adversarial_steps, 2.5 * how.epsilon / how.adversarial_steps  # Madry et al., as their code has it
    if how.adversarial == "pgd":
        perturbation = nothing
        for _ in range(steps):
            (gradient,) = torch.autograd.grad(losses_at(perturbation).sum(), perturbation)
            perturbation = projected(perturbation + size * direction(gradient), how.epsilon).requires_grad_()
        losses = losses_at(perturbation.detach())
        backward(losses.sum(), True)
        return losses.detach()

    seed_dropout(nothing.device, seed)
    start = torch.empty_like(nothing).uniform_(-1, 1) * how.epsilon / nothing[0].numel() ** 0.5
    perturbation, mean = start.detach().requires_grad_(), torch.zeros((), device=nothing.device)
    for step in range(steps):
        losses = losses_at(perturbation)
        backward(losses.sum() / steps, step == steps - 1)
        mean = mean + losses.detach() / steps
        further = perturbation.detach() + size * direction(perturbation.grad)
        perturbation = projected(further, how.epsilon).requires_grad_()
    return mean


def direction(gradient: Tensor | None) -> Tensor:
    """Scale each row's gradient to length one; zeros stay zeros."""
    assert gradient is not None
    unit: Tensor = gradient / _norm(gradient).clamp_min(1e-12)
    return unit


def projected(perturbation: Tensor, epsilon: float) -> Tensor:
    """Project a perturbation onto each row's ball of radius epsilon."""
    return (perturbation * (epsilon / _norm(perturbation).clamp_min(1e-12)).clamp_max(1.0)).detach()


def _norm(values: Tensor) -> Tensor:
    norm: Tensor = values.flatten(1).norm(dim=1)[:, None, None]
    return norm
