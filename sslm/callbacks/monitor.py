"""What a person sees of a run: rows in metrics.jsonl, a bar or plain lines, samples, and curves.png.

The loss is read from the device only at logged steps; in between nothing waits.
"""

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from rich.progress import BarColumn, Progress, TextColumn
from transformers import PreTrainedConfig

from sslm import flops, plots, terminal
from sslm.models.build import on_meta
from sslm.objectives.base import Objective
from sslm.runs import RunFolder
from sslm.terminal import count, duration, say

SECONDS_BETWEEN_CURVES = 60.0


class Monitor(Callback):
    """Args:
    run_dir: where metrics.jsonl and curves.png go.
    total_steps: the run's last step.
    batch_tokens: tokens per optimizer step, over all devices.
    model_config: the model's config, from which its FLOPs and so MFU follow; None: no MFU.
    unigram_entropy: drawn in curves.png as what is to be beaten.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        total_steps: int,
        batch_tokens: int,
        model_config: PreTrainedConfig | None = None,
        unigram_entropy: float | None = None,
    ) -> None:
        self.run = RunFolder(Path(run_dir))
        self.total_steps, self.batch_tokens = total_steps, batch_tokens
        self.model_config, self.unigram_entropy = model_config, unigram_entropy
        self.bar: _Bar | None = None
        self.last_loss: float | None = None
        self._data_wait = 0.0

    def setup(self, trainer: Trainer, pl_module: Objective, stage: str) -> None:
        """Work out the peak before the threads and the memory are busy."""
        self.flops_per_token = self.peak_flops = None
        if self.model_config is not None and trainer.is_global_zero:
            model = on_meta(self.model_config, pl_module.auto_class)
            self.flops_per_token = flops.flops_per_token(
                self.model_config, flops.matmul_parameters(model), trainer.datamodule.seq_len
            )
            peak = flops.peak_flops(trainer.strategy.root_device, str(trainer.precision))
            self.peak_flops = peak * trainer.world_size if peak else None

    def on_train_start(self, trainer: Trainer, pl_module: Objective) -> None:
        if trainer.is_global_zero:
            self.run.drop_metrics_after(trainer.global_step)
            self.bar = _Bar(self.total_steps, trainer.global_step)
        self._drawn_at = self._waiting_since = time.perf_counter()
        self._start_interval(trainer)

    def _start_interval(self, trainer: Trainer) -> None:
        self._interval_start, self._interval_step, self._data_wait = (
            time.perf_counter(),
            trainer.global_step,
            0.0,
        )

    def on_train_batch_start(self, trainer: Trainer, pl_module: Objective, batch: Any, batch_idx: int) -> None:
        self._data_wait += time.perf_counter() - self._waiting_since

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Objective, outputs: dict[str, Any], batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:
            if trainer.is_global_zero:
                self._log_step(trainer, outputs)
            self._start_interval(trainer)
        self._waiting_since = time.perf_counter()

    def _log_step(self, trainer: Trainer, outputs: dict[str, Any]) -> None:
        loss = float(outputs["loss_sum"]) / outputs["scored"]  # waits for the device
        seconds = max(time.perf_counter() - self._interval_start, 1e-9)
        speed = (trainer.global_step - self._interval_step) * self.batch_tokens / seconds
        row = {
            "step": trainer.global_step,
            "tokens": trainer.global_step * self.batch_tokens,
            "train/loss": loss,
            "lr": outputs["lr"],
            "grad_norm": float(outputs["grad_norm"]),
            "tokens_per_second": round(speed, 1),
            "mfu": round(mfu, 4) if (mfu := self._mfu(speed)) is not None else None,
            "data_wait": round(self._data_wait / seconds, 4),
            "batch_digest": f"{outputs['digest']:016x}",
        }
        self.last_loss = loss
        self._write(row)
        if trainer.logger is not None:
            numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k not in ("step", "train/loss")}
            trainer.logger.log_metrics(numbers, step=trainer.global_step)
        if self.bar is not None:
            self.bar.step(trainer.global_step, loss, speed, row["mfu"])

    def _mfu(self, tokens_per_second: float) -> float | None:
        """Model FLOPs utilisation: the model's FLOP/s over the devices' peak (Chowdhery et al. 2022)."""
        if not (self.flops_per_token and self.peak_flops):
            return None
        return tokens_per_second * self.flops_per_token / self.peak_flops

    def on_validation_end(self, trainer: Trainer, pl_module: Objective) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        samples = pl_module.samples(trainer.datamodule)
        if trainer.is_global_zero:
            values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            row = {
                "step": trainer.global_step,
                "tokens": trainer.global_step * self.batch_tokens,
                **values,
                "samples": samples,
            }
            self._write(row)
            say(f"step {trainer.global_step:>6}  " + "  ".join(f"{name} {value:.4f}" for name, value in values.items()))
            for sample in samples:
                say(f"    {sample}")
            if time.perf_counter() - self._drawn_at > SECONDS_BETWEEN_CURVES:
                self.draw()
        self._start_interval(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: Objective) -> None:
        self._close()
        if trainer.is_global_zero:
            self.draw()

    def on_exception(self, trainer: Trainer, pl_module: Objective, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def draw(self) -> None:
        plots.draw_curves(self.run.rows(), self.run.curves, str(self.run.path), self.unigram_entropy)
        self._drawn_at = time.perf_counter()

    def _write(self, row: dict[str, Any]) -> None:
        with open(self.run.metrics, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


class _Bar:
    """A bar where somebody watches, else a plain line now and then."""

    def __init__(self, total_steps: int, first_step: int) -> None:
        self.total_steps, self.first_step = total_steps, first_step
        self.started = self.last_line = time.monotonic()
        self.bar: Progress | None = None
        if terminal.is_watched():
            self.bar = Progress(TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.fields[what]}"),
                                console=terminal.console(), transient=True)  # fmt: skip
            self.task = self.bar.add_task("", total=total_steps, completed=first_step, what="")
            self.bar.start()

    def step(self, step: int, loss: float, tokens_per_second: float, mfu: float | None) -> None:
        per_step = (time.monotonic() - self.started) / max(step - self.first_step, 1)
        what = f"loss {loss:.4f}  {count(tokens_per_second)} tokens/s" + (f"  MFU {mfu:.0%}" if mfu else "")
        what += f"  {duration((self.total_steps - step) * per_step)} left"
        if self.bar is not None:
            self.bar.update(self.task, completed=step, what=what)
        elif time.monotonic() - self.last_line > terminal.SECONDS_BETWEEN_PLAIN_LINES:
            self.last_line = time.monotonic()
            say(f"step {step:>6}/{self.total_steps}  {what}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
