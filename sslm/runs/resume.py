"""Which checkpoint a run goes on from, and whether it may."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sslm.config import Config
from sslm.data.fingerprints import changes
from sslm.data.module import DataModule
from sslm.runs.changes import parse_resume_with
from sslm.runs.checkpoints.fetch import fetch, newest_remote, newest_remote_state
from sslm.runs.checkpoints.folder import (
    NewerFormat,
    damage_of,
    newest_first,
    newest_whole,
    number_of,
    read_state,
    step_of,
)
from sslm.runs.checkpoints.tensors import check_weights
from sslm.runs.checkpoints.transaction import set_damaged_aside
from sslm.runs.find import find_checkpoint
from sslm.runs.folder import RunFolder, check_same_run, run_of
from sslm.runs.trackers.identity import restore_id
from sslm.system import ranks
from sslm.system.errors import UserError
from sslm.system.files import is_size
from sslm.system.terminal import say


def choose_checkpoint(config: Config, run: RunFolder, data: DataModule, model: PreTrainedModel) -> Path | None:
    """Return the checkpoint to go on from, checked against data and model, or None to begin.

    A run goes on from its own newest; --resume PATH says where a run begins that has none. The model may be on the meta
    device. A dry run changes nothing: what is uploaded is looked at there, and what is damaged stays where it is.
    """
    if config.checkpoint.upload is not None:
        bring_checkpoint(config, run)
    own = newest_first(run.checkpoints)
    if config.resume == "never" and own:
        instead = "remove the folder, or give another --run_dir"
        raise UserError(f"--resume never: {run.path} has checkpoints already; {instead}")
    if own and config.dry_run:
        checkpoint = newest_whole(run.checkpoints, say)
    elif own and ranks.is_first_process():
        checkpoint = set_damaged_aside(run.checkpoints, say)
        if checkpoint is not None:
            restore_id(run, read_state(checkpoint).get("wandb_id"))
    elif own:  # a glance: the callback makes all go on from what the first one has verified
        checkpoint = next((one for one in own if not damage_of(one, hashed=False)), None)
    elif config.resume not in ("auto", "never"):
        checkpoint = find_checkpoint(config.resume)
        run_of(checkpoint).check_config(config)
    else:
        checkpoint = None
    if checkpoint is not None and (ranks.is_first_process() or not own):  # own ones may be set aside at this moment
        check_data(checkpoint, data, config)
        check_weights(checkpoint, model)
        if not own and (step := step_of(checkpoint)) >= (last := total_steps(config, checkpoint)):
            ends = f"this run ends at {last}; give more --max_steps"
            raise UserError(f"--resume {config.resume}: is at step {step} already, {ends}")
    return checkpoint


def reaches_the_end(checkpoint: Path, config: Config) -> bool:
    """Whether nothing is left to train; no, if the first process is setting the checkpoint aside at this moment."""
    try:
        return step_of(checkpoint) >= total_steps(config, checkpoint) or has_learned_enough(checkpoint, config)
    except NewerFormat:
        raise
    except UserError:
        return False


def has_learned_enough(checkpoint: Path, config: Config) -> bool:
    """Whether the run ended here by --stop_when, which the command names again."""
    stopping = read_state(checkpoint).get("stopping", {})
    return bool(stopping.get("has_ended")) and stopping.get("rule") == config.stop_when


def total_steps(config: Config, checkpoint: Path | None) -> int:
    """Steps from the very beginning to the end of a run; what came before the checkpoint may have had other batches."""
    return config.total_steps_from(*_step_and_position(checkpoint))


def check_ramps(config: Config, checkpoint: Path | None) -> None:
    """Refuse sizes of batches, or lengths of sequences, that a run would never come to: a UserError."""
    (step, position), end = _step_and_position(checkpoint), total_steps(config, checkpoint)
    sizes, window_tokens = config.batch_sizes_from(step, position), config.window_tokens
    for name, ramp in (("batch_size", config.batch_ramp), ("seq_len", config.length_ramp)):
        begins = ramp.stages[-1].from_tokens
        if end > step and sizes.position_at(end - 1) * window_tokens < begins:
            ends = f"the run ends after {sizes.position_at(end) * window_tokens} tokens, before {ramp.largest} comes"
            instead = "leave that out, or let the run be longer (--max_steps, --max_tokens)"
            raise UserError(f"--{name} {ramp.setting}: {ends}; {instead}")


def examples_left(config: Config, checkpoint: Path | None) -> int:
    """Examples from the checkpoint to the end of a run."""
    step, position = _step_and_position(checkpoint)
    end = config.batch_sizes_from(step, position).position_at(config.total_steps_from(step, position))
    return max(end - position, 0)


def _step_and_position(checkpoint: Path | None) -> tuple[int, int]:
    state = {"step": 0, "position": 0} if checkpoint is None else read_state(checkpoint)
    return state["step"], state["position"]


def first_batch_size(config: Config) -> int:
    """Find the batch size that a run began with, or is to begin with, by which its text is held out."""
    own, start = newest_first(RunFolder(config.run_folder).checkpoints), Path(config.resume)
    if not own and config.resume not in ("auto", "never"):
        own = newest_first(RunFolder(start).checkpoints) or [start]
    for checkpoint in own:
        with suppress(UserError):  # whoever goes on from it will say what is wrong
            return _first_batch_size(read_state(checkpoint), config)
    if not own and config.checkpoint.upload is not None:
        return _first_batch_size(newest_remote_state(config.checkpoint.upload), config)
    return config.batch_ramp.numbers[0]


def _first_batch_size(state: dict[str, Any], config: Config) -> int:
    step, position = state.get("step"), state.get("position")
    size = position // step if is_size(step) and is_size(position) and step else config.batch_ramp.numbers[0]
    first: int = state.get("first_batch_size", size)
    return first


def check_data(checkpoint: Path, data: DataModule, config: Config) -> None:
    """Refuse to go on with other data: the UserError says what differs.

    Batches may be of another size if config.yaml beside the checkpoint says so, or the command names it.
    """
    state = read_state(checkpoint)
    made_with = state.get("batch_size", state["position"] // max(state["step"], 1))
    is_known = run_of(checkpoint).config.is_file() or "batch_size" in parse_resume_with(config.resume_with)
    if made_with != data.ramp.setting and not is_known:
        raise UserError(f"{checkpoint}: was made with --batch_size {made_with}, now {data.ramp.setting}")
    if changed := changes(state["fingerprint"], data.fingerprint()):
        what = f"{'; '.join(changed[:4])}{' …' if changed[4:] else ''}"
        instead = "restore the former data, or start anew with another --run_dir"
        raise UserError(f"the data has changed since {checkpoint}: {what}; {instead}")


def bring_checkpoint(config: Config, run: RunFolder) -> None:
    """Bring the newest uploaded checkpoint, if it is newer than those here. The first process does, the others wait.

    Raises:
        UserError: another run's checkpoints are there.
    """
    url = config.checkpoint.upload
    assert url is not None
    newest, config_yaml = newest_remote(url)
    if newest is None:
        return
    if config.resume == "never":
        instead = "remove them, or give another --checkpoint.upload"
        raise UserError(f"--resume never: {url} has checkpoints already; {instead}")
    if config_yaml is not None:
        check_same_run(url, config_yaml, config)
    if config.dry_run:
        return
    if ranks.is_first_process():
        if (brought := fetch(url, run.path, say)) is not None:
            say(f"{brought.name} downloaded from {url}")
        return
    end = time.monotonic() + config.start_timeout_seconds
    while time.monotonic() < end and not any(number_of(one) >= newest for one in newest_first(run.checkpoints)):
        time.sleep(1)
