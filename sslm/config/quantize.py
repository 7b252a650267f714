"""Settings of training for fewer bits."""

from dataclasses import dataclass
from typing import Literal

from sslm.config.setting import POSITIVE, Section, setting


@dataclass(frozen=True)
class QuantizeConfig(Section):
    """Quantization-aware training (Jacob et al. 2017, arXiv:1712.05877): weights are rounded in each forward pass."""

    prefix = "quantize"

    aware: Literal["int8", "int4"] | None = setting(None, may_change="if named")
    """Bits that weights of the blocks' linear layers are rounded to in each forward pass, as sslm compress will round
    them; gradients go to the weights as they were. Default: nothing is rounded."""
    group_size: int = setting(32, POSITIVE, may_change="if named")
    """int4: weights of a row that share a scale."""
