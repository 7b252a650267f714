"""Anomalous steps: on record with their texts; after several in a row the run goes back and leaves their examples out.

The objective withholds their updates (`Objective.anomaly_detector`). Going back takes the newest checkpoint before
the first of them: if weights in memory are what is broken, these are sound. The skipped examples are an amendment of
the data's state, on the disk before it holds, so a run that is killed at any moment of this goes on as the
uninterrupted one does.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, Trainer

from sslm.data.corpus.shards import BadShard
from sslm.data.module import DataModule
from sslm.data.stream.amendments import Skip
from sslm.runs.checkpoints.folder import newest_first, number_of
from sslm.runs.checkpoints.transaction import remove_checkpoint, set_damaged_aside
from sslm.runs.folder import RunFolder
from sslm.system.collectives import gather_json
from sslm.system.errors import RunFailed
from sslm.system.terminal import plural, say
from sslm.training.anomalies import WINDOW, Anomaly
from sslm.training.callbacks.checkpoint import Checkpoint
from sslm.training.callbacks.resume import load
from sslm.training.lightning import end_epoch_here
from sslm.training.module import Objective, StepOutputs

MOST_TEXTS, MOST_CHARACTERS = 64, 500
"""How many of a step's examples are recorded, and how much of each."""

OUTCOMES = {
    "rewind": "its update is left out, and the run goes back",
    "skip": "its update is left out",
    "none": "DeepSpeed's engine has made its update",
}
"""What happens at an anomalous step, as anomalies.jsonl and as a person is told."""


class Anomalies(Callback):
    """Record anomalous steps in the run's anomalies.jsonl, and go back to a checkpoint after several in a row."""

    def __init__(self, run: RunFolder, checkpoint: Checkpoint) -> None:
        self.run, self.checkpoint = run, checkpoint

    def on_train_batch_end(self, trainer: Trainer, pl_module: Objective, outputs: StepOutputs, *_: Any) -> None:
        detector = pl_module.anomaly_detector
        for anomaly in outputs["anomalies"]:
            say(f"Step {anomaly.step}: {anomaly.kind}; {OUTCOMES[anomaly.action]}")
            if trainer.is_global_zero:
                self.run.record_anomaly(entry(trainer.datamodule, anomaly))
        if detector.must_rewind:  # Lightning's next epoch begins where the run goes back to
            end_epoch_here(trainer)
        elif detector.streak >= WINDOW and detector.last is not None:
            raise RunFailed(
                f"all of the last {WINDOW} steps up to {detector.last.step} were out of the ordinary "
                f"({detector.last.kind}), so nothing is learned any more; look at {self.run.anomalies}, and try a "
                f"lower --optim.lr (with --resume_with optim.lr, or in a new --run_dir)"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Objective) -> None:
        """The step is done with and counted: now its counters can be set back."""
        if pl_module.anomaly_detector.must_rewind:
            self._rewind(trainer, pl_module)

    def _rewind(self, trainer: Trainer, pl_module: Objective) -> None:
        """Amend the data to leave the last steps' examples out, and load the newest checkpoint before them."""
        data, detector = trainer.datamodule, pl_module.anomaly_detector
        num_steps, most = detector.streak, detector.settings.max_rewinds
        assert detector.last is not None
        last = detector.last.step  # up to two more have been taken since
        first = last - num_steps
        which = f"steps {first + 1} to {last}" if num_steps > 1 else f"step {last}"
        what = f"{which}: {detector.last.kind}"
        done = sum(isinstance(amendment, Skip) for amendment in data.train_stream.amendments)
        if done >= most:
            raise RunFailed(
                f"{what}, after going back {plural(done, 'time')} (--anomaly.max_rewinds {most}); look at "
                f"{self.run.anomalies}, and try a lower --optim.lr (with --resume_with optim.lr)"
            )
        num_examples = data.position(last) - data.position(first)
        data.skip(first, num_steps, f"{what} (rewind {done + 1})", write=trainer.is_global_zero)
        pl_module.wait_for_all()  # rank 0 has written it down
        if not self._go_back(trainer, pl_module, first):
            raise RunFailed(
                f"{what}, and there is no earlier checkpoint to go back to; look at {self.run.anomalies}, and give "
                f"--checkpoint.every_steps {max(first, 1)} or less, or try a lower --optim.lr"
            )
        say(
            f"Back to step {trainer.global_step}; {plural(num_examples, 'example')} of {which} left out "
            f"(rewind {done + 1} of at most {most})"
        )

    def _go_back(self, trainer: Trainer, pl_module: Objective, at_most: int) -> bool:
        """Load the newest good checkpoint of at most this step; whether there is one. All ranks call it together.

        Newer ones are removed: they belong to a course that the run does not take.
        """
        assert self.checkpoint.saver is not None
        self.checkpoint.finish()
        chosen: Path | None = None
        if trainer.is_global_zero:
            for newer in [path for path in newest_first(self.checkpoint.folder) if number_of(path) > at_most]:
                remove_checkpoint(newer)
            chosen = set_damaged_aside(self.checkpoint.folder, say)
        (start, *_) = gather_json(None if chosen is None else str(chosen), pl_module.side_group)
        if start is None:
            return False
        self.checkpoint.saver.newest = Path(start)
        load(trainer, pl_module, Path(start))
        return True


def entry(data: DataModule, anomaly: Anomaly) -> dict[str, Any]:
    """Make an anomaly's line of anomalies.jsonl."""
    step = anomaly.step
    first, last = data.train_stream.unskipped(np.array([data.position(step - 1), data.position(step) - 1]))
    return {
        "step": step,
        "positions": [int(first), int(last) + 1],
        "loss": anomaly.loss if math.isfinite(anomaly.loss) else None,
        "grad_norm": anomaly.grad_norm if math.isfinite(anomaly.grad_norm) else None,
        "kind": anomaly.kind,
        "action": anomaly.action,
        "texts": texts(data, step - 1),
    }


def texts(data: DataModule, step: int) -> list[str]:
    """The beginning of each example of optimizer step `step` (from 0) in the corpus; ids if there is no tokenizer."""
    first, end = data.position(step), data.position(step + 1)
    num = min(end - first, MOST_TEXTS)
    try:
        examples = data.train_stream.at(first + np.arange(num))
    except BadShard:  # gone since it was read
        return []
    lengths = [data.window_len] * num if examples.lengths is None else examples.lengths.tolist()
    rows = [row[:length] for row, length in zip(examples.tokens.tolist(), lengths, strict=True)]
    decoded = [" ".join(map(str, row)) for row in rows] if data.tokenizer is None else data.tokenizer.batch_decode(rows)
    return [text[:MOST_CHARACTERS] for text in decoded]
