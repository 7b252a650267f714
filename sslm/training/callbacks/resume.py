"""How a run goes on: weights, optimizer, counters and the data's position are set before the first step."""

from pathlib import Path

from lightning.pytorch import Callback, Trainer

from sslm.runs.checkpoints.folder import read_state
from sslm.system.collectives import gather_json
from sslm.system.errors import RunFailed
from sslm.training.lightning import set_step
from sslm.training.module import Objective


class Resume(Callback):
    """Load a checkpoint before the first step, on all ranks the same.

    Args:
        start: the checkpoint that this rank would go on from, or None to begin.
    """

    def __init__(self, start: Path | None) -> None:
        self.start = start
        """The checkpoint to go on from, which all ranks agree on before it is loaded; None to begin."""

    def on_fit_start(self, trainer: Trainer, pl_module: Objective) -> None:
        self._agree(pl_module)
        if self.start is not None:
            load(trainer, pl_module, self.start)

    def _agree(self, pl_module: Objective) -> None:
        """Take what the first rank has verified; others may have found a newer checkpoint that is damaged."""
        starts = gather_json(None if self.start is None else str(self.start), pl_module.side_group)
        if any((start is None) != (starts[0] is None) for start in starts):
            folder = Path(next(filter(None, starts))).parent
            raise RunFailed(f"some ranks found checkpoints in {folder}, others did not; run the same command again")
        self.start = None if starts[0] is None else Path(starts[0])


def load(trainer: Trainer, pl_module: Objective, checkpoint: Path) -> None:
    """Go on from a checkpoint; all ranks call it together."""
    state, engine = read_state(checkpoint), pl_module.engine
    engine.states.load(checkpoint)
    if pl_module.pruner is not None:
        pl_module.pruner.expand()
    if engine.loss_scaler is not None and "loss_scale" in state:
        engine.loss_scaler.load_state_dict(engine.loss_scaler.state_dict() | state["loss_scale"])
    pl_module.anomaly_detector.load(state.get("anomaly", {}))
    if pl_module.stopping is not None:
        pl_module.stopping.load(state.get("stopping", {}))
    trainer.datamodule.restore(state["step"], state["position"], state["amendments"])
    set_step(trainer, state["step"])
