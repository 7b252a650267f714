"""Launches and batches that can't work, refused before any process is started; and flags without an effect."""

import os
from dataclasses import fields
from importlib.util import find_spec
from operator import attrgetter

from transformers import PreTrainedModel

from sslm.config import Config
from sslm.models.blocks import blocks
from sslm.models.build import shallow_model
from sslm.parallel.context_parallel import suits_shared_rows
from sslm.parallel.expert_parallel import check_expert_parallel
from sslm.parallel.float8 import in_8_bits, multiple_of, suits_float8
from sslm.parallel.launch import STRATEGIES, Launch, Scaling, data_parallel_size
from sslm.parallel.pipeline import EXAMPLES, suits_pipeline
from sslm.parallel.tensor_parallel import check_tensor_parallel
from sslm.system.errors import UserError
from sslm.system.limits import allow_open_files
from sslm.system.ranks import under_srun, under_torchrun
from sslm.system.terminal import plural

FILES, FILES_OF_MANY, FILES_OF_LOADER = 64, 64, 16
"""Files, pipes and sockets that a process has open at most, besides two for each rank; more if it is one of many; and
more for each loader process."""

MEETING = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def check_processes(config: Config) -> None:
    """Refuse numbers of processes that can't work: what is known of them before there is a model.

    Raises:
        UserError: the devices can't share the batch, there are more loader processes than make sense, or the system
            lets too few files be open.
    """
    world = data_parallel_size(config)
    check_batch(config, world)
    asked, cores = config.data.num_workers, os.cpu_count() or 1
    if asked > 4 * cores:
        raise UserError(
            f"--data.num_workers {asked}: this machine has {plural(cores, 'CPU core')}; give at most {4 * cores}"
        )
    allow_open_files(open_files_needed(world, asked))


def check_nodes(config: Config) -> None:
    """Refuse several nodes that were not told where they meet, and which is which.

    Raises:
        UserError: variables are missing that torchrun and srun set, and else who starts the command on each node.
    """
    missing = [name for name in MEETING if name not in os.environ]
    if config.num_nodes > 1 and missing and not under_torchrun() and not under_srun():
        raise UserError(
            f"--num_nodes {config.num_nodes}: {', '.join(missing)} not set; start this command on each node with "
            "NODE_RANK=0 or 1 and so on, the first node's name as MASTER_ADDR, and one of its free ports as MASTER_PORT"
        )


def open_files_needed(world: int, num_workers: int) -> int:
    """Return the files, pipes and sockets that a rank has open at most, of so many, with so many loader processes."""
    return FILES + (FILES_OF_MANY + 2 * world) * (world > 1) + FILES_OF_LOADER * num_workers


def check_batch(config: Config, data_parallel_size: int) -> None:
    """Refuse a batch that doesn't divide; of a ramp, any of its batches.

    Raises:
        UserError: a batch doesn't divide into equal parts, or these into micro-batches; the message says what would.
    """
    size, micro, common = data_parallel_size, config.micro_batch_size, config.batch_ramp.common_divisor
    for batch_size in config.batch_ramp.numbers:
        if batch_size % size:
            multiple = f"a multiple of {size}, such as {-(-batch_size // size) * size}"
            raise UserError(f"--batch_size {batch_size}: can't be shared evenly by {size} devices; give {multiple}")
    for batch_size in config.batch_ramp.numbers:
        rows = batch_size // size
        if isinstance(micro, int) and rows % micro:
            divisors = ", ".join(str(n) for n in range(1, rows + 1) if common // size % n == 0)
            raise UserError(
                f"--micro_batch_size {micro}: does not divide a device's {plural(rows, 'sequence')} (--batch_size "
                f"{batch_size} on {plural(size, 'device')}); give one of {divisors}"
            )


def check_strategy(config: Config, launch: Launch, model: PreTrainedModel) -> None:
    """Refuse a launch that can't run, before any process is started.

    Raises:
        UserError: the launch can't run; the message says why, and what to type instead.
    """
    name, world, traits = launch.strategy, launch.world, launch.traits
    if traits.is_single and world > 1:
        raise UserError(
            f"--strategy {name}: runs on one device, got {world}; give --strategy ddp or fsdp, or --devices 1"
        )
    settings = model.config.to_dict()
    if drops := [key for key in settings if key.endswith("layerdrop") and settings[key] and world > 1]:
        why = "each process would drop other layers, and wait for the others' gradients of its own"
        raise UserError(f"--model.{drops[0]} {settings[drops[0]]}: {why}; give 0, or --devices 1")
    if traits.zero_stage:
        _check_deepspeed(config, launch)
    _check_pruning(config, launch)
    if launch.precision == "16-mixed" and not traits.scales_losses:
        raise UserError(
            f"--precision 16-mixed: has no loss scaling under --strategy {name}; give --precision bf16-mixed"
        )
    if launch.float8 is not None:
        _check_float8(launch, launch.float8, model)
    if traits.shards_weights and not blocks(model):
        raise UserError(
            f"--strategy {name}: {model.config.model_type}'s layers can't be told apart; give --strategy ddp"
        )
    if traits.replicates_shards and (launch.replicas == 1 or world % launch.replicas):
        divisor = f"give --fsdp.replicas a divisor of {world} above 1, or " if world > 1 else "give "
        replicas = f"{plural(launch.replicas, 'replica')} of {plural(world, 'device')}"
        raise UserError(f"--strategy {name}: {replicas}; {divisor}--strategy fsdp")
    if config.distill.teacher is not None or config.distill.cache is not None:
        _check_distillation(config, launch)
    if launch.context_parallel_size > 1:
        _check_context_parallel(config, launch, model)
    if launch.expert_parallel_size > 1:
        _check_expert_parallel(config, launch, model)
    if traits.is_pipeline:
        _check_pipeline(config, launch, model)
    if traits.shards_weights:
        _check_resharding(config, launch)
    if traits.tensor_parallel:
        _check_tensor_parallel(config, launch, model)
    elif (size := config.tensor_parallel_size) is not None:
        raise UserError(f"--tensor_parallel_size {size}: belongs to --strategy tp and fsdp_tp, this is {name}")


def _check_distillation(config: Config, launch: Launch) -> None:
    traits, flag = launch.traits, "--distill.teacher" if config.distill.cache is None else "--distill.cache"
    if traits.tensor_parallel or traits.is_pipeline:
        raise UserError(f"{flag}: not under --strategy {launch.strategy}; give --strategy fsdp")
    other = {
        "context_parallel_size": launch.context_parallel_size > 1,
        "expert_parallel_size": launch.expert_parallel_size > 1,
        "robust.adversarial": config.robust.adversarial is not None,
    }
    if given := [name for name, is_given in other.items() if is_given]:
        raise UserError(f"{flag}: not with --{given[0]}; leave one of the two out")
    _check_layers(config, launch)


def _check_layers(config: Config, launch: Launch) -> None:
    """Check what is learnt from a teacher's layers."""
    how = config.distill
    weights = {name: getattr(how, name) for name in ("hidden_weight", "attention_weight")}
    named = [f"--distill.{name} {weight:g}" for name, weight in weights.items() if weight]
    if not named:
        if how.layer_map is not None:
            raise UserError(f"--distill.layer_map {how.layer_map}: of what? give --distill.hidden_weight 1")
        return
    if how.cache is not None:
        raise UserError(f"{named[0]}: a cache has no layers; give --distill.teacher in place of --distill.cache")
    if launch.compiled != "off":
        raise UserError(f"{named[0]}: has not been tried with --compile {config.compile}; give --compile off")
    if how.attention_weight and launch.attention != "sdpa":
        what = f"scores are those of sdpa, not of --attention {launch.attention}"
        raise UserError(f"{named[-1]}: {what}; give --attention sdpa")


def _check_pruning(config: Config, launch: Launch) -> None:
    asked, name, traits = config.prune, launch.strategy, launch.traits
    if asked.sparsity is None and asked.pattern not in ("2:4", "4:8"):
        return
    if traits.zero_stage or traits.is_pipeline or launch.expert_parallel_size > 1:
        what = "--expert_parallel_size" if launch.expert_parallel_size > 1 else f"--strategy {name}"
        raise UserError(f"--prune.sparsity: not with {what}; give --strategy ddp, fsdp, hsdp, tp or fsdp_tp alone")
    if asked.pattern == "layers" and launch.tensor_parallel_size > 1:
        raise UserError(f"--prune.pattern layers: not with --strategy {name}; give --strategy ddp, fsdp or hsdp")
    if asked.method == "wanda" and (launch.tensor_parallel_size > 1 or launch.context_parallel_size > 1):
        why = "each device sees a part of what layers read"
        raise UserError(f"--prune.method wanda: {why} with {name}; give magnitude or movement, or --strategy fsdp")
    if asked.method == "wanda" and launch.compiled != "off":
        raise UserError("--prune.method wanda: compiled layers don't tell what they read; give --compile off")


def _check_context_parallel(config: Config, launch: Launch, model: PreTrainedModel) -> None:
    size, traits = launch.context_parallel_size, launch.traits
    flag = f"--context_parallel_size {size}"
    if traits.tensor_parallel or not traits.shards_weights:
        raise UserError(f"{flag}: belongs to --strategy fsdp and hsdp, this is {launch.strategy}")
    if launch.world % size:
        raise UserError(f"{flag}: does not fit {launch.world} devices; give a divisor of that")
    _check_one_length(config, flag)
    if config.window_tokens % (2 * size):
        raise UserError(
            f"{flag}: --seq_len {config.window_tokens} is to be a multiple of {2 * size}, so that all have as much"
        )
    if config.objective.name != "causal_lm":
        raise UserError(f"{flag}: not of --objective {config.objective.name}; causal_lm alone has it")
    other = {
        "data.document_mask": config.data.document_mask,
        "robust.embedding_noise": config.robust.embedding_noise,
        "robust.adversarial": config.robust.adversarial,
        "lora.rank": config.lora.rank,
    }
    if given := [name for name, value in other.items() if value]:
        raise UserError(f"{flag}: not with --{given[0]}; leave one of the two out")
    if not suits_shared_rows(shallow_model(model.config, "AutoModelForCausalLM")):
        what = "its layers look at other places by more than attention to the whole text"
        raise UserError(f"{flag}: not of {model.config.model_type}: {what}; llama, qwen3, gpt2 and others have it")


def _check_expert_parallel(config: Config, launch: Launch, model: PreTrainedModel) -> None:
    size, traits = launch.expert_parallel_size, launch.traits
    flag = f"--expert_parallel_size {size}"
    if traits.tensor_parallel or not traits.shards_weights:
        raise UserError(f"{flag}: belongs to --strategy fsdp and hsdp, this is {launch.strategy}")
    other = {
        "context_parallel_size": launch.context_parallel_size > 1,
        "precision": launch.float8 is not None,
        "lora.rank": config.lora.rank is not None,
    }
    if given := [name for name, is_given in other.items() if is_given]:
        raise UserError(f"{flag}: has not been tried with --{given[0]} {attrgetter(given[0])(config)}; leave one out")
    check_expert_parallel(model, launch.world // launch.replicas, size)


def _check_one_length(config: Config, flag: str) -> None:
    if len(config.length_ramp.stages) > 1:
        raise UserError(f"{flag}: not with --seq_len {config.seq_len}; give {config.window_tokens} alone")


def _check_pipeline(config: Config, launch: Launch, model: PreTrainedModel) -> None:
    flag, kind, depth = f"--strategy {launch.strategy}", model.config.model_type, len(blocks(model))
    if config.objective.name != "causal_lm":
        raise UserError(f"{flag}: not of --objective {config.objective.name}; causal_lm alone has it")
    if not 2 <= launch.world <= depth:
        what = f"{plural(depth, 'block')} can't be shared by {plural(launch.world, 'device')}"
        instead = "give --strategy fsdp" if depth < 2 else f"give 2 to {depth} devices"
        raise UserError(f"{flag}: {what}; {instead}")
    _check_one_length(config, flag)
    batch_size, micro = config.batch_ramp.numbers[0], config.micro_batch_size
    most = batch_size // launch.world
    needs = f"{plural(launch.world, 'device')} with blocks of their own need as many micro-batches"
    if not most:
        raise UserError(f"--batch_size {batch_size}: {needs}; give {launch.world} or more")
    if isinstance(micro, int) and micro > most:
        raise UserError(f"--micro_batch_size {micro}: {needs} of --batch_size {batch_size}; give at most {most}")
    other = {
        "data.document_mask": config.data.document_mask,
        "robust.embedding_noise": config.robust.embedding_noise,
        "robust.adversarial": config.robust.adversarial,
        "model.freeze": config.model.freeze,
        "lora.rank": config.lora.rank,
        "optim.mup": config.optim.mup,
        "optim.groups": config.optim.groups,
        "eval_every": config.eval_every,
    }
    if given := [name for name, value in other.items() if value]:
        raise UserError(f"{flag}: not with --{given[0]}; leave one of the two out")
    if config.optim.name == "muon":
        raise UserError(f"--optim.name muon: not under {flag}, where no rank has all matrices; give another optimizer")
    if launch.float8 is not None:
        raise UserError(f"--precision {launch.precision}: has not been tried with {flag}; give --precision bf16-mixed")
    if not suits_pipeline(shallow_model(model.config, "AutoModelForCausalLM")):
        what = "its parts are not embeddings, blocks, a norm and a head, or are put together in another way"
        raise UserError(f"{flag}: not of {kind}: {what}; {', '.join(EXAMPLES)} and others can be cut")


def _check_resharding(config: Config, launch: Launch) -> None:
    number, shards = config.fsdp.reshard_after_forward, launch.world // launch.tensor_parallel_size // launch.replicas
    fitting = [n for n in range(2, shards) if shards % n == 0]
    if not isinstance(number, bool) and number not in fitting:
        what = f"not a part of the {plural(shards, 'device')} that share the weights"
        allowed = ", ".join(["true", "false", *map(str, fitting)])
        raise UserError(f"--fsdp.reshard_after_forward {number}: {what}; give one of {allowed}")


def _check_tensor_parallel(config: Config, launch: Launch, model: PreTrainedModel) -> None:
    size, world, takes_all = launch.tensor_parallel_size, launch.world, launch.traits.tensor_parallel == "all"
    if world % size or (takes_all and size != world):
        which = f"{world}, or --strategy fsdp_tp" if takes_all else "a divisor of that"
        raise UserError(f"--tensor_parallel_size {size}: does not fit {world} devices; give {which}")
    if config.lora.rank is not None:
        raise UserError(f"--lora.rank {config.lora.rank}: not with {launch.strategy}; give --strategy fsdp")
    check_tensor_parallel(model, size)


def _check_float8(launch: Launch, scaling: Scaling, model: PreTrainedModel) -> None:
    flag = f"--precision {launch.precision}"
    if launch.traits.tensor_parallel:
        other = "give --strategy fsdp, or --precision bf16-mixed"
        raise UserError(f"{flag}: not under --strategy {launch.strategy}; {other}")
    if not any(suits_float8(module, scaling) for block in in_8_bits(blocks(model)) for module in block.modules()):
        raise UserError(
            f"{flag}: {model.config.model_type} has no linear layers in its blocks whose sides are multiples "
            f"of {multiple_of(scaling)}; give --precision bf16-mixed"
        )


def _check_deepspeed(config: Config, launch: Launch) -> None:
    name = launch.strategy
    if find_spec("deepspeed") is None:
        raise UserError(f"--strategy {name}: DeepSpeed is not installed; pip install 'sslm[deepspeed]'")
    if config.optim.name != "adamw":
        why = f"--strategy {name} knows AdamW's states alone"
        raise UserError(f"--optim.name {config.optim.name}: {why}; give --strategy fsdp, or --optim.name adamw")
    if config.optim.average_decay is not None:
        raise UserError(f"--optim.average_decay: not under --strategy {name}; leave it out, or give --strategy fsdp")
    if launch.precision == "16-mixed" and launch.accelerator != "gpu":
        raise UserError(
            "--precision 16-mixed: DeepSpeed has it on GPUs alone; give --precision bf16-mixed, or --strategy ddp"
        )
    if config.deepspeed.offload_parameters and launch.traits.zero_stage < 3:
        raise UserError(
            f"--deepspeed.offload_parameters: {name} keeps all weights on each device; give --strategy deepspeed_3"
        )
    if config.deepspeed.config is not None:
        from sslm.parallel.deepspeed import settings  # takes Lightning's strategy, which not every run needs

        settings(config, launch)


def without_effect(config: Config, strategy: str) -> list[str]:
    """Return the flags that were given and that a strategy does not know."""
    traits, defaults = STRATEGIES[strategy], Config()
    idle = [] if traits.shards_weights else [f"fsdp.{field.name}" for field in fields(config.fsdp)]
    if not traits.zero_stage:
        idle += [f"deepspeed.{field.name}" for field in fields(config.deepspeed)]
    if traits.shards_weights and not traits.replicates_shards:
        idle.append("fsdp.replicas")
    return [f"--{name}" for name in idle if attrgetter(name)(config) != attrgetter(name)(defaults)]
