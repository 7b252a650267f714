"""Steps out of the ordinary: on record with their texts, and after several in a row the run goes back and leaves their examples out.

The objective withholds their updates (`Objective.anomaly_detector`). Going back takes the newest checkpoint before the first of them:
should weights in memory be what is broken, these are sound. That the examples are skipped is amended to the data's state, on the
disk before it holds, so a run that is killed at any moment of this goes on as the uninterrupted one does.
"""

import math
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer

from sslm.data.corpus.shards import BadShard
from sslm.data.module import DataModule
from sslm.data.stream.amendments import Skip
from sslm.runs.folder import RunFolder
from sslm.system.errors import RunFailed
from sslm.system.terminal import say
from sslm.training.anomalies import WINDOW, Anomaly
from sslm.training.callbacks.checkpoint import Checkpoint
from sslm.training.module import Objective

MOST_TEXTS, MOST_CHARACTERS = 64, 500
"""Of a step's examples that are kept, and of each."""


class Anomalies(Callback):
    """Args:
    run: whose anomalies.jsonl is written.
    checkpoint: what the run goes back with.
    """

    def __init__(self, run: RunFolder, checkpoint: Checkpoint) -> None:
        self.run, self.checkpoint = run, checkpoint

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Objective, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        anomaly: Anomaly | None = outputs["anomaly"]
        if anomaly is None:
            return
        does = (
            "rewind"
            if pl_module.anomaly_detector.must_rewind
            else "skip"
            if pl_module.anomaly_detector.streak
            else "none"
        )
        told = {
            "rewind": "its update is left out, and the run goes back",
            "skip": "its update is left out",
            "none": "DeepSpeed's engine has made its update",
        }
        say(f"Step {trainer.global_step}: {anomaly.kind}; {told[does]}")
        if trainer.is_global_zero:
            self.run.record_anomaly(entry(trainer.datamodule, trainer.global_step, anomaly, does))
        if (
            pl_module.anomaly_detector.must_rewind
        ):  # Lightning's epoch ends here; its next one begins where the run goes back to
            trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = True
        elif pl_module.anomaly_detector.streak >= WINDOW:
            raise RunFailed(
                f"all of the last {WINDOW} steps up to {trainer.global_step} were out of the ordinary ({anomaly.kind}), so nothing "
                f"is learned any more; look at {self.run.anomalies}, and try a lower --optim.lr in a new --run_dir"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Objective) -> None:
        """The step is done with and counted: now its counters can be set back."""
        if pl_module.anomaly_detector.must_rewind:
            self._rewind(trainer, pl_module)

    def _rewind(self, trainer: Trainer, pl_module: Objective) -> None:
        data, last, num_steps = trainer.datamodule, trainer.global_step, pl_module.anomaly_detector.streak
        first, most = last - num_steps, pl_module.anomaly_detector.settings.max_rewinds
        assert pl_module.anomaly_detector.last is not None
        which = f"steps {first + 1} to {last}" if num_steps > 1 else f"step {last}"
        what = f"{which}: {pl_module.anomaly_detector.last.kind}"
        done = sum(isinstance(one, Skip) for one in data.train_stream.amendments)
        if done >= most:
            raise RunFailed(
                f"{what}, after going back {done} time{'s' * (done != 1)} (--anomaly.max_rewinds {most}); look at "
                f"{self.run.anomalies}, and try a lower --optim.lr in a new --run_dir"
            )
        data.skip(first, num_steps, f"{what} (rewind {done + 1})", write=trainer.is_global_zero)
        pl_module.wait_for_all()  # rank 0 has written it down
        checkpoint = self.checkpoint.rewind(trainer, pl_module, first)
        if checkpoint is None:
            raise RunFailed(
                f"{what}, and there is no checkpoint before to go back to; look at {self.run.anomalies}, and give "
                f"--checkpoint.every_steps {max(first, 1)} or less, or try a lower --optim.lr"
            )
        say(
            f"Back to step {trainer.global_step}; the {num_steps * data.batch_size} examples of {which} are left out (rewind {done + 1} of at "
            f"most {most})"
        )


def entry(data: DataModule, step: int, anomaly: Anomaly, does: str) -> dict[str, Any]:
    """What anomalies.jsonl has of an anomaly.

    Args:
        step: as in metrics.jsonl, from 1.
    """
    first, last = data.train_stream.unskipped(np.array([(step - 1) * data.batch_size, step * data.batch_size - 1]))
    return {
        "step": step,
        "positions": [int(first), int(last) + 1],
        "loss": anomaly.loss if math.isfinite(anomaly.loss) else None,
        "grad_norm": anomaly.grad_norm if math.isfinite(anomaly.grad_norm) else None,
        "kind": anomaly.kind,
        "action": does,
        "texts": texts(data, step - 1),
    }


def texts(data: DataModule, step: int) -> list[str]:
    """The beginning of each example of optimizer step `step` (from 0), as it stands in the corpus; ids where there is no tokenizer."""
    num = min(data.batch_size, MOST_TEXTS)
    try:
        examples = data.train_stream.at(step * data.batch_size + np.arange(num))
    except BadShard:  # gone since it was read
        return []
    lengths = [data.window_len] * num if examples.lengths is None else examples.lengths.tolist()
    rows = [row[:length] for row, length in zip(examples.tokens.tolist(), lengths, strict=True)]
    decoded = [" ".join(map(str, row)) for row in rows] if data.tokenizer is None else data.tokenizer.batch_decode(rows)
    return [text[:MOST_CHARACTERS] for text in decoded]
