"""Every setting of a run: one field is one flag, one YAML key and one phrase of help.

    python -m sslm.train --config a.yaml --config b.yaml --optim.lr 1e-3

Flags win over files, later files over earlier ones, and files over defaults, whatever the order typed. Two sections are
open: `model` takes any key of the chosen architecture's config, `objective` any setting of the chosen objective. The
defaults are the newcomer's run.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sslm.system.errors import UserError, without_secrets
from sslm.system.paths import NoHome, as_typed, followed
from sslm.system.plain_yaml import dump

Strategy = Literal[
    "auto", "single", "ddp", "fsdp", "hsdp", "tp", "fsdp_tp", "deepspeed_1", "deepspeed_2", "deepspeed_3"
]
Precision = Literal["auto", "32", "32-tf32", "bf16-mixed", "bf16-true", "16-mixed", "fp8"]


class Range(NamedTuple):
    """Numbers that a setting takes."""

    words: str
    contains: Callable[[float], bool]


POSITIVE = Range("a number above 0", lambda number: 0 < number < math.inf)
NOT_NEGATIVE = Range("a number of 0 or more", lambda number: 0 <= number < math.inf)
SHARE = Range("a share from 0 to 1", lambda number: 0 <= number <= 1)
BELOW_ONE = Range("a number from 0 to below 1", lambda number: 0 <= number < 1)
SEED = Range("a whole number from 0 to 2^63 - 1", lambda number: 0 <= number < 1 << 63)
SECONDS = Range("a number above 0 and at most 1e9", lambda number: 0 < number <= 1e9)


def setting(
    default: Any = dataclasses.MISSING,
    numbers: Range | None = None,
    may_change: bool | Literal["if named"] = False,
    is_path: bool = False,
) -> Any:
    """Declare a field of a section.

    Args:
        numbers: range that a number has to lie in; None if any will do.
        may_change: whether a resumed run may have another value than the run began with; "if named": on purpose, by
            --resume_with.
        is_path: whether text may be a path, in which `~` is the home folder.
    """
    return field(default=default, metadata={"numbers": numbers, "may_change": may_change, "is_path": is_path})


@dataclass(frozen=True)
class Section:
    """What has settings. Paths are followed here, whether they come from flags, a file or Python."""

    def __post_init__(self) -> None:
        for flag, (kind, name) in PATHS.items():
            if isinstance(self, kind) and isinstance(path := getattr(self, name), str):
                try:
                    object.__setattr__(self, name, followed(path))
                except NoHome as error:
                    raise UserError(f"--{flag} {error}") from None


@dataclass(frozen=True)
class ObjectiveConfig(Section):
    """What the model is trained to do."""

    name: str = "causal_lm"
    """Objective: causal_lm, masked_lm, span_corruption, denoising, token_order; of labelled data classification,
    regression, tagging, extraction, text_to_text."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The chosen objective's own settings (typed as --objective.KEY)."""


@dataclass(frozen=True)
class ModelConfig(Section):
    """The model: any architecture of transformers, built from its config or continued from a checkpoint."""

    model_type: str | None = None
    """Architecture, by its name in transformers (llama, gpt2, qwen3 …); default: a small one for the objective."""
    pretrained: str | None = setting(None, is_path=True)
    """Trained weights to begin with: a folder, a name on the Hugging Face hub, or a run folder of sslm."""
    freeze: str | None = None
    """Parts whose weights stay as they are: embeddings, blocks:6 (the first six), or embeddings,blocks:6."""
    embedding_init: str | None = setting(None, is_path=True)
    """File of word vectors (text format of word2vec or GloVe, .gz too) to initialise the input embeddings with."""
    embedding_project: bool = False
    """Map word vectors of another dimension to the embedding's, by a random orthogonal matrix."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Any key of that architecture's config (typed as --model.KEY)."""


@dataclass(frozen=True)
class SourceConfig(Section):
    """One source of a mixture."""

    path: str | None = setting(is_path=True)
    """Text or a prepared corpus, in the forms of data.train; embedded: the documentation inside this Python."""
    weight: int | float | str = 1
    """Weight relative to the other sources: a number, or size^EXPONENT of its tokens (size^0.7)."""
    name: str | None = None
    """Name in metrics; default: the path's last part, up to a dot."""
    max_epochs: float = 4.0
    """Warn if the run reads the source more often (up to 4 times, repeats are worth about as much as new text:
    Muennighoff et al. 2023, arXiv:2305.16264)."""


@dataclass(frozen=True)
class StageConfig(Section):
    """Weights of a mixture from some point of the run on."""

    at_tokens: int
    """Tokens of the run after which these weights apply."""
    weights: dict[str, int | float | str]
    """Source name -> weight; a source left out is not read."""


@dataclass(frozen=True)
class DataConfig(Section):
    """Where the text comes from."""

    train: str | None = setting(None, is_path=True)
    """Training text: a file or glob (.txt, .jsonl, .parquet; also .gz, .zst), a folder of these, a Hugging Face dataset
    (hub name, NAME:CONFIG, or saved folder), a prepared corpus (a folder, or its URL: s3://, gs://, https://, hf://),
    or token ids of other tools (Megatron, nanoGPT, llm.c, .npy, Parquet); default: this Python's documentation."""
    val: str | None = setting(None, is_path=True)
    """Held-out text to validate on, in the same forms; default: a part of the training text, which is then left out of
    training."""
    sources: list[SourceConfig] | None = None
    """A mixture instead of data.train: a list of {path: …, weight: …, name: …}; weight is a number, or size^0.7."""
    stages: list[StageConfig] | None = None
    """New weights of the sources later in the run: a list of {at_tokens: …, weights: {NAME: …}}."""
    packing: Literal["concat", "best_fit"] = "concat"
    """concat: join documents and cut them at seq_len; best_fit: keep documents whole if they fit, and pad."""
    document_mask: bool = False
    """Keep attention (or an LSTM's state) inside each document, where a sequence holds several."""
    text_field: str = "text"
    """Field that holds the text, in .jsonl, .parquet and datasets; of labelled data, also in .csv and .tsv."""
    pair_field: str | None = None
    """Labelled data: field of a second text, to be read together with the first; default: there is none."""
    label_field: str | None = None
    """Labelled data: field of what is to be predicted (of CoNLL's columns a number or name); default: label."""
    label_separator: str | None = None
    """Labelled data: what stands between several labels of a row (--objective.multi_label true); default: a row has
    them in a list."""
    source_field: str = "source"
    """Labelled data: field of the text to turn into another (text_to_text)."""
    target_field: str = "target"
    """Labelled data: field of the text to write (text_to_text)."""
    document_separator: str | None = None
    """Regular expression that separates the documents of a .txt; default: a file is one document."""
    end_id: int | None = None
    """Token id that ends a document, for files of token ids without document boundaries (nanoGPT, llm.c, 1-D .npy);
    default: the end-of-document token of the tokenizer, if there is one."""
    special_tokens: Literal["plain", "parse"] = "plain"
    """Names of special tokens that stand in the text (<|endoftext|>, [MASK]): plain text, or parsed as these tokens."""
    bos: Literal["template", "never"] = "template"
    """template: begin each document with the BOS token if the tokenizer's template does so; never: don't."""
    tokenizer: str | None = setting(None, is_path=True)
    """Tokenizer: a folder, a hub name, or bpe:SIZE to train a byte-level BPE; default: that of --model.pretrained or of
    the prepared corpus, else bpe:2048."""
    cache_dir: str | None = setting(None, may_change=True, is_path=True)
    """Folder for corpora that a run prepares itself; default: the user's cache folder."""
    cache_gb: float | None = setting(None, POSITIVE, may_change=True)
    """Largest size of the remote shards in the cache folder, in gigabytes; default: no limit."""
    block_shards: int | None = setting(None, POSITIVE)
    """Number of shards to shuffle together; default: all of a local corpus, 4 of a remote one (of which the cache holds
    twice as many)."""
    on_bad_shard: Literal["fail", "substitute"] = setting("fail", may_change=True)
    """If a shard is damaged or can't be read. fail: end the run and name it; substitute: read other shards instead, and
    record it."""
    num_workers: int = setting(0, NOT_NEGATIVE, may_change=True)
    """Loader processes per device; 0 reads in the training process, which is usually fastest."""
    val_sequences: int = setting(1024, POSITIVE, may_change="if named")
    """Largest number of held-out sequences in a validation, spread evenly over the held-out text."""


@dataclass(frozen=True)
class OptimConfig(Section):
    """The optimizer and its learning-rate schedule, counted in optimizer steps."""

    name: Literal["adamw"] = "adamw"
    """Optimizer; AdamW is the only one so far."""
    lr: float | None = setting(None, POSITIVE, may_change="if named")
    """Peak learning rate; default: what suits the objective's default model (causal_lm: 4e-3)."""
    schedule: Literal["cosine", "wsd", "constant"] = setting("cosine", may_change="if named")
    """After warm-up: cosine decay, warm-up-stable-decay, or constant."""
    warmup_steps: int = setting(40, NOT_NEGATIVE, may_change="if named")
    """Optimizer steps of linear warm-up."""
    decay_fraction: float = setting(0.2, SHARE, may_change="if named")
    """wsd: share of all steps, at the end of the run, in which the learning rate decays."""
    min_lr_ratio: float = setting(0.1, SHARE, may_change="if named")
    """Learning rate at the end, as a share of the peak."""
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


@dataclass(frozen=True)
class RobustConfig(Section):
    """Regularisers of any objective; all are off by default."""

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
class FsdpConfig(Section):
    """How fsdp, hsdp and fsdp_tp share weights among devices (FSDP2)."""

    reshard_after_forward: bool = setting(True, may_change=True)
    """Free a block's gathered weights after its forward pass (ZeRO-3); false: keep them for the backward pass (ZeRO-2),
    which takes more memory and less communication."""
    reduce_gradients: Literal["step", "micro_batch"] = setting("step", may_change=True)
    """When devices sum gradients. step: once, after the last micro-batch; until then each holds whole gradients;
    micro_batch: after each one; each device then holds only its own part."""
    replicas: int | None = setting(None, POSITIVE, may_change=True)
    """hsdp: number of groups of devices, each of which holds all weights; default: the number of nodes."""


@dataclass(frozen=True)
class DeepspeedConfig(Section):
    """Where deepspeed_1, deepspeed_2 and deepspeed_3 (ZeRO, Rajbhandari et al. 2020, arXiv:1910.02054) keep states."""

    offload_optimizer: bool = setting(False, may_change=True)
    """Keep optimizer states in the host's memory, and update weights there."""
    offload_parameters: bool = setting(False, may_change=True)
    """deepspeed_3: keep weights in the host's memory until they are needed."""
    config: str | None = setting(None, may_change=True, is_path=True)
    """JSON file of DeepSpeed's own settings, which win over those of sslm."""


@dataclass(frozen=True)
class CheckpointConfig(Section):
    """When the run is saved, and what is kept."""

    every_steps: int | None = setting(100, POSITIVE, may_change=True)
    """Optimizer steps between checkpoints; null: save by time only."""
    every_minutes: float | None = setting(None, POSITIVE, may_change=True)
    """Minutes between checkpoints; null: save by steps only."""
    keep_last: int | None = setting(2, POSITIVE, may_change=True)
    """Keep this many newest checkpoints; null: all."""
    keep_best: int | None = setting(None, POSITIVE, may_change=True)
    """Also keep this many best checkpoints, and save at every validation; null: none."""
    best_metric: str = setting("val/loss", may_change=True)
    """Metric by which keep_best chooses."""
    best_is: Literal["lowest", "highest"] = setting("lowest", may_change=True)
    """Whether the lowest or the highest value of best_metric is best."""
    export: Literal["last", "best"] = setting("last", may_change=True)
    """Checkpoint of which the finished run's model is made: the last, or the best of those that are kept."""
    keep_every_steps: int | None = setting(None, POSITIVE, may_change=True)
    """Never remove checkpoints at multiples of this many steps; null: no such exception."""
    sync: bool = setting(False, may_change=True)
    """Wait until a checkpoint is on the disk before training on; false: only until it is in the host's memory."""
    upload: str | None = setting(None, may_change=True, is_path=True)
    """Folder elsewhere (s3://bucket/runs/mine, or a path) to upload checkpoints to in the background; a machine without
    the run folder resumes from there."""


@dataclass(frozen=True)
class AnomalyConfig(Section):
    """What to do at a step whose loss or gradient norm is not finite, or far above those of the last steps."""

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
    fsdp_tp, deepspeed_1, deepspeed_2, or deepspeed_3."""
    tensor_parallel_size: int | None = setting(None, POSITIVE, may_change=True)
    """Number of devices that share each weight matrix; default: all (tp), or those of a node (fsdp_tp)."""
    precision: Precision = setting("auto", may_change=True)
    """32: fp32; 32-tf32: fp32, with matmuls in TF32 on GPUs; bf16-mixed; bf16-true: weights in bf16, rounded
    stochastically; 16-mixed: with loss scaling; fp8: the matmuls of the blocks, the rest as bf16-mixed; auto:
    bf16-mixed on GPUs that have it (else 16-mixed), 32 on CPUs."""
    accelerator: Literal["auto", "cpu", "gpu"] = setting("auto", may_change=True)
    """Kind of device: auto (a GPU if there is one), cpu, or gpu."""
    devices: int | None = setting(None, POSITIVE, may_change=True)
    """Devices per node; default: every GPU, or one CPU process."""
    num_nodes: int = setting(1, POSITIVE, may_change=True)
    """Number of nodes (machines)."""
    seq_len: int = setting(128, POSITIVE)
    """Tokens per sequence."""
    batch_size: int = setting(16, POSITIVE, may_change="if named")
    """Sequences per optimizer step, over all devices."""
    micro_batch_size: int | Literal["auto"] | None = setting(None, POSITIVE, may_change=True)
    """Sequences per forward pass and device; auto: as many as fit into memory; default: a device's share of a batch."""
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
    log_every: int = setting(10, POSITIVE, may_change=True)
    """Optimizer steps between rows of metrics.jsonl."""
    val_every: int = setting(100, POSITIVE, may_change=True)
    """Optimizer steps between validations; there is always one at step 0 and one at the end."""
    logger: Literal["none", "wandb", "csv", "tensorboard"] = setting("none", may_change=True)
    """Logger in addition to metrics.jsonl; wandb works offline if nobody is logged in."""
    compile: bool = setting(False, may_change=True)
    """Compile each block of the model with torch.compile."""
    activation_checkpointing: str = setting("none", may_change=True)
    """Recompute activations in the backward pass, to save memory: none, selective (all but matmuls and attention), full
    (each block), or budget:SHARE of the memory (budget:0.5; with --compile)."""
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
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    robust: RobustConfig = field(default_factory=RobustConfig)
    fsdp: FsdpConfig = field(default_factory=FsdpConfig)
    deepspeed: DeepspeedConfig = field(default_factory=DeepspeedConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    anomaly: AnomalyConfig = field(default_factory=AnomalyConfig)

    @property
    def total_steps(self) -> int:
        """Optimizer steps from the very beginning to the end of the run, if all its batches are of one size."""
        return self.total_steps_from(0, 0)

    def total_steps_from(self, step: int, position: int) -> int:
        """Optimizer steps from the very beginning to the end of a run that took `position` examples in `step` steps."""
        ends = [self.max_steps] if self.max_steps is not None else []
        if self.max_tokens is not None:
            ends.append(step + (self.max_tokens // self.seq_len - position) // self.batch_size)
        return min(ends, default=DEFAULT_STEPS)

    @property
    def run_folder(self) -> Path:
        return Path(self.run_dir or f"runs/{self.objective.name}")


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


def to_tree(config: Config) -> dict[str, Any]:
    """Config -> what a YAML file holds; `parse(["--config", FILE])` gives it back, but for secrets in URLs.

    Paths stand there as they were typed: `~` is the home folder of whoever goes on.
    """
    tree = dataclasses.asdict(config)
    for section in OPEN_SECTIONS:
        tree[section] |= tree[section].pop("settings")
    written: dict[str, Any] = at_paths(cleaned(tree), as_typed)
    return written


def at_paths(value: Any, change: Callable[[str], str], name: str = "") -> Any:
    """Change the paths in a tree of settings, or in the value of the setting `name`."""
    if isinstance(value, dict):
        return {key: at_paths(inner, change, f"{name}.{key}".removeprefix(".")) for key, inner in value.items()}
    if isinstance(value, list):
        return [at_paths(inner, change, name) for inner in value]
    return change(value) if name in PATHS and isinstance(value, str) else value


def cleaned(value: Any) -> Any:
    """Remove secrets from all URLs in a tree of settings."""
    if isinstance(value, dict):
        return {key: cleaned(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [cleaned(inner) for inner in value]
    return without_secrets(value) if isinstance(value, str) else value


def to_yaml(config: Config) -> str:
    return dump(to_tree(config))
