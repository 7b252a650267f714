"""Every setting of a run: one field is one flag, one YAML key and one phrase of help.

    python -m sslm.train --config a.yaml --config b.yaml --optim.lr 1e-3

Flags win over files, later files over earlier ones, and files over defaults, whatever the order typed. Two sections are
open: `model` takes any key of the chosen architecture's config, `objective` any setting of the chosen objective. The
defaults are the newcomer's run.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sslm.config.batch_sizes import BatchSizes
from sslm.config.checkpoint import CheckpointConfig
from sslm.config.data import DataConfig, SourceConfig, StageConfig
from sslm.config.devices import DeepspeedConfig, FsdpConfig, Precision, Strategy
from sslm.config.distill import DistillConfig
from sslm.config.model import LoraConfig, ModelConfig, ObjectiveConfig
from sslm.config.prune import PruneConfig
from sslm.config.quantize import QuantizeConfig
from sslm.config.ramp import Ramp, parse_lengths, parse_ramp
from sslm.config.setting import NOT_NEGATIVE, POSITIVE, SECONDS, SEED, Section, setting
from sslm.config.training import AnomalyConfig, GroupConfig, OptimConfig, RobustConfig
from sslm.system.errors import UserError, short

__all__ = [
    "AnomalyConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "DeepspeedConfig",
    "DistillConfig",
    "FsdpConfig",
    "GroupConfig",
    "LoraConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "Precision",
    "PruneConfig",
    "RobustConfig",
    "SourceConfig",
    "StageConfig",
    "Strategy",
]


@dataclass(frozen=True)
class Config(Section):
    """A run."""

    run_dir: str | None = setting(None, may_change=True, is_path=True)
    """Run folder; default: runs/OBJECTIVE."""
    resume: str = setting("auto", may_change=True, is_path=True)
    """auto: resume from the run folder's newest checkpoint, if there is one; never: refuse a folder that has one; PATH:
    a run or a checkpoint to begin from if the run folder has none of its own."""
    resume_with: str | None = setting(None, may_change=True)
    """Names of settings to change in a run that resumes, which is put on record: optim.lr,optim.schedule."""
    seed: int = setting(0, SEED)
    """Random seed of the text's order, masking, dropout and initial weights."""
    strategy: Strategy = setting("auto", may_change=True)
    """auto, single, ddp, fsdp (FSDP2), hsdp (sharded inside a node, replicated across nodes), tp (tensor parallel),
    fsdp_tp, pp (pipeline: each device has some of the blocks; causal_lm), deepspeed_1, deepspeed_2, or deepspeed_3."""
    context_parallel_size: int = setting(1, POSITIVE, may_change=True)
    """fsdp, hsdp: number of devices that share each sequence, for long ones (causal_lm)."""
    expert_parallel_size: int = setting(1, POSITIVE, may_change=True)
    """fsdp, hsdp: number of devices that share each block's experts, to which tokens travel (mixtures of experts)."""
    tensor_parallel_size: int | None = setting(None, POSITIVE, may_change=True)
    """Number of devices that share each weight matrix; default: all (tp), or those of a node (fsdp_tp)."""
    precision: Precision = setting("auto", may_change=True)
    """32: fp32; 32-tf32: fp32, with matmuls in TF32 on GPUs; bf16-mixed; bf16-true: weights in bf16, rounded
    stochastically; 16-mixed: with loss scaling; fp8, fp8-rowwise, mxfp8 (Blackwell): the matmuls of the blocks but the
    first and the last, with a scale a tensor, a row, 32 numbers; the rest as bf16-mixed; auto:
    bf16-mixed on GPUs that have it (else 16-mixed) and on CPUs with AMX, 32 on other CPUs."""
    accelerator: Literal["auto", "cpu", "gpu"] = setting("auto", may_change=True)
    """Kind of device: auto (a GPU if there is one), cpu, or gpu."""
    devices: int | None = setting(None, POSITIVE, may_change=True)
    """Devices per node; default: every GPU, or one CPU process."""
    num_nodes: int = setting(1, POSITIVE, may_change=True)
    """Number of nodes (machines)."""
    seq_len: str | int = setting(128, POSITIVE)
    """Tokens per sequence; '128, 512 from 1e9 tokens' grows: until then windows of 512 are cut into four."""
    batch_size: str | int = setting(16, POSITIVE, may_change="if named")
    """Sequences per optimizer step, over all devices; '32, 64 from 1e9 tokens' grows (a ramp)."""
    micro_batch_size: int | Literal["auto"] | None = setting(None, POSITIVE, may_change=True)
    """Sequences per forward pass and device; auto: as many as fit into memory; default: a device's share of a batch, of
    a ramp the most that divide all its shares."""
    max_steps: int | None = setting(None, POSITIVE, may_change=True)
    """End after this many optimizer steps; default: 700, unless max_tokens is given."""
    max_tokens: int | None = setting(None, POSITIVE, may_change=True)
    """End after this many tokens; with max_steps, the earlier of the two ends the run."""
    max_epochs: float | None = setting(None, POSITIVE, may_change=True)
    """End when the training data has been read this many times; with max_steps, the earlier of the two."""
    stop_after: str | None = setting(None, may_change=True)
    """Save everything and stop (exit code 75) within this time (3h50m), or after this many steps of this command
    (200steps)."""
    stop_when: str | None = setting(None, may_change=True)
    """End the run, done, at a validation that says so: 'val/loss<3.2', or 'val/f1 stops improving for 3'."""
    profile: str | None = setting(None, may_change=True)
    """Profile these steps on rank 0 (10:13: the first and the last): a trace, a snapshot of a GPU's memory, and in
    words where the time went, in the run folder's profile/."""
    log_every: int = setting(10, POSITIVE, may_change=True)
    """Optimizer steps between rows of metrics.jsonl."""
    val_every: int = setting(100, POSITIVE, may_change=True)
    """Optimizer steps between validations; there is always one at step 0 and one at the end."""
    predictions: bool = setting(True, may_change=True)
    """Fine-tuning: predict the held-out rows when the run is done: predictions.jsonl, predicted.png, and scores."""
    eval_every: int | None = setting(None, POSITIVE, may_change=True)
    """Optimizer steps between evaluations on eval_tasks and eval_data; default: one at the end, as there always is."""
    eval_tasks: str | None = setting(None, may_change=True)
    """Tasks of lm-evaluation-harness to score the model by while it trains, as sslm evaluate --tasks takes them: files
    with data here, folders of them, or names that it knows, separated by commas."""
    eval_data: str | None = setting(None, may_change=True)
    """Text or corpora to measure the model on while it trains, as sslm evaluate --data does, separated by commas;
    NAME=PATH gives one a name."""
    eval_num_fewshot: int | None = setting(None, NOT_NEGATIVE, may_change=True)
    """Examples before each question of eval_tasks; default: what the task says."""
    eval_limit: int | None = setting(None, POSITIVE, may_change=True)
    """Take the first so many examples of each task and documents of each text in an evaluation; default: all."""
    logger: str = setting("none", may_change=True)
    """Trackers in addition to metrics.jsonl, separated by commas: csv, tensorboard, wandb (offline if nobody is logged
    in), trackio, mlflow."""
    compile: Literal["auto", "off", "block", "model", "async_tp"] = setting("auto", may_change=True)
    """What torch.compile takes as one piece: each block, or the whole model, which is faster if it is small (auto: so
    on GPUs up to 300M parameters, else each block; off on CPUs and for labelled rows); async_tp: each block, whose
    matmuls hide the messages of tensor parallelism (GPUs of one node, by torch's symmetric memory)."""
    attention: Literal["auto", "sdpa", "flex", "varlen", "flash"] = setting("auto", may_change=True)
    """What computes attention: torch's SDPA; FlexAttention; by where documents begin, torch's varlen_attn or the
    package flash-attn (auto: sdpa, but varlen for documents on GPUs, if the model takes it)."""
    activation_checkpointing: str = setting("none", may_change=True)
    """Recompute activations in the backward pass, to save memory: none, selective (all but matmuls and attention), full
    (each block), or budget:SHARE of the memory (budget:0.5; compiled models)."""
    start_timeout_seconds: float = setting(1800.0, SECONDS, may_change=True)
    """Seconds within which all processes must have started and connected, or the run ends; verifying a large
    checkpoint counts."""
    collective_timeout_seconds: float = setting(1800.0, SECONDS, may_change=True)
    """Seconds after which the run ends if a collective operation (an all-reduce, for example) has not returned."""
    watchdog_seconds: float | None = setting(900.0, POSITIVE, may_change=True)
    """Seconds after which the run ends if no rank makes progress (ten times this in the first two steps), so that a
    scheduler can start it again; what each thread was doing is written to the run folder; null: never."""
    dry_run: bool = setting(False, may_change=True)
    """Prepare, check and build everything, print the plan, and end before training."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    robust: RobustConfig = field(default_factory=RobustConfig)
    fsdp: FsdpConfig = field(default_factory=FsdpConfig)
    deepspeed: DeepspeedConfig = field(default_factory=DeepspeedConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    anomaly: AnomalyConfig = field(default_factory=AnomalyConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "batch_size", self.batch_ramp.setting)
        object.__setattr__(self, "seq_len", self.length_ramp.setting)

    @property
    def batch_ramp(self) -> Ramp:
        """The sizes of batches, and from which tokens of the run each holds."""
        return parse_ramp("batch_size", self.batch_size)

    @property
    def length_ramp(self) -> Ramp:
        """The lengths of sequences, and from which tokens of the run each holds."""
        return parse_lengths(self.seq_len)

    @property
    def window_tokens(self) -> int:
        """Tokens per example: those of the longest sequence, into which short ones are put together."""
        return self.length_ramp.largest

    def batch_sizes_from(self, step: int, position: int) -> BatchSizes:
        """The sizes of the batches of a run that took `position` examples in `step` steps."""
        return BatchSizes.of(self.batch_ramp, self.length_ramp, step, position)

    @property
    def batch_sizes(self) -> BatchSizes:
        """The sizes of a run's batches from its beginning."""
        return self.batch_sizes_from(0, 0)

    @property
    def total_steps(self) -> int:
        """Optimizer steps from the very beginning to the end of the run, if its batches were always set so."""
        return self.total_steps_from(0, 0)

    def total_steps_from(self, step: int, position: int) -> int:
        """Optimizer steps from the very beginning to the end of a run that took `position` examples in `step` steps."""
        ends = [self.max_steps] if self.max_steps is not None else []
        if self.max_tokens is not None:
            ends.append(self.batch_sizes_from(step, position).step_at(self.max_tokens // self.window_tokens))
        return min(ends, default=DEFAULT_STEPS)

    @property
    def run_folder(self) -> Path:
        return Path(self.run_dir or f"runs/{self.objective.name.rpartition(':')[2]}")


DEFAULT_STEPS = 700
OPEN_SECTIONS = ("model", "objective")
SECTIONS: dict[str, Any] = {"": Config} | {
    section.name: section.type for section in dataclasses.fields(Config) if dataclasses.is_dataclass(section.type)
}
"""Name -> dataclass of every section; "" names the settings that stand in none."""
FLAGS = {
    f"{section}.{leaf.name}".removeprefix("."): leaf
    for section, kind in SECTIONS.items()
    for leaf in dataclasses.fields(kind)
    if leaf.name not in SECTIONS and leaf.name != "settings"
}
"""Name -> field of every flag, but for those of the open sections' own keys."""
PATHS = {
    f"{section}.{leaf.name}".removeprefix("."): (kind, leaf.name)
    for section, kind in (SECTIONS | {"data.sources": SourceConfig}).items()
    for leaf in dataclasses.fields(kind)
    if leaf.metadata.get("is_path")
}
"""Name -> (section, field) of every setting that is a path."""


def parse_stop_after(text: str) -> tuple[float | None, int | None]:
    """`3h50m` -> (13800.0 seconds, None); `200steps` -> (None, 200)."""
    steps = re.fullmatch(r"(\d+)\s*steps?", text)
    if steps and int(steps[1]) > 0:
        return None, int(steps[1])
    parts = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    if parts and any(parts.groups()):
        days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds), None
    raise UserError(f"--stop_after {text}: expected a time (3h50m, 90s) or steps (200steps)")


class Steps(NamedTuple):
    """Some steps of a run, counted from 1."""

    first: int
    last: int


MOST_PROFILED = 100
"""A longer trace is too large to open."""


def parse_profile(text: str) -> Steps:
    """`10:13` -> the four steps 10 to 13."""
    found = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text, re.ASCII)
    steps = Steps(int(found[1]), int(found[2])) if found else Steps(0, 0)
    if not 1 <= steps.first <= steps.last < steps.first + MOST_PROFILED:
        expected = f"expected the first and the last of at most {MOST_PROFILED} steps, counted from 1, such as 10:13"
        raise UserError(f"--profile {short(text)}: {expected}")
    return steps
