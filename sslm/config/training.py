"""Settings of the optimizer, of regularisers, and of what is done about anomalies."""

from dataclasses import dataclass
from typing import Literal

from sslm.config.setting import BELOW_ONE, DECAY, NOT_NEGATIVE, POSITIVE, SHARE, Section, setting


@dataclass(frozen=True)
class GroupConfig(Section):
    """Parameters with a rate or a weight decay of their own."""

    names: str
    """Regular expression that is found in the names of the parameters."""
    lr: float = 1.0
    """What the schedule's rate is multiplied by; 0: they stay."""
    weight_decay: float | None = None
    """Weight decay of those that decay; default: that of all."""


@dataclass(frozen=True)
class OptimConfig(Section):
    """The optimizer and its learning-rate schedule, counted in optimizer steps."""

    prefix = "optim"

    name: Literal["adamw", "adamw_8bit", "schedule_free", "muon", "lion", "adafactor"] = "adamw"
    """Optimizer: adamw; adamw_8bit (moments of a byte); schedule_free (AdamW at a constant rate, whose average is
    validated and exported); muon (matrices of the blocks orthogonalised, AdamW for the rest); lion; adafactor."""
    lr: float | None = setting(None, POSITIVE, may_change="if named")
    """Peak learning rate; default: what suits the objective's default model (causal_lm: 4e-3; lion: a
    tenth; adafactor, relative to the size of weights: ten times)."""
    layer_decay: float | None = setting(None, DECAY, may_change="if named")
    """Learning rate of each block as a share of that of the block after it (0.9): the head has the whole, embeddings
    the lowest; null: all have the same."""
    mup: int | None = setting(None, POSITIVE)
    """Width at which lr was found (256): rates and first weights follow the width from there, so that the best lr
    stays (muP); null: as transformers draws them, one rate for all."""
    groups: list[GroupConfig] | None = setting(None, may_change="if named")
    """Rates and weight decay of parameters by name, a list of {names: REGEX, lr: FACTOR, weight_decay: …}; of several
    that fit a name the first holds."""
    schedule: Literal["cosine", "linear", "wsd", "inverse_sqrt", "constant"] = setting("cosine", may_change="if named")
    """After warm-up: cosine or linear decay over the whole run; wsd (warm-up, stable, decay: a trapezoid); inverse_sqrt
    (with the root of the step, not below min_lr_ratio); or constant."""
    cycles: int = setting(1, POSITIVE, may_change="if named")
    """cosine: how often in the run it decays, each time from the peak (warm restarts)."""
    warmup_steps: int = setting(40, NOT_NEGATIVE, may_change="if named")
    """Optimizer steps of linear warm-up."""
    decay_fraction: float = setting(0.2, SHARE, may_change="if named")
    """wsd: share of all steps, at the end of the run, in which the learning rate decays."""
    min_lr_ratio: float = setting(0.1, SHARE, may_change="if named")
    """Lowest learning rate after warm-up, as a share of the peak."""
    weight_decay: float = setting(0.1, NOT_NEGATIVE, may_change="if named")
    """Decoupled weight decay, of matrices only."""
    beta1: float = setting(0.9, BELOW_ONE, may_change="if named")
    """Decay rate of the running mean of gradients."""
    beta2: float = setting(0.95, BELOW_ONE, may_change="if named")
    """Decay rate of the running mean of squared gradients."""
    eps: float = setting(1e-8, POSITIVE, may_change="if named")
    """Number added to the root of the second moment."""
    clip_norm: float | None = setting(1.0, POSITIVE, may_change="if named")
    """Largest norm of the whole gradient; null: no clipping."""
    average_decay: float | None = setting(None, BELOW_ONE)
    """Decay (0.999) of an exponential moving average of the weights, which is validated and exported; null: none."""

    @property
    def averages(self) -> bool:
        """Whether an average of the weights is validated and exported."""
        return self.average_decay is not None or self.name == "schedule_free"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups is not None:  # of Lightning's checkpoints they are plain
            groups = [GroupConfig(**group) if isinstance(group, dict) else group for group in self.groups]
            object.__setattr__(self, "groups", groups)


@dataclass(frozen=True)
class RobustConfig(Section):
    """Regularisers of any objective; all are off by default."""

    prefix = "robust"

    label_smoothing: float = setting(0.0, BELOW_ONE, may_change="if named")
    """Share of each target's probability to spread evenly over the vocabulary (Szegedy et al. 2016); costs nothing."""
    z_loss: float = setting(0.0, NOT_NEGATIVE, may_change="if named")
    """Weight of log(Z)^2, Z the softmax's denominator, in the loss (Chowdhery et al. 2022: 1e-4); costs little."""
    embedding_noise: float = setting(0.0, NOT_NEGATIVE, may_change="if named")
    """NEFTune's alpha: uniform noise on the input embeddings, at most alpha / sqrt(tokens x width) (Jain et al. 2023:
    5); costs nothing."""
    adversarial: Literal["fgm", "pgd", "freelb"] | None = setting(None, may_change="if named")
    """Perturb the input embeddings so that the loss rises: fgm (2 passes a step), pgd (adversarial_steps + 1), or
    freelb (adversarial_steps)."""
    epsilon: float = setting(1.0, POSITIVE, may_change="if named")
    """Largest L2 norm of a sequence's perturbation."""
    adversarial_steps: int = setting(3, POSITIVE, may_change="if named")
    """Steps of pgd and freelb, each of 2.5 epsilon / steps."""


@dataclass(frozen=True)
class AnomalyConfig(Section):
    """What to do at a step whose loss or gradient norm is not finite, or far above those of the last steps."""

    prefix = "anomaly"

    action: Literal["rewind", "skip", "off"] = setting("rewind", may_change="if named")
    """skip: leave the step's update out; rewind: after several such steps in a row, also return to the last checkpoint
    before them and leave their examples out; off: no check."""
    spike_z: float | None = setting(12.0, POSITIVE, may_change="if named")
    """How many robust standard deviations above the median of the last 128 good steps a loss, or the logarithm of a
    gradient norm, must be to count as a spike; null: only values that are not finite count."""
    patience: int = setting(3, POSITIVE, may_change="if named")
    """rewind: return after this many anomalous steps in a row."""
    max_rewinds: int = setting(3, NOT_NEGATIVE, may_change=True)
    """rewind: end the run rather than return more often than this."""
