"""Lightning loggers beside metrics.jsonl."""

import os
import re
import sys
from importlib.util import find_spec
from typing import Any

from sslm.runs.folder import RunFolder
from sslm.system.errors import UserError, without_secrets
from sslm.system.files import write_atomically


def check_logger(name: str) -> None:
    """Refuse a logger whose package is missing."""
    packages = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",)}.get(name, ())
    if packages and not any(map(find_spec, packages)):
        raise UserError(f"--logger {name}: {name} is not installed; pip install {name}")


def build_logger(name: str, run: RunFolder) -> Any:
    """Build the logger of a name, which writes into the run folder; False if the name is none."""
    from lightning.pytorch import loggers

    if name == "csv":
        return loggers.CSVLogger(run.path, name="csv", version="")
    if name == "tensorboard":
        return loggers.TensorBoardLogger(run.path, name="tensorboard", version="")
    return _wandb(run) if name == "wandb" else False


def _wandb(run: RunFolder) -> Any:
    """Build the W&B logger, offline if nobody is logged in. A resumed run goes on in the same W&B run."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    offline = os.environ.get("WANDB_MODE") == "offline" or not wandb.login(prompt=False)
    more: dict[str, Any] = {"mode": "offline"} if offline else {"resume": "allow"}
    project = os.environ.get("WANDB_PROJECT", "sslm")
    if (known := known_wandb_id(run)) is None:
        write_atomically(run.wandb_id, known := os.urandom(4).hex())

    class WithoutSecrets(WandbLogger):
        """W&B keeps the command line, which may have a URL with a password in it."""

        @property
        def experiment(self) -> Any:
            arguments = sys.argv
            sys.argv = list(map(without_secrets, arguments))
            try:
                return super().experiment
            finally:
                sys.argv = arguments

    return WithoutSecrets(name=run.path.name, save_dir=run.path, project=project, id=known, offline=offline, **more)


def known_wandb_id(run: RunFolder) -> str | None:
    """Return the id of this run at W&B, or None if it was never there."""
    return run.wandb_id.read_text() if run.wandb_id.is_file() else None


def restore_wandb_id(run: RunFolder, known: object) -> None:
    """Go on at W&B in the run that a checkpoint names, if the run folder does not name one."""
    if known_wandb_id(run) is None and isinstance(known, str) and re.fullmatch(r"\w{1,64}", known):
        write_atomically(run.wandb_id, known)
