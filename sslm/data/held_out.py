"""The sequences that a run validates on: chosen once, read by every validation, and what is known of them before."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslm.config.batch_sizes import BatchSizes
from sslm.data.corpus.tokenizer import Tokenizer
from sslm.data.labelled.rows import Rows
from sslm.data.stream.batches import ValSteps, with_tensors
from sslm.data.stream.labelled_rows import LabelledRows, with_all_windows
from sslm.data.stream.recipe import Recipe
from sslm.data.stream.stream import Places, Stream
from sslm.data.stream.vocabulary import Vocabulary, unspaced_share
from sslm.data.targets import Counts, bytes_per_target, count_targets, nothing_in

COUNTED_AT_ONCE = 64
"""Sequences of a batch whose targets are counted."""


@dataclass(frozen=True)
class HeldOut:
    """Sequences to validate on."""

    stream: Stream
    recipe: Recipe
    seq_len: int
    seed: int
    vocabulary: Vocabulary | None
    tokenizer: Tokenizer | None
    """With the objective's special tokens, or None if the corpora are ids without one."""
    num_targets: int
    """How many different targets there can be: ids, or places in a sequence."""
    at_most: int
    """Sequences, of all sources together."""
    tables: Sequence[Rows] = ()
    """The table in which each source's rows stand, if they are labelled."""

    @cached_property
    def places(self) -> Places:
        """Places of the sequences: each source's share, evenly spread over it."""
        shares = np.ones(1)
        if len(self.stream.sources) > 1:
            stages = np.array([stage.weights for stage in self.stream.mixture.stages], float)
            shares = (stages / stages.sum(1, keepdims=True)).mean(0)
        task, parts = self.recipe.task(self.seq_len), []
        for i, (source, share) in enumerate(zip(self.stream.sources, shares, strict=True)):
            num = min(max(round(self.at_most * share), 1) if share else 0, source.num_windows)
            numbers = np.arange(num) * source.num_windows // max(num, 1)
            if task and task.has_windows:
                numbers = with_all_windows(source, numbers)
            parts.append(self.stream.places_of(i, numbers))
        return Places.joined(parts)

    @cached_property
    def labelled(self) -> LabelledRows | None:
        """The labelled rows, or None if it is text."""
        if not self.tables or self.vocabulary is None:
            return None
        return LabelledRows(self.stream, self.places, self.tables, self.recipe, self.vocabulary)

    def steps(self, batch_size: int, rank: int = 0, world: int = 1) -> ValSteps:
        """The batches of a rank."""
        setting = self.recipe, BatchSizes.even(batch_size), self.seed, rank, world, self.vocabulary
        return ValSteps(self.stream, *setting, places=self.places)

    def rows(self, num: int) -> dict[str, Tensor]:
        """The tensors of the first sequences, the same on all ranks."""
        tensors: dict[str, Tensor] = with_tensors(self.steps(num)[0])["tensors"]
        return tensors

    @cached_property
    def tokens(self) -> list[NDArray[np.int64]]:
        """The sequences, without padding."""
        tokens, *_, lengths, _ = self.stream.read(self.places).rows(slice(None))
        return list(tokens) if lengths is None else [row[:n] for row, n in zip(tokens, lengths, strict=True)]

    @cached_property
    def counts(self) -> Counts:
        """How often each id is a target; UserError if none is."""
        steps = self.steps(COUNTED_AT_ONCE)
        counts = count_targets((steps[step] for step in range(steps.num_steps)), self.num_targets)
        if not counts.any():
            raise nothing_in("held-out", self.recipe)
        return counts

    @cached_property
    def bytes_per_target(self) -> float | None:
        """Bytes of text that a target stands for, or None without a tokenizer."""
        return None if self.tokenizer is None else bytes_per_target(self.counts, self.tokenizer, self.stream.sources)

    @cached_property
    def unspaced_share(self) -> float:
        """Share of the letters of the first sequences whose scripts put no space between words."""
        rows = [row.tolist() for row in self.tokens[:COUNTED_AT_ONCE]]
        return 0.0 if self.tokenizer is None else unspaced_share("".join(self.tokenizer.batch_decode(rows)))
