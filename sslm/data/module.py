"""The Lightning DataModule: item number `step` of the loader is this rank's share of optimizer step `step`.

Rank r of w takes positions step·batch_size + r·share … + share, in order; the loader has a length, starts at any step, and
reads nothing but the step's number. Restoring it is setting `first_step`.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from sslm.config import DataConfig
from sslm.data import preparation, stream
from sslm.data import tokenizer as tokenizers
from sslm.data.corpus import open_source
from sslm.data.order import key64, mix64
from sslm.data.recipe import Recipe
from sslm.data.shards import Corpus, is_corpus, open_corpus
from sslm.data.stream import Stream
from sslm.data.tokenizer import Tokenizer
from sslm.errors import UserError
from sslm.terminal import preparation_progress

DEFAULT_TOKENIZER = "bpe:2048"
IGNORED = -100

Batch = dict[str, Any]
"""tensors: {name: [share, …]}; first_position, scored, digest: whole numbers of this rank's share."""


class DataModule(LightningDataModule):
    """Corpora prepared, split and streamed for an objective.

    Args:
        data: where the text comes from.
        recipe: the objective's pure part.
        seq_len: tokens per sequence.
        batch_size: sequences per optimizer step, over all devices.
        total_steps: optimizer steps in the whole run; default: the trainer's max_steps.
        seed: of order and noise.
        tokenizer: used where `data.tokenizer` names none (that of pretrained weights).
    """

    def __init__(
        self,
        data: DataConfig,
        recipe: Recipe,
        *,
        seq_len: int,
        batch_size: int,
        total_steps: int | None = None,
        seed: int = 0,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__()
        self.data, self.recipe, self.seq_len, self.batch_size = data, recipe, seq_len, batch_size
        self.total_steps, self.seed = total_steps, seed
        self.default_tokenizer = tokenizer
        self.first_step = 0
        """Optimizer steps already taken: the train loader starts there."""
        self.tokenizer: Tokenizer
        self.train_corpus: Corpus
        self.train_stream: Stream
        self.val_stream: Stream

    # -------------------------------------------------------------------------------------------- preparation

    def setup(self, stage: str | None = None) -> None:
        """Prepare what is not prepared yet, and open it. Any number of processes may call at once.

        Raises:
            UserError: bad text, a tokenizer that does not match, less text than one batch.
        """
        if hasattr(self, "train_stream"):
            return
        cache_dir = (
            Path(self.data.cache_dir).expanduser() if self.data.cache_dir else platformdirs.user_cache_path("sslm")
        )
        wanted = self.data.tokenizer or self.default_tokenizer
        corpus = self._corpus(self.data.train, wanted, cache_dir)
        self.train_corpus = corpus
        self.tokenizer = tokenizers.load(corpus.tokenizer_folder)
        if tokenizers.identity(self.tokenizer) != corpus.tokenizer_sha256:
            raise UserError(
                f"{corpus.tokenizer_folder}: is not the tokenizer this corpus was prepared with; prepare it again"
            )
        tokens = self.batch_size * self.recipe.window_len(self.seq_len)
        if self.data.val is None:
            training, held_out = stream.split(corpus, tokens)
            val_corpus = corpus
        else:
            val_corpus = self._corpus(self.data.val, str(corpus.tokenizer_folder), cache_dir)
            training, held_out = stream.whole(corpus), stream.whole(val_corpus)
        self.train_stream, self.val_stream = (
            self._stream(corpus, training),
            self._stream(val_corpus, held_out),
        )
        if self.train_stream.num_windows < self.batch_size:
            raise UserError(
                f"{self.data.train or 'the corpus'}: {corpus.num_tokens} tokens give {self.train_stream.num_windows} training "
                f"sequences, less than one batch of {self.batch_size}; bring more text, or lower --batch_size or --seq_len"
            )
        if self.val_stream.num_windows == 0:
            raise UserError(f"{self.data.val}: less than one sequence of {self.seq_len} tokens to validate on")

    def _corpus(self, given: str | None, tokenizer: str | None, cache_dir: Path) -> Corpus:
        if given is not None and is_corpus(given):
            corpus = open_corpus(given)
            if tokenizer is not None:
                self._check_tokenizer(given, corpus, tokenizer)
            return corpus
        source = open_source(
            given, text_field=self.data.text_field, document_separator=self.data.document_separator,
            hash_file=preparation.remembering_hash(cache_dir),
        )  # fmt: skip
        tokenizer = tokenizer or DEFAULT_TOKENIZER
        known = tokenizer if tokenizers.bpe_size(tokenizer) else tokenizers.load(tokenizer)
        return preparation.prepare_cached(
            source, known, cache_dir, lambda: preparation_progress(f"Preparing {source.name}")
        )

    @staticmethod
    def _check_tokenizer(given: str, corpus: Corpus, tokenizer: str) -> None:
        if tokenizers.bpe_size(tokenizer):
            matches = corpus.tokenizer == tokenizer
        else:
            is_same_name = corpus.tokenizer == tokenizer and not Path(tokenizer).exists()
            matches = is_same_name or tokenizers.identity(tokenizers.load(tokenizer)) == corpus.tokenizer_sha256
        if not matches:
            raise UserError(f"{given}: was prepared with another tokenizer than {tokenizer}; leave --data.tokenizer out, or "
                            f"prepare the text again: python -m sslm.prepare TEXT --tokenizer {tokenizer} --out DIR")  # fmt: skip

    def _stream(self, corpus: Corpus, regions: list[stream.Region]) -> Stream:
        return Stream(corpus, regions, self.recipe.window_len(self.seq_len), self.recipe.stride(self.seq_len))

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint remembers, to refuse going on with other data."""
        return {
            **self.train_stream.fingerprint(),
            "seed": self.seed,
            "tokenizer": self.train_corpus.tokenizer_sha256,
        }

    @functools.cached_property
    def unigram_entropy(self) -> float:
        """Entropy in nats of the held-out tokens' own frequencies: the loss of a model that knows these and nothing else."""
        counts = np.bincount(self.val_stream.windows(val_windows(self.val_stream, self.data.val_sequences)).ravel())
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * np.log(shares)).sum())

    @functools.cached_property
    def val_bytes_per_token(self) -> float:
        """UTF-8 bytes of the held-out sequences' text over their tokens."""
        windows = self.val_stream.windows(val_windows(self.val_stream, self.data.val_sequences))
        texts = self.tokenizer.batch_decode(windows, skip_special_tokens=True)
        return sum(len(text.encode()) for text in texts) / windows.size

    # -------------------------------------------------------------------------------------------- loaders

    def train_dataloader(self) -> "DataLoader[Batch]":
        rank, world = self._rank_and_world()
        end = self.total_steps or self.trainer.max_steps  # type: ignore[union-attr]
        return self._loader(
            TrainSteps(self.train_stream, self.recipe, self.batch_size, self.seed, rank, world),
            self.first_step,
            end,
        )

    def val_dataloader(self) -> "DataLoader[Batch]":
        rank, world = self._rank_and_world()
        steps = ValSteps(self.val_stream, self.recipe, self.batch_size, self.seed, rank, world, self.data.val_sequences)
        return self._loader(steps, 0, steps.num_steps)

    def _rank_and_world(self) -> tuple[int, int]:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.batch_size % world:
            raise UserError(
                f"--batch_size {self.batch_size}: can't be shared by {world} devices; give a multiple of {world}"
            )
        return rank, world

    def _loader(self, steps: "Dataset[Batch]", first: int, end: int) -> "DataLoader[Batch]":
        workers = self.data.num_workers
        return DataLoader(
            steps,
            batch_size=None,
            sampler=range(first, end),
            num_workers=workers,
            persistent_workers=workers > 0,
        )


class TrainSteps(Dataset[Batch]):
    """step -> this rank's share of the step's batch."""

    def __init__(self, train: Stream, recipe: Recipe, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.stream, self.recipe, self.seed = train, recipe, seed
        self.batch_size, self.share, self.rank = batch_size, batch_size // world, rank

    def __getitem__(self, step: int) -> Batch:
        first = step * self.batch_size + self.rank * self.share
        positions = np.arange(first, first + self.share)
        windows, epochs = self.stream.at(positions, self.seed)
        return as_batch(self.recipe.make_batch(windows, positions, epochs, self.seed), positions)


class ValSteps(Dataset[Batch]):
    """step -> this rank's share of a validation batch: the same windows at every validation and on any number of ranks.

    Of more than `at_most` held-out windows, that many are taken, evenly spread. Rows beyond the last are not scored.
    """

    def __init__(
        self, val: Stream, recipe: Recipe, batch_size: int, seed: int, rank: int, world: int, at_most: int
    ) -> None:
        self.stream, self.recipe, self.seed, self.rank = val, recipe, seed, rank
        self.share = batch_size // world
        self.numbers = val_windows(val, at_most)
        self.num_steps = -(-len(self.numbers) // batch_size)
        self.batch_size = batch_size

    def __getitem__(self, step: int) -> Batch:
        first = step * self.batch_size + self.rank * self.share
        positions = np.arange(first, first + self.share)
        real = positions < len(self.numbers)
        numbers = self.numbers[np.minimum(positions, len(self.numbers) - 1)]
        arrays = self.recipe.make_batch(
            self.stream.windows(numbers), positions, np.zeros_like(positions), key64(self.seed, "val")
        )
        arrays["labels"] = np.where(real[:, None], arrays["labels"], IGNORED)
        return as_batch(arrays, positions)


def val_windows(val: Stream, at_most: int) -> NDArray[np.int64]:
    """Numbers of the windows to validate on: all, or that many evenly spread."""
    num = min(at_most, val.num_windows)
    return np.arange(num) * val.num_windows // num


def as_batch(arrays: dict[str, NDArray[Any]], positions: NDArray[np.int64]) -> Batch:
    """What the training step takes."""
    return {
        "tensors": {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()},
        "first_position": int(positions[0]),
        "scored": int((arrays["labels"] >= 0).sum()),
        "digest": digest(arrays, positions),
    }


def digest(arrays: dict[str, NDArray[Any]], positions: NDArray[np.int64]) -> int:
    """Hash of inputs and targets keyed by position, summed over rows mod 2^64: equal however a batch is shared out."""
    rows = mix64(positions.astype(np.uint64))
    for name in sorted(arrays):
        array = arrays[name].reshape(len(positions), -1).astype(np.uint64)
        columns = mix64(np.arange(array.shape[1], dtype=np.uint64) + np.uint64(key64(name))) | np.uint64(1)
        rows = mix64(rows + (array * columns).sum(1, dtype=np.uint64))
    return int(rows.sum(dtype=np.uint64))
