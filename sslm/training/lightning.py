"""Every reach into Lightning's loop state, as verbs."""

from lightning.pytorch import Trainer


def set_step(trainer: Trainer, step: int) -> None:
    """Make Lightning's counters say that `step` optimizer steps are done, one batch each."""
    loop = trainer.fit_loop.epoch_loop
    for counter in ("ready", "started", "processed", "completed"):
        setattr(loop.batch_progress.total, counter, step)
    loop.manual_optimization.optim_step_progress.total.ready = step
    loop.manual_optimization.optim_step_progress.total.completed = step
    loop._batches_that_stepped = step


def validate(trainer: Trainer) -> None:
    """Run the trainer's validation loop now.

    See docs/lessons.md, 'Validation runs after the checkpoint'.
    """
    connector = trainer._logger_connector
    first_loop_iter = connector._first_loop_iter
    trainer.validating = True
    try:
        trainer.fit_loop.epoch_loop.val_loop.run()
    finally:
        trainer.training = True
        connector._first_loop_iter = first_loop_iter
