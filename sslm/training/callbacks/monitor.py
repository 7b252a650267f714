"""What a person sees of a run: rows in metrics.jsonl, a bar or plain lines, samples, and curves.png.

The loss is read from the device only at logged steps; in between nothing waits.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from transformers import PreTrainedConfig

from sslm.models.build import on_meta
from sslm.parallel.planning import machines
from sslm.parallel.planning.host_memory import resident_memory
from sslm.runs import curves
from sslm.runs.folder import RunFolder
from sslm.runs.trackers import Trackers
from sslm.system.files import json_lines
from sslm.system.terminal import GIB, NO_BREAK, TrainingProgress, say
from sslm.training.flop_rates import FlopRates, flop_rates
from sslm.training.lightning import data_of
from sslm.training.module import Objective, StepOutputs

SECONDS_BETWEEN_CURVES = 60.0


class Monitor(Callback):
    """Writes metrics.jsonl and curves.png, and shows progress and samples.

    Args:
        run_dir: the run folder.
        total_steps: the run's last step.
        model_config: the model's config, from which its FLOPs follow, or None to leave MFU out.
        unigram_loss: loss of a baseline that only knows token frequencies, which curves.png shows, or None.
        trackers: what gets each row of metrics.jsonl too, or None.
    """

    def __init__(
        self,
        run_dir: Path,
        total_steps: int,
        model_config: PreTrainedConfig | None = None,
        unigram_loss: float | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        self.run = RunFolder(Path(run_dir))
        self.total_steps = total_steps
        self.model_config, self.unigram_loss, self.trackers = model_config, unigram_loss, trackers
        self.bar: TrainingProgress | None = None
        self._has_shown_samples = False
        self._unwritten: list[str] = []
        self._waiting: dict[int, dict[str, Any]] = {}
        """Rows of steps of which it is not known yet whether they were anomalous."""

    def on_fit_start(self, trainer: Trainer, pl_module: Objective) -> None:
        """Make the folder, and work out the model's FLOPs and the devices' peak, while nothing else runs."""
        if trainer.is_global_zero:
            self.run.path.mkdir(parents=True, exist_ok=True)
        self._flops: FlopRates | None = None
        self.peak_flops: float | None = None
        data = data_of(trainer)
        if self.model_config is None or data is None or not trainer.is_global_zero:
            return
        model = on_meta(self.model_config, pl_module.auto_class)
        self._flops = flop_rates(model, data)
        in_bf16 = "bf16" in str(trainer.precision) or next(pl_module.network.parameters()).dtype == torch.bfloat16
        peak = machines.peak_flops(trainer.strategy.root_device, torch.bfloat16 if in_bf16 else torch.float32)
        self.peak_flops = peak * trainer.world_size if peak else None

    def on_train_start(self, trainer: Trainer, pl_module: Objective) -> None:
        self._drawn_at = time.perf_counter()
        self._begin_at(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Objective) -> None:
        """Lightning's epochs after the first: the run may have gone back."""
        if trainer.current_epoch > 0:
            self._begin_at(trainer, pl_module)

    def _begin_at(self, trainer: Trainer, pl_module: Objective) -> None:
        if trainer.is_global_zero:
            self._close()
            self._unwritten, self._waiting = [], {}
            self.run.drop_metrics_after(trainer.global_step)
            if self.trackers is not None:
                self.trackers.begin(self.run.rows())
            self._write_changes(trainer)
            self.bar = TrainingProgress(self.total_steps)
            self._first_tokens = self._tokens(trainer)
        pl_module.batch_ended_at = time.perf_counter()
        self._start_interval(trainer)

    def _write_changes(self, trainer: Trainer) -> None:
        """Write a row for each change of settings that has none; the run may have gone back before it."""
        known = sum("changed" in row for row in self.run.rows())
        for change in json_lines(self.run.changes, say)[known:]:
            now = {"step": trainer.global_step, "tokens": self._tokens(trainer)}
            self._write(change if change["step"] <= now["step"] else change | now)

    def _tokens(self, trainer: Trainer) -> int:
        """Tokens of all steps so far."""
        return self._tokens_at(trainer, trainer.global_step)

    def _tokens_at(self, trainer: Trainer, step: int) -> int:
        data = data_of(trainer)
        return 0 if data is None else data.position(step) * data.seq_len

    def _start_interval(self, trainer: Trainer) -> None:
        self._interval_tokens, self._busy, self._data_wait = self._tokens(trainer), 0.0, 0.0
        self._interval_places = 0
        """Those that hold tokens."""

    @property
    def _writes(self) -> bool:
        """Whether a decoder behind an encoder writes the targets."""
        return self.model_config is not None and self.model_config.is_encoder_decoder

    def on_train_batch_start(self, trainer: Trainer, pl_module: Objective, *_: Any) -> None:
        self._data_wait += time.perf_counter() - pl_module.batch_ended_at

    def on_train_batch_end(self, trainer: Trainer, pl_module: Objective, outputs: StepOutputs, *_: Any) -> None:
        is_logged = trainer.global_step % trainer.log_every_n_steps == 0
        loss_sums = outputs["loss_sums"].tolist() if is_logged else []  # waits for the device
        self._busy += time.perf_counter() - pl_module.batch_ended_at
        self._interval_places += outputs["totals"].num_read + self._writes * sum(outputs["totals"].scored)
        if trainer.is_global_zero:
            row = {"step": trainer.global_step, "tokens": self._tokens(trainer), "lr": outputs["lr"]}
            if is_logged:
                row = self._logged(trainer, pl_module, outputs, loss_sums)
            self._waiting[trainer.global_step] = row | self._remarkable(trainer, outputs)
            self._write_known(outputs)
        if is_logged:
            self._start_interval(trainer)

    def _write_known(self, outputs: StepOutputs) -> None:
        """Write the rows of steps of which all is known, in order, if there is something to say."""
        for anomaly in outputs["anomalies"]:
            seen = {"train/loss": anomaly.loss, "grad_norm": anomaly.grad_norm, "anomaly": anomaly.kind}
            self._waiting[anomaly.step].update(seen)
        for step in [step for step in self._waiting if step <= outputs["num_known"]]:
            if len(row := self._waiting.pop(step)) > len(("step", "tokens", "lr")):
                self._write(row)

    def _remarkable(self, trainer: Trainer, outputs: StepOutputs) -> dict[str, Any]:
        """What a row says of a step even if it is not a logged one: skipped examples, no targets."""
        row: dict[str, Any] = {}
        if (data := data_of(trainer)) is not None:
            first, end = (data.position(trainer.global_step - 1 + i) for i in (0, 1))
            if skipped := data.train_stream.skipped_at(first, end):
                row["skipped_positions"] = skipped
        if not sum(outputs["totals"].scored):
            row["without_targets"] = True
        return row

    def _logged(
        self, trainer: Trainer, pl_module: Objective, outputs: StepOutputs, loss_sums: list[float]
    ) -> dict[str, Any]:
        """Make a logged step's row, and show it."""
        loss = sum(loss_sums) / outputs["totals"].all_scored
        seconds = max(self._busy, 1e-9)  # of fetching and stepping, without validation and saving
        tokens = self._tokens(trainer)
        speed = (tokens - self._interval_tokens) / seconds
        row: dict[str, Any] = {
            "step": trainer.global_step,
            "tokens": tokens,
            "train/loss": loss,
            "lr": outputs["lr"],
            "grad_norm": float(outputs["grad_norm"]),
            "tokens_per_second": round(speed, 1),
            "mfu": self._mfu(seconds),
            "flops": self._flops.spent(tokens) if self._flops else None,
            "data_wait": round(self._data_wait / seconds, 4),
            "host_memory_gib": in_gib(resident_memory()),
            "gpu_memory_gib": in_gib(peak_gpu_memory(trainer.strategy.root_device)),
            "batch_digest": f"{outputs['totals'].digest:016x}",
            **self._per_source(trainer, outputs["totals"].scored, loss_sums),
        }
        if trainer.loggers:  # of another's Trainer, which the module logs its loss for: at the same step, that is
            numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k not in ("step", "train/loss")}
            exact = {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}
            pl_module.log_dict(exact, rank_zero_only=True)
        if self.bar is not None:
            is_gpu = trainer.strategy.root_device.type != "cpu"  # the peak of a CPU tells its owner nothing
            left = self._tokens_at(trainer, self.total_steps) - self._first_tokens
            done = (tokens - self._first_tokens) / max(left, 1)
            self.bar.step(trainer.global_step, loss, speed, row["mfu"] if is_gpu else None, done)
        return row

    def _per_source(self, trainer: Trainer, scored: list[int], loss_sums: list[float]) -> dict[str, float]:
        """Of a mixture, each source's loss in this step (if it had a part in it), and its tokens and epochs so far."""
        data = data_of(trainer)
        if data is None or not data.mixes:
            return {}
        row: dict[str, float] = {}
        seen = data.train_stream.seen(data.position(trainer.global_step))
        for (name, (examples, epochs)), n, loss_sum in zip(seen.items(), scored, loss_sums, strict=True):
            if n:
                row[f"train/loss/{name}"] = loss_sum / n
            row |= {f"tokens/{name}": examples * data.seq_len, f"epochs/{name}": round(epochs, 4)}
        return row

    def _mfu(self, seconds: float) -> float | None:
        """Model FLOPs utilisation: FLOP/s for tokens, not for padding, over the devices' peak (see `flops`)."""
        if not (self._flops and self.peak_flops):
            return None
        spent = self._interval_places * self._flops.per_place(self._interval_tokens)
        return float(f"{spent / seconds / self.peak_flops:.4g}")

    def on_validation_end(self, trainer: Trainer, pl_module: Objective) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        data = data_of(trainer)
        samples = [] if data is None else pl_module.samples(data)
        if trainer.is_global_zero:
            values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
            tokens = self._tokens(trainer)
            self._write({"step": trainer.global_step, "tokens": tokens, **values, "samples": samples})
            self._show(trainer.global_step, values, samples, pl_module.samples_in_words)
            if time.perf_counter() - self._drawn_at > SECONDS_BETWEEN_CURVES:
                self.draw()

    def write_values(self, trainer: Trainer, values: dict[str, float | None]) -> None:
        """Write a row of a step's figures; on rank 0."""
        self._write({"step": trainer.global_step, "tokens": self._tokens(trainer), **values})

    def _show(self, step: int, values: dict[str, float], samples: list[str], in_words: str) -> None:
        """Show a validation; its samples not before training, when they are noise."""
        say(f"step {step:>6}  val/" + "  ".join(_short(name.removeprefix("val/"), values[name]) for name in values))
        if not samples or not step:
            return
        if not self._has_shown_samples:
            say(f"    Samples: {in_words}")
            self._has_shown_samples = True
        for sample in samples:
            say(f"    {sample}")

    def on_train_end(self, trainer: Trainer, pl_module: Objective) -> None:
        self._close()
        if trainer.is_global_zero:
            self.draw()
            if self.trackers is not None:
                self.trackers.close()

    def on_exception(self, trainer: Trainer, pl_module: Objective, exception: BaseException) -> None:
        self._close()
        if self.trackers is not None and trainer.is_global_zero:
            self.trackers.close(failed=True)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def draw(self) -> None:
        curves.draw_curves(self.run.rows(), self.run.curves, str(self.run.path), self.unigram_loss)
        self._drawn_at = time.perf_counter()

    def write_rows(self) -> None:
        """Append the rows that metrics.jsonl lacks so far, or leave it as it was: the disk may be full."""
        size = self.run.metrics.stat().st_size if self.run.metrics.is_file() else 0
        try:
            with open(self.run.metrics, "a", encoding="utf-8") as stream:
                stream.writelines(self._unwritten)
        except OSError:
            with suppress(OSError):
                os.truncate(self.run.metrics, size)
            raise
        self._unwritten = []

    def _write(self, row: dict[str, Any]) -> None:
        self._unwritten.append(json.dumps(row, ensure_ascii=False) + "\n")
        self.write_rows()
        if self.trackers is not None:
            self.trackers.write(row)


def peak_gpu_memory(device: torch.device) -> int | None:
    """Return the most bytes that tensors of this process have taken at once so far, or None if it has no GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def in_gib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else round(num_bytes / GIB, 3)


def _short(name: str, value: float) -> str:
    """Write a metric so that those of a validation fit on a line of 80 characters.

    >>> _short("loss", 6.1783123), _short("perplexity", 509.04), _short("bits_per_byte", 0.947612)
    ('loss\xa06.1783', 'perplexity\xa0509.0', 'bits/byte\xa00.948')
    """
    digits = f"{value:#.4g}".rstrip(".") if value >= 1 else f"{value:.3f}"
    digits = f"{value:.4f}" if name.startswith("loss") else digits
    return f"{name.replace('_per_', '/')}{NO_BREAK}{digits}"
