"""How much each weight matters: pure functions of weights, and of what their layers read."""

from torch import Tensor


def wanda(weight: Tensor, input_squares: Tensor, input_dim: int) -> Tensor:
    """Score weights by |W| · ‖x‖ (Sun et al. 2023, arXiv:2306.11695).

    Args:
        weight: a matrix.
        input_squares: [inputs] sum over tokens of each input's square.
        input_dim: dimension of the matrix along which its inputs stand.
    """
    norms = input_squares.sqrt()
    return weight.abs() * (norms if input_dim == 1 else norms[:, None])
