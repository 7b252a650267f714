"""Settings of how devices share the work."""

from dataclasses import dataclass
from typing import Literal

from sslm.config.setting import NOT_NEGATIVE, POSITIVE, Section, setting

Strategy = Literal[
    "auto", "single", "ddp", "fsdp", "hsdp", "tp", "fsdp_tp", "pp", "deepspeed_1", "deepspeed_2", "deepspeed_3"
]
Precision = Literal["auto", "32", "32-tf32", "bf16-mixed", "bf16-true", "16-mixed", "fp8", "fp8-rowwise", "mxfp8"]


@dataclass(frozen=True)
class FsdpConfig(Section):
    """How fsdp, hsdp and fsdp_tp share weights among devices (FSDP2)."""

    prefix = "fsdp"

    reshard_after_forward: bool | int = setting(True, NOT_NEGATIVE, may_change=True)
    """Free a block's gathered weights after its forward pass (ZeRO-3); false: keep them for the backward pass (ZeRO-2),
    which takes more memory and less communication; 8: keep an eighth on each of 8 devices, such as those of a node."""
    prefetch: int | None = setting(None, POSITIVE, may_change=True)
    """Blocks whose weights are gathered while the one before them is at work; default: torch's own order, one."""
    reduce_gradients: Literal["step", "micro_batch"] = setting("step", may_change=True)
    """When devices sum gradients. step: once, after the last micro-batch; until then each holds whole gradients;
    micro_batch: after each one; each device then holds only its own part."""
    replicas: int | None = setting(None, POSITIVE, may_change=True)
    """hsdp: number of groups of devices, each of which holds all weights; default: the number of nodes."""


@dataclass(frozen=True)
class DeepspeedConfig(Section):
    """Where deepspeed_1, deepspeed_2 and deepspeed_3 (ZeRO, Rajbhandari et al. 2020, arXiv:1910.02054) keep states."""

    prefix = "deepspeed"

    offload_optimizer: bool = setting(False, may_change=True)
    """Keep optimizer states in the host's memory, and update weights there."""
    offload_parameters: bool = setting(False, may_change=True)
    """deepspeed_3: keep weights in the host's memory until they are needed."""
    config: str | None = setting(None, may_change=True, is_path=True)
    """JSON file of DeepSpeed's own settings, which win over those of sslm."""
