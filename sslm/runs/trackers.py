"""Name -> a Lightning logger beside metrics.jsonl."""

import os
from typing import Any

from sslm.runs.folder import RunFolder
from sslm.system.errors import UserError


def build_logger(name: str, run: RunFolder) -> Any:
    """The logger of that name, writing into the run folder; False for none.

    Raises:
        UserError: its package is missing.
    """
    from lightning.pytorch import loggers

    if name == "csv":
        return loggers.CSVLogger(run.path, name="csv", version="")
    if name == "tensorboard":
        try:
            return loggers.TensorBoardLogger(run.path, name="tensorboard", version="")
        except ModuleNotFoundError:
            raise UserError("--logger tensorboard: tensorboard is not installed; pip install tensorboard") from None
    return _wandb(run) if name == "wandb" else False


def _wandb(run: RunFolder) -> Any:
    """W&B, offline where nobody is logged in; a resumed run goes on in the same W&B run."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    offline = os.environ.get("WANDB_MODE") == "offline" or not wandb.login(prompt=False)
    more: dict[str, Any] = {"mode": "offline"} if offline else {"resume": "allow"}
    project = os.environ.get("WANDB_PROJECT", "sslm")
    return WandbLogger(
        name=run.path.name, save_dir=run.path, project=project, id=run.wandb_id(), offline=offline, **more
    )
