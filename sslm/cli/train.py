"""sslm train: objective -> data -> model -> launch -> trainer -> fit -> export.

Mistakes in what was asked are found before another process is started and before the run folder is touched.
"""

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch.distributed import DistStoreError
from transformers import PreTrainedConfig, PreTrainedModel

from sslm.cli.plan import Plan
from sslm.config import Config
from sslm.config.written import to_tree
from sslm.data.module import DataModule
from sslm.data.stream.recipe import Recipe
from sslm.evaluation.in_training import Evaluations, asked_in
from sslm.models import build
from sslm.models.adapters import Adapters
from sslm.models.layers_of import layers_of, parse_layers
from sslm.models.word_vectors import initialise_embedding
from sslm.objectives.choose import (
    build_on_meta,
    check_compared,
    check_embedding,
    check_tokenizer,
    choose_adapters,
    choose_model,
    choose_objective,
    choose_teacher,
    make_module,
    open_cache,
    open_data,
    with_epochs,
)
from sslm.objectives.closing import predict_held_out
from sslm.parallel import strategies
from sslm.parallel.checks import check_nodes, check_processes
from sslm.parallel.launch import Launch
from sslm.parallel.launchers import watch_children
from sslm.parallel.planning.budget import Budget, plan_launch
from sslm.parallel.planning.micro_batch import choose_micro_batch_size, micro_batch_key
from sslm.parallel.tf32 import fp32_products
from sslm.runs.checkpoints.best import best_checkpoint
from sslm.runs.checkpoints.folder import read_state, step_of
from sslm.runs.checkpoints.mirror import Mirror, check_upload
from sslm.runs.export import export
from sslm.runs.folder import RunFolder, pretrained_folder, run_of
from sslm.runs.resume import check_ramps, choose_checkpoint, reaches_the_end, total_steps
from sslm.runs.trackers import Trackers, check_trackers, parse_trackers
from sslm.runs.trackers.about import write_about
from sslm.system import exits, ranks, terminal
from sslm.system.errors import UserError, sentence_of
from sslm.system.exits import DONE, FAILED, INTERRUPTED, STOPPED, USER_ERROR
from sslm.system.output import leave_paused_readers
from sslm.system.signals import Stopped
from sslm.system.terminal import say
from sslm.training.callbacks.checkpoint import Checkpoint
from sslm.training.callbacks.cores import Cores
from sslm.training.callbacks.enough import Enough
from sslm.training.callbacks.evaluation import Evaluation
from sslm.training.callbacks.micro_batch import MicroBatch
from sslm.training.callbacks.monitor import Monitor
from sslm.training.callbacks.preemption import Preemption
from sslm.training.callbacks.profile import profiler_of
from sslm.training.callbacks.rescue import Rescue
from sslm.training.callbacks.resume import Resume
from sslm.training.callbacks.rewind import Anomalies
from sslm.training.callbacks.timeouts import Timeouts
from sslm.training.callbacks.validation import Validation
from sslm.training.callbacks.watchdog import Watchdog
from sslm.training.distillation.cache import BESIDE_CACHE, TeacherCache
from sslm.training.lightning import NoProfiler, use_step_loop
from sslm.training.module import Objective
from sslm.training.report import describe, describe_launch, summarise
from sslm.training.stopping import parse_stop_when


class Setup(NamedTuple):
    """What is settled of a run before anything is written."""

    config: Config
    folder: RunFolder
    objective: type[Objective]
    recipe: Recipe
    data: DataModule
    model_config: PreTrainedConfig
    adapters: Adapters | None
    budget: Budget
    launch: Launch
    total_steps: int
    """Steps from the very beginning to the end."""
    teacher: PreTrainedModel | None
    """The model to learn from, as it was saved; None if there is none."""
    cache: TeacherCache | None
    """What the teacher said of all batches, to learn from instead; None if it is asked."""
    evaluations: Evaluations | None
    """What the model is measured on while it trains; None if on nothing but held-out text."""


class Callbacks(NamedTuple):
    """A run's callbacks in the order in which they act: a step's row is written, then it is measured, then saved."""

    first: tuple[Callback, ...]
    """What times a step, and nothing but it."""
    monitor: Monitor
    validation: Validation
    enough: Enough
    evaluation: Evaluation
    resume: Resume
    checkpoint: Checkpoint
    preemption: Preemption
    others: tuple[Callback, ...]


def run(config: Config, arguments: list[str]) -> int:
    """Train as the settings say, or show the plan (--dry_run), and return the exit code."""
    leave_paused_readers()
    if not ranks.is_first_process():
        terminal.mute()
    folder = RunFolder(config.run_folder)
    objective, recipe = choose_objective(config)
    folder.check_config(config)
    check_processes(config)
    check_trackers(parse_trackers(config.logger))
    check_upload(config)
    evaluations = asked_in(config, objective, measures=ranks.is_first_process())

    data = open_data(config, recipe)
    config = with_epochs(config, data)
    if evaluations is not None:
        evaluations.check_texts(data.tokenizer)
    teacher = choose_teacher(config, objective, data)
    cache = open_cache(config, data, teacher)
    model_config = choose_model(config, objective, data, teacher)
    adapters = choose_adapters(config, objective, model_config)
    weightless = build_on_meta(config, objective, model_config, adapters)
    check_embedding(config, data, weightless)
    check_tokenizer(config, data)
    check_compared(config, objective, weightless, teacher)
    budget, launch = plan_launch(config, weightless, data, teacher=teacher if cache is None else None)
    made = (config, folder, objective, recipe, data, model_config, adapters, budget, launch)
    setup = Setup(*made, total_steps=config.total_steps, teacher=teacher, cache=cache, evaluations=evaluations)
    if config.dry_run:
        if ranks.is_first_process():
            rehearse(setup, arguments)
        return DONE
    check_nodes(config)
    describe(config, data, weightless)
    describe_launch(config, launch, weightless)

    patience = config.start_timeout_seconds if ranks.may_meet_former_self() else 0.0
    with folder.locked(patience) if ranks.is_first_process() else nullcontext():
        checkpoint = choose_checkpoint(config, folder, data, weightless)
        if checkpoint is not None and reaches_the_end(checkpoint, config):
            return already_done(setup, checkpoint)
        if checkpoint is None and ranks.is_first_process():
            for file in (folder.amendments, folder.changes, folder.anomalies):
                file.unlink(missing_ok=True)  # of a run that never had a checkpoint
        setup = with_end(setup, checkpoint)
        module = build_module(setup, checkpoint)
        check_teacher(checkpoint, module)
        callbacks = build_callbacks(setup, checkpoint)
        return train(setup, module, build_trainer(setup, callbacks), callbacks)


def rehearse(setup: Setup, arguments: list[str]) -> None:
    """Show the plan, and do all that a run does before its first step, but leave no trace."""
    config, folder = setup.config, setup.folder
    Plan(setup.budget, setup.data, setup.launch).show(arguments)
    with folder.looked_at():
        checkpoint = choose_checkpoint(config, folder, setup.data, setup.budget.model)
        if checkpoint is not None and reaches_the_end(checkpoint, config):
            say(f"Dry run: nothing is left to train. {done_in_words(config, checkpoint)}.")
            return
        setup = with_end(setup, checkpoint)
        module = build_module(setup, checkpoint)
        check_teacher(checkpoint, module)
        module.checked_model(config.data.document_mask)
        build_trainer(setup, build_callbacks(setup, checkpoint))
    begins = "begin" if checkpoint is None else f"resume from {checkpoint}"
    say(f"Dry run: all of this is in order; leave --dry_run out to {begins}.")


def train(setup: Setup, module: Objective, trainer: Trainer, callbacks: Callbacks) -> int:
    """Fit, then export on rank 0 while the others wait; return the exit code, which status.json has too."""
    folder = setup.folder

    def failed(code: int, reason: str) -> None:
        if trainer.is_global_zero:
            with suppress(OSError):  # the disk may be full
                folder.write_status("failed", exit_code=code, step=trainer.global_step, reason=reason)

    watch_children(trainer, failed)
    if trainer.is_global_zero:
        start = callbacks.resume.start
        first = step_of(start)
        if start is not None:
            folder.record_changes(setup.config, first, read_state(start)["position"], run_of(start))
        folder.write_config(setup.config)
        device = torch.cuda.get_device_name() if setup.launch.accelerator == "gpu" else "cpu"
        write_about(folder, setup.data.fingerprint(), setup.data.cleaned(), device, setup.launch.world)
        folder.write_status("running", step=first)
        say(f"Run folder: {folder.path}" + (f"; resuming at step {first}" if first else ""), to_copy=True)
    try:
        with fp32_products(setup.launch):
            trainer.fit(module, datamodule=setup.data)
        if trainer.is_global_zero:
            conclude(setup, callbacks)
        module.wait_for_all()
        if trainer.is_global_zero and not callbacks.preemption.stopped:  # the others are done
            predict(setup, trainer.strategy.root_device)
    except Stopped as stop:
        if trainer.is_global_zero:
            folder.write_status("stopped", exit_code=STOPPED, step=trainer.global_step, reason=str(stop))
        raise
    except BaseException as error:
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):  # Lightning exits with 1
            failed(INTERRUPTED, "interrupted")
            raise KeyboardInterrupt from None
        failed(USER_ERROR if sentence_of(error) else FAILED, f"{type(error).__name__}: {error}")
        if isinstance(error, DistStoreError):
            limit = f"{setup.config.start_timeout_seconds:g} s (--start_timeout_seconds)"
            raise RuntimeError(f"not all processes connected within {limit}") from error
        raise
    if callbacks.preemption.stopped and not ranks.is_first_process():
        exits.leave(STOPPED if ranks.tells_exit_code() else DONE)
    return STOPPED if callbacks.preemption.stopped else DONE


def conclude(setup: Setup, callbacks: Callbacks) -> None:
    """Write the status and the export of a run that has stopped or is done, and say what to do next."""
    checkpoint, preemption = callbacks.checkpoint.newest, callbacks.preemption
    assert checkpoint is not None
    if preemption.stopped:
        step, why = step_of(checkpoint), preemption.reason
        setup.folder.write_status("stopped", exit_code=STOPPED, step=step, reason=why)
        say(f"Stopped at step {step} of {setup.total_steps} ({why}), all saved. Run the same command to resume.")
        return
    export(exported(setup, checkpoint), setup.folder.export)
    declare_done(setup, checkpoint)


def exported(setup: Setup, last: Path) -> Path:
    """Choose the checkpoint of which a run's model is made: the last, or the best that is whole."""
    when = setup.config.checkpoint
    best = best_checkpoint(setup.folder.checkpoints, when) if when.export == "best" else None
    if best is None or best == last:
        return last
    say(f"Best checkpoint: {best.name}, by {when.best_metric}")
    return best


def already_done(setup: Setup, checkpoint: Path) -> int:
    """Make the export if the run was killed before it had one, and return the exit code: nothing is left to train."""
    if ranks.is_first_process():
        if not (setup.folder.export / "config.json").is_file():
            export(exported(setup, checkpoint), setup.folder.export)
        declare_done(setup, checkpoint)
        if not setup.folder.predictions.exists():
            setup.data.setup()
            predict(setup, torch.device("cuda" if setup.launch.accelerator == "gpu" else "cpu"))
        say(f"{done_in_words(setup.config, checkpoint)}; to start anew: another --run_dir.")
    return DONE


def predict(setup: Setup, device: torch.device) -> None:
    """Predict the rows that are held out, if they are labelled and this is wanted."""
    if setup.config.predictions and setup.data.held_out.labelled is not None:
        predict_held_out(setup.folder, setup.data.held_out.labelled, device)


def done_in_words(config: Config, checkpoint: Path) -> str:
    """Say that all steps are done, whether they are as many as were asked for or more."""
    step, asked = step_of(checkpoint), total_steps(config, checkpoint)
    if step < asked:
        return f"This run is done: it ended at step {step} of {asked} (--stop_when {config.stop_when})"
    return (
        f"This run is done: {step} of {asked} steps"
        if step == asked
        else (f"This run is done: it has {step} steps already, this command asks for {asked}")
    )


def declare_done(setup: Setup, checkpoint: Path) -> None:
    """Write the status of a run that is done, and say where the model is."""
    step = step_of(checkpoint)
    is_whole = step >= total_steps(setup.config, checkpoint)
    reason = "all steps are done" if is_whole else f"--stop_when {setup.config.stop_when}"
    setup.folder.write_status("done", exit_code=DONE, step=step, reason=reason)
    summarise(setup.config, setup.folder, setup.data, step)


# ------------------------------------------------------------------------------------------------ building


def initial_model(setup: Setup) -> PreTrainedConfig | PreTrainedModel:
    """The model that a run begins with: its config, or itself if it begins with weights or word vectors of a file."""
    config, data, auto_class = setup.config, setup.data, setup.objective.auto_class
    model: PreTrainedConfig | PreTrainedModel = setup.model_config
    if (pretrained := pretrained_folder(config)) is not None:
        model, new = build.load_pretrained(pretrained, setup.model_config, auto_class, config.seed)
        say(f"Weights from {config.model.pretrained}; new: {', '.join(new) or 'none'}")
        if setup.adapters is not None:
            whole = dict.fromkeys(name.rpartition(".")[0] for name in setup.adapters.trained)
            say(f"Beside adapters of rank {setup.adapters.rank}, trained as a whole: {', '.join(whole) or 'nothing'}")
    if setup.teacher is not None and config.distill.from_layers is not None:
        model = layers_of(setup.teacher, parse_layers(config.distill.from_layers))
        say(f"Student: layers {config.distill.from_layers} of the teacher")
    if (file := config.model.embedding_init) is not None:
        model = build.build(setup.model_config, auto_class, config.seed)
        matched = initialise_embedding(model, data.tokenizer, file, config.model.embedding_project, config.seed)
        say(f"Embedding: {matched:,} of {data.vocab_size:,} entries start with vectors of {file}")
    return model


def with_end(setup: Setup, checkpoint: Path | None) -> Setup:
    """Work out the last step, of a run that goes on from a checkpoint."""
    check_ramps(setup.config, checkpoint)
    last = setup.data.total_steps = total_steps(setup.config, checkpoint)
    return setup._replace(total_steps=last)


def build_module(setup: Setup, resume_from: Path | None) -> Objective:
    """Make the Lightning module; a run that goes on gets its weights from the checkpoint, later."""
    config, launch = setup.config, setup.launch
    micro_batch_size = choose_micro_batch_size(config, setup.folder, setup.budget, launch)
    model = initial_model(setup) if resume_from is None else setup.model_config
    return make_module(
        config,
        setup.objective,
        setup.recipe,
        model,
        setup.adapters,
        launch,
        total_steps=setup.total_steps,
        micro_batch_size=micro_batch_size,
        teacher=setup.teacher,
        cache=setup.cache,
    )


def check_teacher(resume_from: Path | None, module: Objective) -> None:
    """Refuse to go on with another teacher than the checkpoint's, or without it: a UserError.

    A run beside a cache may go on beside the live teacher, which has something to say of any example.
    """
    if resume_from is None:
        return
    was = read_state(resume_from).get("teacher")
    now = None if module.distillation is None else module.distillation.fingerprint
    if now not in (was, str(was).partition(BESIDE_CACHE)[0]):
        what = "was trained without a teacher" if was is None else "was trained with another teacher"
        instead = "leave --distill.teacher out" if was is None else "give that one as --distill.teacher"
        raise UserError(f"{resume_from}: {what}; {instead}, or start anew with another --run_dir")


def build_callbacks(setup: Setup, resume_from: Path | None) -> Callbacks:
    """Make the callbacks of a run that goes on from the checkpoint `resume_from`, or begins if that is None."""
    config, folder, budget = setup.config, setup.folder, setup.budget
    total = setup.total_steps
    resume = Resume(resume_from)
    checkpoint = Checkpoint(folder.checkpoints, config.checkpoint, resume, total)
    if config.checkpoint.upload is not None and ranks.is_first_process():
        checkpoint.mirror = Mirror(config.checkpoint.upload, folder.path, say, checkpoint.stays_there)
    is_auto = config.micro_batch_size == "auto"
    auto = [MicroBatch(folder.micro_batch_sizes, micro_batch_key(config, budget, setup.launch))] if is_auto else []
    watchdog = [Watchdog(folder.path, config.watchdog_seconds)] if config.watchdog_seconds is not None else []
    timeouts = Timeouts(config.collective_timeout_seconds)
    trackers = Trackers(parse_trackers(config.logger), folder, to_tree(config))
    checkpoint.tell_step = trackers.hold
    monitor = Monitor(folder.path, total, setup.model_config, setup.data.unigram_loss, trackers)
    preemption = Preemption(config.stop_after, ranks.STARTED_AT, lambda: checkpoint.saving_seconds)
    return Callbacks(
        tuple(profiler_of(config.profile, folder.profile, step_of(resume_from), total)),
        monitor,
        Validation(config.val_every, total),
        Enough(None if config.stop_when is None else parse_stop_when(config.stop_when)),
        Evaluation(config.eval_every, total, setup.evaluations, monitor, preemption),
        resume,
        checkpoint,
        preemption,
        (Cores(), Rescue(checkpoint, monitor.write_rows), timeouts, Anomalies(folder, checkpoint), *auto, *watchdog),
    )


def build_trainer(setup: Setup, callbacks: Callbacks) -> Trainer:
    """Make Lightning's trainer, with all of its own validation, saving, logging and printing off."""
    config, folder = setup.config, setup.folder
    trainer = Trainer(
        **strategies.trainer_settings(config, setup.launch),
        max_steps=setup.total_steps,
        max_epochs=-1,
        callbacks=[*callbacks.first, *callbacks[1:-1], *callbacks.others],
        logger=False,
        log_every_n_steps=config.log_every,
        default_root_dir=folder.path,
        check_val_every_n_epoch=None,
        val_check_interval=setup.total_steps + 1,  # never: our callback validates
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        inference_mode=False,
        profiler=NoProfiler(),
    )
    use_step_loop(trainer)
    return trainer
