"""The front door: text in, a trained Hugging Face model out.

    python -m sslm.train [--config FILE]… [flags]

parse -> objective -> data -> model -> trainer -> fit -> export. Everything that can be wrong with what was asked is found
out before another process is started and before the run folder is touched.
"""

import functools
import os
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sslm import errors, launch, terminal
from sslm.commandline import parse
from sslm.config import Config
from sslm.errors import DONE, FAILED, STOPPED, USER_ERROR, UserError, exits_politely, sentence_of
from sslm.runs import RunFolder
from sslm.terminal import count, say

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer
    from transformers import PreTrainedConfig, PreTrainedModel

    from sslm.callbacks.checkpoint import Checkpoint
    from sslm.callbacks.monitor import Monitor
    from sslm.callbacks.preemption import Preemption
    from sslm.callbacks.validation import Validation
    from sslm.data.module import DataModule
    from sslm.data.recipe import Recipe
    from sslm.needs import Needs
    from sslm.objectives.base import Objective
    from sslm.strategies import Launch


UNREAD_SHARE = 0.01
"""Windows don't cross shards; of the tokens at shards' ends that stand in none, more than this is worth a word."""


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    config = parse(sys.argv[1:] if arguments is None else arguments)
    if launch.is_child():
        launch.die_with_parent()
        errors.parent_says_it = True
    if not launch.is_first_process():
        terminal.mute()
    terminal.keep_libraries_quiet()
    run = RunFolder(config.run_folder)
    run.check_config(config)
    check_batch(config)

    objective, recipe = choose_objective(config)
    data = open_data(config, recipe)
    model_config = choose_model(config, objective, data)
    model = build_on_meta(config, objective, model_config)
    check_embedding(config, data, model)
    needs, on, why = choose_launch(config, model, data)
    if config.dry_run:
        return show_plan(needs, data, on, why, arguments)
    describe(config, data, model)
    describe_launch(on, why)

    with run.locked() if launch.is_first_process() else nullcontext():
        checkpoint = choose_checkpoint(config, run, data, model)
        if checkpoint is None and launch.is_first_process():
            run.amendments.unlink(missing_ok=True)  # of a run that never had a checkpoint
        if checkpoint is not None and step_of(checkpoint) >= config.total_steps:
            return already_done(config, run, data, checkpoint)
        micro_batch_size = choose_micro_batch_size(config, run, needs, on)
        module = build_module(
            config, on, objective, recipe, model_config, data, micro_batch_size, fresh=checkpoint is None
        )
        callbacks = build_callbacks(config, on, run, data, model_config, checkpoint)
        trainer = build_trainer(config, run, launch.trainer_settings(config, on), callbacks)
        return train(config, run, data, module, trainer, callbacks)


def train(
    config: Config, run: RunFolder, data: "DataModule", module: "Objective", trainer: "Trainer", callbacks: "Callbacks"
) -> int:
    """Fit, then export on rank 0 while the others wait; the exit code, which status.json has too."""
    from sslm.clusters import watch_children

    first = step_of(callbacks.checkpoint.resume_from)

    def failed(code: int, reason: str) -> None:
        if trainer.is_global_zero:
            with suppress(OSError):  # the disk may be full
                run.write_status("failed", exit_code=code, step=trainer.global_step, reason=reason)

    watch_children(trainer, failed)
    if trainer.is_global_zero:
        run.write_config(config)
        run.write_status("running", step=first)
        say(f"Run folder: {run.path}" + (f"; going on from step {first}" if first else ""))
    try:
        trainer.fit(module, datamodule=data)
        if trainer.is_global_zero:
            conclude(config, run, data, callbacks)
        module.wait_for_all()
    except BaseException as error:
        failed(USER_ERROR if sentence_of(error) else FAILED, f"{type(error).__name__}: {error}")
        if type(error).__name__ == "DistStoreError":
            raise RuntimeError(
                f"not all processes came within {config.start_timeout_seconds:g} s (--start_timeout_seconds)"
            ) from error
        raise
    if callbacks.preemption.stopped and not launch.is_first_process():
        launch.leave()
    return STOPPED if callbacks.preemption.stopped else DONE


# ------------------------------------------------------------------------------------------------ what was asked for


def check_batch(config: Config) -> None:
    """Batch sizes divide; if not, say what would."""
    shares = launch.num_shares(config)
    if config.batch_size % shares:
        raise UserError(f"--batch_size {config.batch_size}: can't be shared by {shares} devices; give a multiple of {shares}, such as "
                        f"{-(-config.batch_size // shares) * shares}")  # fmt: skip
    if config.data.num_workers > (most := 4 * (os.cpu_count() or 1)):
        raise UserError(
            f"--data.num_workers {config.data.num_workers}: this machine has {os.cpu_count()} CPU cores; give at most {most}"
        )
    share, micro = config.batch_size // shares, config.micro_batch_size
    if isinstance(micro, int) and share % micro:
        divisors = [str(n) for n in range(1, share + 1) if share % n == 0]
        raise UserError(f"--micro_batch_size {micro}: does not divide a device's {share} sequences (batch_size {config.batch_size} / "
                        f"{shares} devices); what would: {', '.join(divisors)}")  # fmt: skip


def choose_launch(config: Config, model: "PreTrainedModel", data: "DataModule") -> "tuple[Needs, Launch, str]":
    """What the run needs, how it is launched, and why so."""
    from sslm.machines import here
    from sslm.needs import settle

    return settle(config, model, data, here(*launch.devices(config)))


def show_plan(needs: "Needs", data: "DataModule", on: "Launch", why: str, arguments: list[str] | None) -> int:
    """What --dry_run is for; `sslm plan` shows the same."""
    from sslm.plan import Plan

    Plan(needs, data, on, why).show(sys.argv[1:] if arguments is None else arguments)
    say("Dry run: all of this is in order; leave --dry_run out to train.")
    return DONE


def choose_micro_batch_size(config: Config, run: RunFolder, needs: "Needs", on: "Launch") -> int | None:
    """Sequences for each forward pass; auto: as the run folder remembers, or what fits. None: all of a device's share.

    Raises:
        UserError: it doesn't fit into memory: by how much, and what would.
    """
    from sslm.callbacks.micro_batch import remembered_sizes

    if config.micro_batch_size == "auto" and (
        size := remembered_sizes(run.micro_batch_sizes).get(holds_for(config, on))
    ):
        return size
    if not launch.is_first_process() and config.micro_batch_size != "auto":
        return config.micro_batch_size
    size = needs.micro_batch_size(on)
    if needs.is_narrow(on, size):
        say("Warning: this will leave less than a tenth of the memory free; --micro_batch_size auto finds what fits, sslm plan tells what takes "
            "how much")  # fmt: skip
    return None if config.micro_batch_size is None else size


def holds_for(config: Config, on: "Launch") -> str:
    """What a micro-batch size that was found depends on."""
    return (f"{on.strategy}, {on.num_nodes} x {on.devices} {on.accelerator}, {on.precision}, {config.activation_checkpointing}, "
            f"batch of {config.batch_size}")  # fmt: skip


def choose_objective(config: Config) -> "tuple[type[Objective], Recipe]":
    from sslm.commandline import typed
    from sslm.models.build import read_config
    from sslm.objectives import load_objective

    objective, given = load_objective(config.objective.name), config.model
    pretrained = pretrained_folder(config)
    model_type = given.model_type if pretrained is None else read_config(pretrained).model_type
    objective = objective.fitting(model_type or objective.default_model["model_type"])
    return objective, objective.make_recipe(typed(objective.recipe_class, "objective", config.objective.settings))


def open_data(config: Config, recipe: "Recipe") -> "DataModule":
    from sslm.data.module import DataModule

    pretrained = pretrained_folder(config)
    data = DataModule(
        config.data, recipe, seq_len=config.seq_len, batch_size=config.batch_size, total_steps=config.total_steps,
        seed=config.seed, tokenizer=pretrained, amendments=RunFolder(config.run_folder).amendments,
    )  # fmt: skip
    data.setup()
    return data


def choose_model(config: Config, objective: "type[Objective]", data: "DataModule") -> "PreTrainedConfig":
    from sslm.data.tokenizer import special_ids
    from sslm.models.build import model_config

    return model_config(
        config.model.settings, model_type=config.model.model_type, default=objective.default_model,
        auto_class=objective.auto_class, vocab_size=data.vocab_size, seq_len=data.num_positions,
        special_ids=special_ids(data.tokenizer),
        pretrained=pretrained_folder(config),
    )  # fmt: skip


def build_on_meta(config: Config, objective: "type[Objective]", model_config: "PreTrainedConfig") -> "PreTrainedModel":
    """The model without weights, tried on a few tokens."""
    from sslm.models.build import check_runs, on_meta
    from sslm.models.parallelize import blocks
    from sslm.models.recompute import check_recompute

    check_recompute(config.activation_checkpointing, compile_blocks=config.compile)
    model = on_meta(model_config, objective.auto_class)
    check_runs(model, objective.auto_class)
    if not blocks(model) and (config.compile or config.activation_checkpointing != "none"):
        raise UserError(f"--model.model_type {model_config.model_type}: its layers can't be told apart, as --compile and "
                        f"--activation_checkpointing need; leave these out")  # fmt: skip
    if config.compile and model_config.model_type == "sslm_lstm":
        raise UserError("--compile: torch can't compile an LSTM; leave it out")
    return model


def check_embedding(config: Config, data: "DataModule", model: "PreTrainedModel") -> None:
    """Word vectors fit the embedding, as far as the file's first line shows it."""
    from sslm.models.vectors import check_vectors

    file = config.model.embedding_init
    if file is None:
        return
    if config.model.pretrained is not None:
        raise UserError(
            f"--model.embedding_init {file}: --model.pretrained brings an embedding that is trained already; leave one of the two out"
        )
    check_vectors(file, model, data.tokenizer, config.model.embedding_project)


def pretrained_folder(config: Config) -> str | None:
    """--model.pretrained as transformers takes it: of a run folder, its export."""
    given = config.model.pretrained
    if given is None:
        return None
    run = RunFolder(Path(given))
    if not (run.checkpoints.is_dir() or run.export.is_dir()):
        return given
    if not (run.export / "config.json").is_file():
        raise UserError(f"--model.pretrained {given}: this run has not ended yet and has no export; make one of its newest "
                        f"checkpoint: sslm export {given} --out {given}/export")  # fmt: skip
    return str(run.export)


def choose_checkpoint(config: Config, run: RunFolder, data: "DataModule", model: "PreTrainedModel") -> Path | None:
    """The checkpoint to go on from, checked against data and model (on the meta device); None: begin.

    A run goes on from its own newest; --resume PATH says where a run begins that has none.
    """
    from sslm import checkpoints
    from sslm.callbacks.checkpoint import check_data
    from sslm.export import find_checkpoint

    own = checkpoints.found(run.checkpoints)
    if config.resume == "never" and own:
        raise UserError(
            f"--resume never: {run.path} has checkpoints already; remove the folder, or give another --run_dir"
        )
    if own:  # one process looks closely; the callback makes sure that the others took the same
        checkpoint = checkpoints.newest_good(run.checkpoints, say) if launch.is_first_process() else own[0]
    elif config.resume not in ("auto", "never"):
        checkpoint = find_checkpoint(config.resume)
        RunFolder(checkpoint.parent.parent).check_config(config)
    else:
        checkpoint = None
    if checkpoint is not None:
        check_data(checkpoint, data)
        checkpoints.check_weights(checkpoint, model)
        if not own and step_of(checkpoint) >= config.total_steps:
            raise UserError(f"--resume {config.resume}: is at step {step_of(checkpoint)} already, this run ends at "
                            f"{config.total_steps}; give more --max_steps")  # fmt: skip
    return checkpoint


def step_of(checkpoint: Path | None) -> int:
    from sslm.checkpoints import read_state

    return int(read_state(checkpoint)["step"]) if checkpoint else 0


# ------------------------------------------------------------------------------------------------ building


def build_module(
    config: Config,
    on: "Launch",
    objective: "type[Objective]",
    recipe: "Recipe",
    model_config: "PreTrainedConfig",
    data: "DataModule",
    micro_batch_size: int | None,
    fresh: bool,
) -> "Objective":
    """The Lightning module. Weights and word vectors are read only for a run that begins: later its checkpoint has them."""
    from sslm.models import build
    from sslm.models.parallelize import parallelize
    from sslm.models.vectors import initialise_embedding

    model: Any = model_config
    pretrained = pretrained_folder(config)
    if pretrained is not None and fresh:
        model, new = build.load_pretrained(pretrained, model_config, objective.auto_class, config.seed)
        say(f"Weights from {config.model.pretrained}; new: {', '.join(new) or 'none'}")
    if (file := config.model.embedding_init) is not None and fresh:
        model = build.build(model_config, objective.auto_class, config.seed)
        matched = initialise_embedding(model, data.tokenizer, file, config.model.embedding_project, config.seed)
        say(f"Embedding: {matched:,} of {data.vocab_size:,} entries begin with vectors of {file}")
    return objective(
        model, recipe, optim=config.optim, robust=config.robust, total_steps=config.total_steps, micro_batch_size=micro_batch_size,
        seed=config.seed,
        parallelize=functools.partial(
            parallelize, replicas=on.replicas, reshard_after_forward=config.fsdp.reshard_after_forward,
            in_bf16=on.precision == "bf16-true" and not on.strategy.startswith("deepspeed"),
            computes_in_bf16=on.precision in ("bf16-mixed", "fp8"), in_float8=on.precision == "fp8",
            compile_blocks=config.compile,
            activation_checkpointing=config.activation_checkpointing,
        ),
        reduce_gradients=config.fsdp.reduce_gradients,
    )  # fmt: skip


class Callbacks(NamedTuple):
    """In the order in which they act: a step's rows are written before it is validated, and that before it is saved."""

    monitor: "Monitor"
    validation: "Validation"
    checkpoint: "Checkpoint"
    preemption: "Preemption"
    others: "tuple[Callback, ...]"


def build_callbacks(
    config: Config,
    on: "Launch",
    run: RunFolder,
    data: "DataModule",
    model_config: "PreTrainedConfig",
    resume_from: Path | None,
) -> Callbacks:
    from sslm.callbacks.checkpoint import Checkpoint
    from sslm.callbacks.micro_batch import MicroBatch
    from sslm.callbacks.monitor import Monitor
    from sslm.callbacks.preemption import Preemption
    from sslm.callbacks.timeouts import Timeouts
    from sslm.callbacks.validation import Validation

    total, batch_tokens = config.total_steps, config.batch_size * config.seq_len
    is_auto = config.micro_batch_size == "auto"
    auto = [MicroBatch(run.micro_batch_sizes, holds_for(config, on))] if is_auto else []
    return Callbacks(
        Monitor(run.path, total_steps=total, batch_tokens=batch_tokens, model_config=model_config,
                unigram_loss=data.unigram_loss),
        Validation(config.val_every, total),
        Checkpoint(run.checkpoints, config.checkpoint, resume_from, total),
        Preemption(config.stop_after, launch.STARTED_AT),
        (Timeouts(config.collective_timeout_seconds), *auto),
    )  # fmt: skip


def build_trainer(config: Config, run: RunFolder, settings: dict[str, Any], callbacks: Callbacks) -> "Trainer":
    from lightning.pytorch import Trainer

    from sslm.loggers import build_logger

    return Trainer(
        **settings,
        max_steps=config.total_steps,
        max_epochs=-1,
        callbacks=[*callbacks[:-1], *callbacks.others],
        logger=build_logger(config.logger, run),
        log_every_n_steps=config.log_every,
        default_root_dir=run.path,
        check_val_every_n_epoch=None,
        val_check_interval=config.total_steps + 1,  # never: our callback validates
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
    )


# ------------------------------------------------------------------------------------------------ what is said and left


def describe(config: Config, data: "DataModule", model: "PreTrainedModel") -> None:
    """Say what will be trained on what."""
    from sslm.data.packing import Packed

    stream, steps = data.train_stream, config.total_steps
    corpora = [source.corpus for source in stream.sources]
    documents = sum(corpus.num_documents for corpus in corpora)
    say(f"{f'Text: {documents:,} documents' if documents else 'Ids of other tools'}, {count(sum(c.num_tokens for c in corpora))} tokens of "
        f"{data.vocab_size:,} kinds; {stream.num_windows:,} training and {data.val_stream.num_windows:,} held-out sequences of "
        f"{config.seq_len}")  # fmt: skip
    for source in stream.sources:
        of_it = f" of {source.name}" if source.name else ""
        if isinstance(source.windows, Packed):
            say(f"Packing{of_it}: {source.windows.fill:.1%} of the places hold a token")
        elif source.windows.num_unread > UNREAD_SHARE * source.corpus.num_tokens:
            say(f"Warning: {count(source.windows.num_unread)} tokens{of_it} stand in no sequence of {config.seq_len}: its shards are short; "
                f"prepare it with larger ones, or lower --seq_len")  # fmt: skip
    say(f"Model: {config.objective.name}, {model.config.model_type} with {count(model.num_parameters())} parameters")
    say(f"Training: {steps} steps of {config.batch_size} sequences, {count(steps * config.batch_size * config.seq_len)} tokens"
        + ("" if data.mixes else f", {steps * config.batch_size / stream.num_windows:.2f} epochs"))  # fmt: skip
    if data.mixes:
        describe_mixture(config, data)
    say(
        f"Unigram loss: {data.unigram_loss:.4f} nats/token on held-out text, with the frequencies of targets alone (to be beaten)"
    )


def describe_launch(on: "Launch", why: str) -> None:
    nodes = f"{on.num_nodes} nodes of " if on.num_nodes > 1 else ""
    say(
        f"Launch: {on.strategy} on {nodes}{on.devices} {on.accelerator.upper()}{'s' if on.devices > 1 else ''} ({why}), {on.precision}"
    )


def describe_mixture(config: Config, data: "DataModule") -> None:
    """Each source's share of the run, and a warning where it is read more often than asked."""
    positions = config.total_steps * config.batch_size
    for source, (examples, epochs) in zip(
        config.data.sources or [], data.train_stream.seen(positions).values(), strict=True
    ):
        name = source.name or source.path
        say(
            f"  {name}: {examples / positions:.2%} of the run, {count(examples * config.seq_len)} tokens, {epochs:.2f} epochs"
        )
        if epochs > source.max_epochs:
            say(f"Warning: {name} will be read {epochs:.1f} times, more than its max_epochs {source.max_epochs:g}; lower its weight, "
                f"bring more text, or raise max_epochs")  # fmt: skip


def conclude(config: Config, run: RunFolder, data: "DataModule", callbacks: Callbacks) -> None:
    """Leave a run that has stopped or is done: status, export, and what to do next."""
    from sslm.export import export

    checkpoint, preemption = callbacks.checkpoint.newest, callbacks.preemption
    assert checkpoint is not None
    step = step_of(checkpoint)
    if preemption.stopped:
        run.write_status("stopped", exit_code=STOPPED, step=step, reason=preemption.reason)
        say(
            f"Stopped at step {step} of {config.total_steps} ({preemption.reason}), all saved. Run the same command to go on."
        )
        return
    export(checkpoint, run.export)
    run.write_status("done", exit_code=DONE, step=step, reason="all steps are done")
    summarise(config, run, data)


def already_done(config: Config, run: RunFolder, data: "DataModule", checkpoint: Path) -> int:
    """Nothing left to train; make the export if the run was killed before it had one."""
    from sslm.export import export

    step = step_of(checkpoint)
    if launch.is_first_process():
        if not (run.export / "config.json").is_file():
            export(checkpoint, run.export)
        run.write_status("done", exit_code=DONE, step=step, reason="all steps are done")
        summarise(config, run, data)
        say(f"This run is done: {step} of {config.total_steps} steps. To train longer: --max_steps {2 * step}; to start anew: "
            f"--run_dir with another folder.")  # fmt: skip
    return DONE


def summarise(config: Config, run: RunFolder, data: "DataModule") -> None:
    """Where the model is, how to load it, how to go on, what to try next."""
    from sslm.export import auto_class_of, own_code

    measured = [row for row in run.rows() if "val/loss" in row]
    say()
    if measured:
        first, last = measured[0], measured[-1]
        per_byte = f" ({last['val/bits_per_byte']:.3f} bits per byte)" if "val/bits_per_byte" in last else ""
        say(f"Held-out loss {first['val/loss']:.4f} -> {last['val/loss']:.4f} nats/token{per_byte}; unigram loss "
            f"{data.unigram_loss:.4f}")  # fmt: skip
    say(f"Model:    {run.export}")
    classes = [auto_class_of(run.export), *(["AutoTokenizer"] if data.tokenizer is not None else [])]
    say(f"  from transformers import {', '.join(classes)}")
    for name, loader in zip(("model", "tokenizer"), classes, strict=False):
        say(f"  {name} = {loader}.from_pretrained({str(run.export)!r}{own_code(run.export)})")
    say(f"Curves:   {run.curves}")
    say(f"Go on:    the same command with --max_steps {2 * config.total_steps}")
    if config.data.train is None and not config.data.sources:
        say("Next:     python -m sslm.train --data.train YOUR.txt --run_dir runs/mine")


if __name__ == "__main__":
    sys.exit(main())
