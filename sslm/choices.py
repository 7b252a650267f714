"""What was asked for, seen to be possible: everything that can be wrong with it is found out here, before another process is started
and before the run folder is touched.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sslm import launch
from sslm.config import Config
from sslm.errors import UserError
from sslm.runs import RunFolder
from sslm.terminal import say

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from sslm.data.module import DataModule
    from sslm.data.recipe import Recipe
    from sslm.needs import Needs
    from sslm.objectives.base import Objective
    from sslm.strategies import Launch


def check_processes(config: Config) -> None:
    """Raises:
    UserError: more loader processes than make sense, or a batch that the devices can't share; it says what would do.
    """
    from sslm.needs import check_batch

    check_batch(config, launch.num_shares(config))
    if config.data.num_workers > (most := 4 * (os.cpu_count() or 1)):
        raise UserError(
            f"--data.num_workers {config.data.num_workers}: this machine has {os.cpu_count()} CPU cores; give at most {most}"
        )


def check_upload(config: Config) -> None:
    """Where checkpoints are to be uploaded can be written to; the first process tries."""
    if config.checkpoint.upload is not None and launch.is_first_process():
        from sslm.checkpoints.mirror import check

        check(config.checkpoint.upload)


def choose_launch(config: Config, model: "PreTrainedModel", data: "DataModule") -> "tuple[Needs, Launch, str]":
    """What the run needs, how it is launched, and why so."""
    from sslm.machines import here
    from sslm.needs import settle

    return settle(config, model, data, here(*launch.devices(config)))


def choose_micro_batch_size(config: Config, run: RunFolder, needs: "Needs", on: "Launch") -> int | None:
    """Sequences for each forward pass; auto: as the run folder remembers, or what fits. None: all of a device's share.

    Raises:
        UserError: it doesn't fit into memory: by how much, and what would.
    """
    from sslm.callbacks.micro_batch import remembered_sizes

    if config.micro_batch_size == "auto" and (
        size := remembered_sizes(run.micro_batch_sizes).get(holds_for(config, needs, on))
    ):
        return size
    if not launch.is_first_process():  # the first one has seen, or will, whether it fits
        return None if config.micro_batch_size is None else needs.chosen_size(on)
    size = needs.micro_batch_size(on)
    if needs.is_narrow(on, size):
        say("Warning: this will leave less than a tenth of the memory free; --micro_batch_size auto finds what fits, sslm plan tells what takes "
            "how much")  # fmt: skip
    return None if config.micro_batch_size is None else size


def holds_for(config: Config, needs: "Needs", on: "Launch") -> str:
    """What a micro-batch size that was found depends on."""
    asked = (
        f"batch {config.batch_size}",
        config.activation_checkpointing,
        f"compile {config.compile}",
        config.fsdp,
        config.deepspeed,
    )
    return "; ".join(map(str, (needs.machine.device, on, *asked)))


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
    from sslm.checkpoints import step_of
    from sslm.export import find_checkpoint

    if config.checkpoint.upload is not None:
        bring_checkpoint(config, run)
    own = checkpoints.found(run.checkpoints)
    if config.resume == "never" and own:
        raise UserError(
            f"--resume never: {run.path} has checkpoints already; remove the folder, or give another --run_dir"
        )
    if own and launch.is_first_process():
        checkpoint = checkpoints.newest_good(run.checkpoints, say)
        if checkpoint is not None:
            run.restore_wandb_id(checkpoints.read_state(checkpoint).get("wandb_id"))
    elif own:  # a glance: the callback makes all go on from what the first one has verified
        checkpoint = next((one for one in own if not checkpoints.damage_of(one, hashed=False)), None)
    elif config.resume not in ("auto", "never"):
        checkpoint = find_checkpoint(config.resume)
        RunFolder(checkpoint.parent.parent).check_config(config)
    else:
        checkpoint = None
    if checkpoint is not None and (launch.is_first_process() or not own):  # own ones may be set aside at this moment
        check_data(checkpoint, data)
        checkpoints.check_weights(checkpoint, model)
        if not own and step_of(checkpoint) >= config.total_steps:
            raise UserError(f"--resume {config.resume}: is at step {step_of(checkpoint)} already, this run ends at "
                            f"{config.total_steps}; give more --max_steps")  # fmt: skip
    return checkpoint


def reaches_the_end(checkpoint: Path | None, config: Config) -> bool:
    """Whether nothing is left to train. One that the first process is setting aside at this moment does not."""
    from sslm.checkpoints import step_of

    try:
        return checkpoint is not None and step_of(checkpoint) >= config.total_steps
    except OSError:
        return False


def check_data(checkpoint: Path, data: "DataModule") -> None:
    """Refuse to go on with other data.

    Raises:
        UserError: what differs.
    """
    from sslm.checkpoints import read_state
    from sslm.data.fingerprint import changes

    state = read_state(checkpoint)
    if state["position"] != state["step"] * data.batch_size:
        raise UserError(
            f"{checkpoint}: was made with --batch_size {state['position'] // state['step']}, now {data.batch_size}"
        )
    if changed := changes(state["fingerprint"], data.fingerprint()):
        raise UserError(f"the data has changed since {checkpoint}: {'; '.join(changed[:4])}{' …' if changed[4:] else ''}; bring back what was "
                        f"there, or start anew with another --run_dir")  # fmt: skip


def bring_checkpoint(config: Config, run: RunFolder) -> None:
    """From where they are uploaded to, where it is newer than those here; one process brings it, the others wait for it.

    Raises:
        UserError: another run's are there.
    """
    from sslm.checkpoints.fetching import fetch, look
    from sslm.checkpoints.folder import found, number_of
    from sslm.runs import check_same_run

    url = config.checkpoint.upload
    assert url is not None
    newest, config_yaml = look(url)
    if newest is None:
        return
    if config.resume == "never":
        raise UserError(
            f"--resume never: {url} has checkpoints already; remove them, or give another --checkpoint.upload"
        )
    if config_yaml is not None:
        check_same_run(url, config_yaml, config)
    if launch.is_first_process():
        if (brought := fetch(url, run.path, say)) is not None:
            say(f"{brought.name} came from {url}")
        return
    end = time.monotonic() + config.start_timeout_seconds
    while time.monotonic() < end and not any(number_of(one) >= newest for one in found(run.checkpoints)):
        time.sleep(1)
