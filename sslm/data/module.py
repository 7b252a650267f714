"""The Lightning DataModule: corpora opened, split, mixed and streamed for an objective."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn

from sslm.config import DataConfig
from sslm.config.batch_sizes import BatchSizes
from sslm.config.ramp import parse_lengths, parse_ramp
from sslm.data.corpus import tokenizer as tokenizers
from sslm.data.corpus.labelled import Tally, combined
from sslm.data.corpus.tokenizer import Tokenizer
from sslm.data.fingerprints import changes
from sslm.data.held_out import HeldOut
from sslm.data.labelled.baseline import baseline_loss
from sslm.data.rows import Rows
from sslm.data.stream.amendments import Amendment, Skip, amendment_of
from sslm.data.stream.batches import Batch, Loader, StepBatch, TrainSteps, pinned, step_batch, with_tensors
from sslm.data.stream.pieces import Pieces, pieces_of
from sslm.data.stream.recipe import Arrays, Ints, Recipe
from sslm.data.stream.stream import Stream
from sslm.data.stream.streams import Streams, open_streams
from sslm.data.stream.verify import Verifier
from sslm.data.stream.vocabulary import SpecialTokens, Vocabulary, extended
from sslm.data.targets import check_targets, count_targets, unigram_loss
from sslm.system.errors import UserError
from sslm.system.files import append_json_lines, json_lines
from sslm.system.random_words import key64
from sslm.system.ranks import is_first_of_node
from sslm.system.terminal import say

UNIGRAM_TOKENS, UNIGRAM_ROWS = 1 << 19, 64
CHECKED_ROWS = 16


def data_parallel(trainer: Any) -> tuple[int, int]:
    """Find (rank, size) of this process among the data-parallel ranks; devices that share matrices are one rank."""
    ranks = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {"rank": 0, "num_replicas": 1}
    return ranks["rank"], ranks["num_replicas"]


class DataModule(LightningDataModule):
    """Corpora prepared, split, mixed and streamed for an objective.

    Args:
        data: where the text comes from.
        recipe: the objective's pure part.
        seq_len: tokens per sequence; a ramp as text, such as "128, 512 from 1e9 tokens".
        batch_size: sequences per optimizer step, over all devices; a ramp as text, such as "32, 64 from 1e9 tokens".
        total_steps: optimizer steps in the whole run, or None for what the trainer's max_steps and max_epochs allow.
        seed: seed of order and noise.
        tokenizer: used if `data.tokenizer` names none (that of pretrained weights).
        amendments: file to append amendments to, or None if checkpoints alone keep them.
        first_batch_size: batch size that the run began with, by which text is held out; None: that of `batch_size`.
    """

    def __init__(
        self,
        data: DataConfig,
        recipe: Recipe,
        *,
        seq_len: int | str,
        batch_size: int | str,
        total_steps: int | None = None,
        seed: int = 0,
        tokenizer: str | None = None,
        amendments: Path | None = None,
        first_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.config, self.recipe = data, recipe
        self.ramp, self.lengths = parse_ramp("batch_size", batch_size), parse_lengths(seq_len)
        self.seq_len = self.lengths.largest
        """Tokens per example: those of the longest sequence."""
        self.sizes = BatchSizes.of(self.ramp, self.lengths)
        """Of the batches, from where the run goes on."""
        self.total_steps, self.seed = total_steps, seed
        self.default_tokenizer = tokenizer
        self.amendments_file = amendments
        self.first_batch_size = first_batch_size or self.ramp.numbers[0]
        self.first_step = 0
        """Optimizer steps already taken: the train loader starts there."""
        self.lists_documents = False
        """Whether batches say where documents begin, which attention by offsets asks for."""
        self.beside: Callable[[Ints, Arrays], Arrays] | None = None
        """Reads what else training batches have: `TrainSteps.beside`."""
        self._num_given = 0
        """Steps whose batches a loop without a trainer has got."""
        self._streams: Streams
        self.train_stream: Stream
        self.vocabulary: Vocabulary | None
        self._verifier: Verifier | None = None
        self._train_steps: TrainSteps | None = None

    # -------------------------------------------------------------------------------------------- preparation

    def setup(self, stage: str | None = None) -> None:
        """Open the streams (`open_streams`). Any number of processes may call at once."""
        if not hasattr(self, "train_stream"):
            self._check_lengths()
            self._streams = open_streams(
                self.config,
                self.recipe,
                self.seq_len,
                self.ramp.largest,
                self.seed,
                self.default_tokenizer,
                self.first_batch_size,
            )
            self.train_stream, self.vocabulary = self._streams.train, self._streams.vocabulary
            self._check_targets()

    def _check_lengths(self) -> None:
        """Refuse rows that can't be cut."""
        if len(self.lengths.stages) > 1:
            flag = f"--seq_len {self.lengths.setting}"
            if self.recipe.task(self.seq_len) is not None:
                raise UserError(f"{flag}: labelled rows are of any length up to one; give that one")
            if self.config.packing == "best_fit":
                raise UserError(f"--data.packing best_fit: keeps documents whole, which {flag} cuts; leave out either")

    def pieces_of(self, seq_len: int) -> Pieces:
        """Tell how windows are cut while sequences are so short."""
        return pieces_of(self.recipe, self.vocabulary, self.window_len, seq_len, self.seq_len // seq_len)

    def _check_targets(self) -> None:
        """Refuse sequences to validate on, or the first to train on, without targets; remote shards stay there."""
        val, train = self.held_out.steps(CHECKED_ROWS), self._first_train_steps(CHECKED_ROWS)
        for steps, number, which in ((val, val.num_steps, "held-out"), (*train, "first training")):
            if not any(source.corpus.is_remote for source in steps.stream.sources):
                check_targets((steps[step] for step in range(number)), self.recipe, which)

    def _first_train_steps(self, batch_size: int) -> tuple[TrainSteps, int]:
        """The batches that are looked at before the run, and their number."""
        rows = min(max(UNIGRAM_TOKENS // self.seq_len, 1), self.train_stream.num_windows)
        return self._train_steps_of(BatchSizes.even(batch_size), substitute=True), -(-rows // batch_size)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer with the objective's special tokens, or None if the corpora are ids without one."""
        if (name := self._streams.tokenizer) is None:
            return None
        return extended(tokenizers.load(name), self.recipe.special_tokens(self.seq_len) or SpecialTokens())

    # -------------------------------------------------------------------------------------------- streams

    @property
    def window_len(self) -> int:
        return self.recipe.window_len(self.seq_len, self.vocabulary)

    @property
    def max_scored(self) -> int | None:
        """Largest number of targets in a row, or None if every place may be one."""
        return self.recipe.max_scored(self.seq_len, self.vocabulary)

    @property
    def val_batch_size(self) -> int:
        """Sequences of a validation's batches, over all devices: those of the largest step."""
        return self.ramp.largest

    @property
    def num_positions(self) -> int:
        """Length of the longest sequence that the model gets."""
        return self.recipe.num_positions(self.seq_len, self.vocabulary)

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id of the tokenizer, or of the corpora without one."""
        if self.tokenizer is not None:
            return tokenizers.num_ids(self.tokenizer)
        return max(source.corpus.vocab_size for source in (*self.train_stream.sources, *self._streams.val.sources))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels of labelled data, by number; none if what is predicted is a number or a text."""
        return () if self.vocabulary is None else self.vocabulary.labels

    @property
    def label_counts(self) -> tuple[Tally, Tally]:
        """What is counted of the labelled rows to train on, and of those held out."""
        train = [source.corpus.labelled for source in self.train_stream.sources]
        val = [source.corpus.labelled for source in self.held_out.stream.sources]
        return combined(filter(None, train), "train"), combined(filter(None, val), "val")

    @property
    def mixes(self) -> bool:
        """Whether there are several sources, to be logged apart."""
        return len(self.train_stream.sources) > 1

    @functools.cached_property
    def held_out(self) -> HeldOut:
        """The sequences to validate on."""
        return HeldOut(
            self._streams.val,
            self.recipe,
            self.seq_len,
            self.seed,
            self.vocabulary,
            self.tokenizer,
            self._num_targets,
            self.config.val_sequences,
            self._streams.val_rows,
        )

    @functools.cached_property
    def unigram_loss(self) -> float:
        """Held-out loss of a model that knows nothing but how often each target, label or place comes in training.

        The targets of the first training sequences are counted, or of the held-out ones if the training shards are
        remote.
        """
        if (task := self.recipe.task(self.seq_len)) and task.is_counted:
            return baseline_loss(*self.label_counts, task.is_one_each)
        seen = self.held_out.counts
        if not any(source.corpus.is_remote for source in self.train_stream.sources):
            train, number = self._first_train_steps(UNIGRAM_ROWS)
            seen = count_targets((train[step] for step in range(number)), self._num_targets)
        return unigram_loss(self.held_out.counts, seen)

    @property
    def _num_targets(self) -> int:
        """How many different targets there can be: ids, or places in a sequence."""
        task = self.recipe.task(self.seq_len)
        return self.seq_len if task is not None and task.targets_are_places else self.vocab_size

    # -------------------------------------------------------------------------------------------- state

    def fingerprint(self) -> dict[str, Any]:
        """Record what a checkpoint keeps, to refuse to resume with other data."""
        return {"seed": self.seed, **self.train_stream.fingerprint()}

    def cleaned(self) -> dict[str, Any]:
        """Tell, by source, how the text was cleaned that it is made of, if `sslm clean` did that."""
        records = {
            source.name: next((entry["cleaned"] for entry in source.corpus.source if "cleaned" in entry), None)
            for source in self.train_stream.sources
        }
        return {name: record for name, record in records.items() if record is not None}

    def state_dict(self) -> dict[str, Any]:
        """Tell how far batches were taken, and of what: for Lightning's checkpoints, or those of one's own loop."""
        step = self._num_given if self.trainer is None else self.trainer.global_step
        where = {"step": step, "position": self.position(step), "amendments": self.amendments}
        what = {"recipe": asdict(self.recipe), "first_batch_size": self.first_batch_size}
        what |= {"seq_len": self.lengths.setting} if len(self.lengths.stages) > 1 else {}
        return where | {"made_of": what | self.fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken, maybe with batches of another size.

        Raises:
            UserError: the text, its order or the recipe are others.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return  # weights may be validated and tested on any data
        self.setup()
        if changed := changes(state["made_of"], self.state_dict()["made_of"]):
            what = f"{'; '.join(changed[:4])}{' …' if changed[4:] else ''}"
            raise UserError(
                f"the data has changed since the checkpoint: {what}; restore the former data, or start anew"
            )
        self.restore(state["step"], state["position"], state["amendments"])

    @property
    def amendments(self) -> list[dict[str, Any]]:
        """The stream's amendments, as checkpoints keep them."""
        return [asdict(amendment) for amendment in self.train_stream.amendments]

    def position(self, step: int) -> int:
        """Position of the first example of an optimizer step, from where the run goes on; its end is the next one's."""
        return self.sizes.position_at(step)

    @property
    def has_one_size(self) -> bool:
        """Whether all batches of the run are of one size, from its very beginning on."""
        return self.ramp.numbers == (self.first_batch_size,) and self.position(0) == 0

    def restore(self, step: int, position: int, amendments: list[dict[str, Any]]) -> None:
        """Go on after `step` optimizer steps and `position` examples, with these amendments and those in the file."""
        self.first_step = self._num_given = step
        self.sizes = BatchSizes.of(self.ramp, self.lengths, step, position)
        if self._train_steps is not None:
            self._train_steps.sizes = self.sizes
            self._train_steps.forget()
        written = [] if self.amendments_file is None else json_lines(self.amendments_file, say)
        for amendment in map(amendment_of, [*amendments, *written]):
            if amendment not in self.train_stream.amendments:
                self.train_stream.amend(amendment)

    def amend(self, shards: dict[tuple[str, str], str], step: int, write: bool) -> list[Amendment]:
        """Replace bad shards, (source, file) -> what is wrong with it, from optimizer step `step` on.

        If `write`, the run's file has them on the disk before this returns.
        """
        position = self.position(step)
        before = [amendment for amendment in self.train_stream.amendments if isinstance(amendment, Amendment)]
        known = {(amendment.source, amendment.file) for amendment in before if amendment.from_position <= position}
        found = [Amendment(position, *shard, reason) for shard, reason in sorted(shards.items()) if shard not in known]
        self._apply(found, write)
        return found

    def skip(self, step: int, num_steps: int, reason: str, write: bool) -> None:
        """Leave out the examples of `num_steps` optimizer steps, from step `step` on.

        Its reason is unlike any other skip's: equal amendments count once. `write` is as in `amend`.
        """
        first, end = self.position(step), self.position(step + num_steps)
        self._apply([Skip(first, end - first, reason)], write)

    def _apply(self, amendments: Sequence[Amendment | Skip], write: bool) -> None:
        if write and amendments and self.amendments_file is not None:
            append_json_lines(self.amendments_file, map(asdict, amendments))
        for amendment in amendments:
            self.train_stream.amend(amendment)
        if self._train_steps is not None:
            self._train_steps.forget()

    def begins_stage(self, step: int) -> bool:
        """Whether the mixture's weights change in optimizer step `step`, or sequences are longer after it."""
        first, end = self.position(step), self.position(step + 1)
        points = (stage.from_tokens for stage in self.lengths.stages[1:])
        grows = any(first * self.seq_len < tokens <= end * self.seq_len for tokens in points)
        return grows or self.train_stream.begins_stage(first, end)

    # -------------------------------------------------------------------------------------------- loaders

    def train_dataloader(self) -> Loader:
        """Make batches from the next step on: up to the run's end, or if the trainer counts epochs, to the epoch's.

        Without a trainer a loop that was left begins again where it began, or where `load_state_dict` says; one that
        came to its end is followed by the next epoch.
        """
        self.setup()
        substitute = self.config.on_bad_shard == "substitute"
        self._train_steps = self._train_steps_of(self.sizes, *self._rank_and_world(), substitute=substitute)
        self._train_steps.beside = self.beside
        is_in_epochs = self.total_steps is None and (self.trainer is None or (self.trainer.max_epochs or -1) > 0)
        end = self.epoch_steps if is_in_epochs else self.num_steps
        counts: dict[str, Any] = {"on_batch": self._give} if self.trainer is None else {"ends_itself": False}
        return Loader(self._train_steps, self._next_step, end, self.config.num_workers, **counts)

    @property
    def epoch_steps(self) -> int:
        """Optimizer steps in which all training sequences are read once.

        Raises:
            UserError: batches grow, so that each epoch has another number of steps.
        """
        if len(self.ramp.stages) > 1:
            why = "batches that grow make each epoch another number of steps"
            raise UserError(f"--batch_size {self.ramp.setting}: {why}; give max_steps or total_steps instead of epochs")
        return max(self.train_stream.num_windows // self.ramp.largest, 1)

    @property
    def num_steps(self) -> int:
        """Optimizer steps in the whole run: total_steps, or what the trainer's max_steps and max_epochs allow.

        Raises:
            UserError: nothing ends the trainer's run.
        """
        if self.trainer is None:
            return self.total_steps or self.epoch_steps
        ends = [] if self.trainer.max_steps == -1 else [self.trainer.max_steps]
        if (epochs := self.trainer.max_epochs or -1) > 0:
            ends.append(epochs * int(min(self.epoch_steps, self.trainer.num_training_batches)))
        if not ends:
            what = "Trainer(max_steps=-1, max_epochs=-1): learning rates need to know where the run ends"
            raise UserError(f"{what}; give max_steps or max_epochs")
        return self.total_steps or min(ends)

    def _next_step(self) -> int:
        return self.first_step if self.trainer is None else self.trainer.global_step

    def _give(self, num_steps: int) -> None:
        """Note for `state_dict` what a loop without a trainer has got."""
        self._num_given = num_steps
        if num_steps % self.num_steps == 0:
            self.first_step = num_steps

    def val_dataloader(self) -> Loader:
        self.setup()
        steps = self.held_out.steps(self.val_batch_size, *self._rank_and_world())
        return Loader(steps, lambda: 0, steps.num_steps, self.config.num_workers)

    def test_dataloader(self) -> Loader:
        """Make the batches to validate on: what to test on is named as `val`."""
        return self.val_dataloader()

    def rows(self, which: Literal["train", "val"] = "train") -> Rows:
        """Give the examples one by one, for trainers that make batches themselves; each is a part of a step's batch.

        Training rows are in the run's order: `total_steps` steps of them, or an epoch's. Read them in that order.

        Raises:
            UserError: documents of a row are to be kept apart.
        """
        self.setup()
        if self.config.document_mask:
            instead = "rows for other trainers don't keep documents apart; leave it out, or train an objective of sslm"
            raise UserError(f"DataConfig(document_mask=True): {instead}")
        if which == "val":
            places = self.held_out.places
            return Rows(
                lambda numbers: self.held_out.stream.read(places.rows(numbers)).rows(slice(None)),
                len(places.positions),
                self.recipe,
                self.vocabulary,
                key64(self.seed, "val"),
            )
        num = self.train_stream.num_windows if self.total_steps is None else self.position(self.total_steps)
        return Rows(self.train_stream.at, num, self.recipe, self.vocabulary, self.seed)

    def _train_steps_of(self, sizes: BatchSizes, rank: int = 0, world: int = 1, *, substitute: bool) -> TrainSteps:
        setting = self.recipe, sizes, self.seed, rank, world, self.vocabulary
        return TrainSteps(self.train_stream, *setting, substitute=substitute)

    def _rank_and_world(self) -> tuple[int, int]:
        rank, world = data_parallel(self.trainer) if self.trainer else (0, 1)
        if self.ramp.common_divisor % world:
            wrong = f"--batch_size {self.ramp.setting}: can't be shared evenly by {world} devices"
            raise UserError(f"{wrong}; give a multiple of {world}")
        return rank, world

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> StepBatch:
        if self.trainer is None or not self.trainer.training:
            return step_batch(batch, len(self.held_out.stream.sources), **self._kind_of_rows)
        step = self.trainer.global_step
        if batch["amendments"] < len(self.train_stream.amendments):  # a loader process made it before
            return self.train_batch(step)
        return self._step_batch(batch, step)

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        """Send a batch, to a GPU from pinned memory: from other memory it waits until the GPU has done its work."""
        if device.type == "cpu":  # it is there: Lightning would search all that it holds
            return batch
        if device.type == "cuda":
            batch = pinned(batch)
        moved: StepBatch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved

    def make_ahead(self, step: int) -> None:
        """Make the batch of optimizer step `step` while a GPU is still at work, if no loader process does."""
        if self._train_steps is not None and self.config.num_workers == 0 and step < self.num_steps:
            self._train_steps.make_ahead(step)

    def train_batch(self, step: int) -> StepBatch:
        """Make this rank's share of optimizer step `step` in this process."""
        assert self._train_steps is not None
        return self._step_batch(with_tensors(self._train_steps[step]), step)

    def _step_batch(self, batch: Batch, step: int) -> StepBatch:
        trainer = self.trainer
        assert trainer is not None
        if self._verifier is None and is_first_of_node(trainer.local_rank):
            self._verifier = Verifier([*self.held_out.stream.sources, *self.train_stream.sources])
        if self._verifier is not None:
            batch = self._with_what_is_bad(batch, self._verifier, is_last=step + 1 == self.num_steps)
        is_logged = (step + 1) % (trainer.log_every_n_steps or math.inf) == 0
        return step_batch(batch, len(self.train_stream.sources), is_logged, **self._kind_of_rows)

    @property
    def _kind_of_rows(self) -> dict[str, Any]:
        return {
            "task": self.recipe.task(self.seq_len),
            "predicts_next_token": self.recipe.predicts_next_token,
            "lists_documents": self.lists_documents,
        }

    def _with_what_is_bad(self, batch: Batch, verifier: Verifier, is_last: bool) -> Batch:
        """Tell the others, by the batch, of a shard that was found to be bad; no run ends before all are verified."""
        if is_last and not verifier.is_done:
            say("Checking the rest of the corpus for damage before the last step")
            verifier.wait()
        if (bad := verifier.found()) is None:
            return batch
        is_held_out = all(
            bad.file != region.shard.file for source in self.train_stream.sources for region in source.regions
        )
        if self.config.on_bad_shard == "fail" or is_held_out:
            raise bad
        return {**batch, "bad": [bad.source, bad.file, str(bad)]}

    def teardown(self, stage: str) -> None:
        if self._verifier is not None:
            self._verifier.close()
            self._verifier = None
        for source in (*self.train_stream.sources, *self.held_out.stream.sources):
            source.corpus.close()
