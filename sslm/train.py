"""The front door: text in, a trained Hugging Face model out.

    python -m sslm.train [--config FILE]… [flags]

parse -> objective -> data -> model -> trainer -> fit -> export. Everything that can be wrong with what was asked is found
out before another process is started and before the run folder is touched.
"""

import functools
import logging
import os
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslm import launch
from sslm.commandline import parse
from sslm.config import Config
from sslm.errors import DONE, FAILED, STOPPED, USER_ERROR, UserError, exits_politely, sentence_of
from sslm.runs import RunFolder
from sslm.terminal import count, say

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from transformers import PreTrainedConfig

    from sslm.callbacks.preemption import Preemption
    from sslm.data.module import DataModule
    from sslm.objectives.base import Objective, Recipe


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    config = parse(sys.argv[1:] if arguments is None else arguments)
    if launch.is_child():
        launch.die_with_parent()
    keep_libraries_quiet()
    run = RunFolder(config.run_folder)
    run.check_config(config)
    check_batch(config)

    objective, recipe = choose_objective(config)
    data = open_data(config, recipe)
    model_config = choose_model(config, objective, data)
    num_parameters = describe(config, objective, data, model_config)
    settings = launch.trainer_settings(config, num_parameters)
    if config.dry_run:
        say("Dry run: all of this is in order; leave --dry_run out to train.")
        return DONE

    with run.locked() if launch.is_first_process() else nullcontext():
        return train(config, run, objective, recipe, data, model_config, settings)


def train(
    config: Config, run: RunFolder, objective: "type[Objective]", recipe: "Recipe", data: "DataModule",
    model_config: "PreTrainedConfig", settings: dict[str, Any],
) -> int:  # fmt: skip
    """Fit, export, and leave a status; the exit code."""
    checkpoint = choose_checkpoint(config, run, data)
    if checkpoint is not None and (done := step_of(checkpoint)) >= config.total_steps:
        finish(config, run, data, checkpoint)
        say(f"This run is done: {done} of {config.total_steps} steps. To train longer: --max_steps {2 * done}; to start anew: "
            f"--run_dir with another folder.")  # fmt: skip
        return DONE
    module = build_module(config, objective, recipe, model_config, fresh=checkpoint is None)
    if launch.is_first_process():
        run.write_config(config)
        run.write_status("running", step=step_of(checkpoint))
        say(f"Run folder: {run.path}" + (f"; going on from step {step_of(checkpoint)}" if checkpoint else ""))
    trainer, preemption = build_trainer(config, run, data, model_config, settings, checkpoint)
    try:
        trainer.fit(module, datamodule=data)
    except BaseException as error:
        if trainer.is_global_zero:
            code = USER_ERROR if sentence_of(error) else FAILED
            run.write_status(
                "failed", exit_code=code, step=trainer.global_step, reason=f"{type(error).__name__}: {error}"
            )
        raise
    return conclude(config, run, data, trainer, preemption)


# ------------------------------------------------------------------------------------------------ what was asked for


def check_batch(config: Config) -> None:
    """Batch sizes divide; if not, say what would."""
    world = launch.world_size(config)
    if config.batch_size % world:
        raise UserError(f"--batch_size {config.batch_size}: can't be shared by {world} devices; give a multiple of {world}, such as "
                        f"{-(-config.batch_size // world) * world}")  # fmt: skip
    share, micro = config.batch_size // world, config.micro_batch_size
    if micro is not None and share % micro:
        divisors = [str(n) for n in range(1, share + 1) if share % n == 0]
        raise UserError(f"--micro_batch_size {micro}: does not divide a device's {share} sequences (batch_size {config.batch_size} / "
                        f"{world} devices); what would: {', '.join(divisors)}")  # fmt: skip


def choose_objective(config: Config) -> "tuple[type[Objective], Recipe]":
    from sslm.errors import nearest
    from sslm.objectives import load_objective

    objective = load_objective(config.objective.name)
    known = list(getattr(objective.recipe_class, "__dataclass_fields__", {}))
    for key in config.objective.settings:
        if key not in known:
            raise UserError(f"--objective.{key}: {config.objective.name} has no such setting{nearest(key, known)}; it has "
                            f"{', '.join(known) or 'none'}")  # fmt: skip
    return objective, objective.recipe_class(**config.objective.settings)


def open_data(config: Config, recipe: "Recipe") -> "DataModule":
    from sslm.data.module import DataModule

    pretrained = pretrained_folder(config)
    data = DataModule(
        config.data, recipe, seq_len=config.seq_len, batch_size=config.batch_size, total_steps=config.total_steps,
        seed=config.seed, tokenizer=pretrained,
    )  # fmt: skip
    data.setup()
    return data


def choose_model(config: Config, objective: "type[Objective]", data: "DataModule") -> "PreTrainedConfig":
    from sslm.models.build import model_config

    tokenizer = data.tokenizer
    return model_config(
        config.model.settings, model_type=config.model.model_type, default=objective.default_model,
        auto_class=objective.auto_class, vocab_size=len(tokenizer), seq_len=config.seq_len,
        special_ids={f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")},
        pretrained=pretrained_folder(config),
    )  # fmt: skip


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


def choose_checkpoint(config: Config, run: RunFolder, data: "DataModule") -> Path | None:
    """The checkpoint to go on from, checked against the data; None: begin."""
    from sslm import checkpoints
    from sslm.callbacks.checkpoint import check_data
    from sslm.export import find_checkpoint

    if config.resume == "never":
        if checkpoints.found(run.checkpoints):
            raise UserError(
                f"--resume never: {run.path} has checkpoints already; remove the folder, or give another --run_dir"
            )
        return None
    if config.resume == "auto":
        checkpoint = checkpoints.newest_good(run.checkpoints, say)
    else:
        checkpoint = find_checkpoint(config.resume)
    if checkpoint is not None:
        check_data(checkpoint, data)
    return checkpoint


def step_of(checkpoint: Path | None) -> int:
    from sslm.checkpoints import read_state

    return int(read_state(checkpoint)["step"]) if checkpoint else 0


# ------------------------------------------------------------------------------------------------ building


def build_module(
    config: Config,
    objective: "type[Objective]",
    recipe: "Recipe",
    model_config: "PreTrainedConfig",
    fresh: bool,
) -> "Objective":
    """The Lightning module. Pretrained weights are read only for a run that begins: later its checkpoint has them."""
    from sslm.models import build
    from sslm.models.parallelize import parallelize

    model: Any = model_config
    pretrained = pretrained_folder(config)
    if pretrained is not None and fresh:
        model, new = build.load_pretrained(pretrained, model_config, objective.auto_class, config.seed)
        say(f"Weights from {config.model.pretrained}; new: {', '.join(new) or 'none'}")
    return objective(
        model, recipe, optim=config.optim, total_steps=config.total_steps, micro_batch_size=config.micro_batch_size,
        seed=config.seed,
        parallelize=functools.partial(
            parallelize, compile_blocks=config.compile, activation_checkpointing=config.activation_checkpointing
        ),
    )  # fmt: skip


def build_trainer(
    config: Config, run: RunFolder, data: "DataModule", model_config: "PreTrainedConfig", settings: dict[str, Any],
    checkpoint: Path | None,
) -> "tuple[Trainer, Preemption]":  # fmt: skip
    from lightning.pytorch import Trainer

    from sslm.callbacks.checkpoint import Checkpoint
    from sslm.callbacks.monitor import Monitor
    from sslm.callbacks.preemption import Preemption
    from sslm.callbacks.validation import Validation

    total = config.total_steps
    monitor = Monitor(run.path, total_steps=total, batch_tokens=config.batch_size * config.seq_len,
                      model_config=model_config, unigram_entropy=data.unigram_entropy())  # fmt: skip
    preemption = Preemption(config.stop_after)
    callbacks = [monitor, Validation(config.val_every, total), Checkpoint(run.checkpoints, config.checkpoint, checkpoint, total),
                 preemption]  # fmt: skip
    trainer = Trainer(
        **settings, max_steps=total, max_epochs=-1, callbacks=callbacks, logger=build_logger(config, run),
        log_every_n_steps=config.log_every, check_val_every_n_epoch=None, val_check_interval=total + 1,  # Validation decides
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        num_sanity_val_steps=0, inference_mode=False,
    )  # fmt: skip
    return trainer, preemption


def build_logger(config: Config, run: RunFolder) -> Any:
    """The logger beside metrics.jsonl."""
    from lightning.pytorch import loggers

    folder = str(run.path)
    if config.logger == "csv":
        return loggers.CSVLogger(folder, name="csv", version="")
    if config.logger == "tensorboard":
        try:
            return loggers.TensorBoardLogger(folder, name="tensorboard", version="")
        except ModuleNotFoundError:
            raise UserError("--logger tensorboard: tensorboard is not installed; pip install tensorboard") from None
    if config.logger == "wandb":
        import wandb

        logged_in = bool(os.environ.get("WANDB_API_KEY")) or wandb.api.api_key is not None
        offline = os.environ.get("WANDB_MODE", "online" if logged_in else "offline") == "offline"
        return loggers.WandbLogger(
            name=run.path.name,
            save_dir=folder,
            project=os.environ.get("WANDB_PROJECT", "sslm"),
            offline=offline,
        )
    return False


# ------------------------------------------------------------------------------------------------ what is said and left


def describe(config: Config, objective: "type[Objective]", data: "DataModule", model_config: "PreTrainedConfig") -> int:
    """Say what will be trained on what; the number of parameters."""
    from sslm.models.build import on_meta

    model = on_meta(model_config, objective.auto_class)
    num_parameters = sum(p.numel() for p in model.parameters())
    if launch.is_first_process():
        corpus, tokens = data.train_corpus, config.total_steps * config.batch_size * config.seq_len
        windows = data.train_stream.num_windows
        say(f"Text: {corpus.num_documents:,} documents, {count(corpus.num_tokens)} tokens of {len(data.tokenizer):,} kinds; "
            f"{windows:,} training and {data.val_stream.num_windows:,} held-out sequences of {config.seq_len}")  # fmt: skip
        say(f"Model: {config.objective.name}, {model_config.model_type} with {count(num_parameters)} parameters")
        say(f"Training: {config.total_steps} steps of {config.batch_size} sequences, {count(tokens)} tokens, "
            f"{config.total_steps * config.batch_size / windows:.2f} epochs")  # fmt: skip
        say(
            f"Unigram entropy of the held-out text: {data.unigram_entropy():.4f} nats/token (a model is to get far below it)"
        )
    return num_parameters


def conclude(config: Config, run: RunFolder, data: "DataModule", trainer: "Trainer", preemption: "Preemption") -> int:
    """After the last step: export on rank 0 while the others wait; status and summary; the exit code."""
    step, stopped = trainer.global_step, preemption.stopped
    code = STOPPED if stopped else DONE
    if trainer.is_global_zero:
        if stopped:
            run.write_status("stopped", exit_code=code, step=step, reason=preemption.reason)
            say(
                f"Stopped at step {step} of {config.total_steps} ({preemption.reason}), all saved. Run the same command to go on."
            )
        else:
            from sslm.export import find_checkpoint

            finish(config, run, data, find_checkpoint(run.path))
    trainer.strategy.barrier("the end")
    return DONE if launch.is_child() else code


def finish(config: Config, run: RunFolder, data: "DataModule", checkpoint: Path) -> None:
    """Export, and say where everything is and what can be done next."""
    from sslm.export import export

    if not launch.is_first_process():
        return
    export(checkpoint, run.export)
    run.write_status("done", exit_code=DONE, step=step_of(checkpoint), reason="all steps are done")
    measured = [row for row in run.rows() if "val/loss" in row]
    say()
    if measured:
        say(f"Held-out loss {measured[0]['val/loss']:.4f} -> {measured[-1]['val/loss']:.4f} nats/token "
            f"({measured[-1]['val/bits_per_byte']:.3f} bits per byte); unigram entropy {data.unigram_entropy():.4f}")  # fmt: skip
    say(f"Model:    {run.export}")
    say(f"  from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"  model = AutoModelForCausalLM.from_pretrained({str(run.export)!r})\n"
        f"  tokenizer = AutoTokenizer.from_pretrained({str(run.export)!r})")  # fmt: skip
    say(f"Curves:   {run.curves}")
    say(f"Go on:    the same command with --max_steps {2 * config.total_steps}")
    if config.data.train is None:
        say("Next:     python -m sslm.train --data.train YOUR.txt --run_dir runs/mine")


def keep_libraries_quiet() -> None:
    """Libraries' chatter off; their warnings stay, but for those about choices that are made on purpose here."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "fabric.utilities.distributed"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*torch.distributed is disabled, unavailable or uninitialized.*",  # one process is no mistake
        ".*`broadcast_buffers` is deprecated.*",  # its successor is missing in torch 2.11
        ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own
    ):
        warnings.filterwarnings("ignore", message)


if __name__ == "__main__":
    sys.exit(main())
