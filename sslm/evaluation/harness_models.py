"""Models as lm-evaluation-harness asks them. Causal and encoder-decoder models go through its own class, HFLM.

Masked models, which it has no class for, answer through `MaskedModel`: a continuation's score is the sum of its tokens'
log-probabilities, each hidden alone beside the whole text (Salazar et al. 2020, arXiv:1910.14659),
given its context.
"""

from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from lm_eval.api.model import LM

from sslm.data.corpus.tokenizer import TokenRules, text_encoder
from sslm.data.stream.recipe import IGNORED
from sslm.data.stream.vocabulary import vocabulary_of
from sslm.evaluation.methods import window_len
from sslm.models.head import LanguageModel
from sslm.models.scoring import LOSS, Frame, Ints, Row, in_batches, masked_rows, padded, scored
from sslm.runs.trained import Trained
from sslm.system.errors import UserError


def harness_model(
    trained: Trained, network: LanguageModel, seq_len: int | None, batch_size: int | None, batch_tokens: int
) -> Any:
    """Make what the harness asks of a trained model.

    Args:
        trained: the model, on its device.
        network: the same with its loss.
        seq_len: most tokens of a text, or None for the model's; HFLM knows these by itself.
        batch_size: sequences per forward pass, or None for what comes to `batch_tokens`.
        batch_tokens: tokens per forward pass.
    """
    if trained.auto_class == "AutoModelForMaskedLM":
        return MaskedModel(trained, network, window_len(trained, seq_len), batch_size, batch_tokens)
    size = batch_size or max(batch_tokens // window_len(trained, seq_len), 1)
    backend = "seq2seq" if trained.auto_class == "AutoModelForSeq2SeqLM" else "causal"
    kind = import_module("lm_eval.models.huggingface").HFLM
    return kind(
        pretrained=trained.model, tokenizer=trained.tokenizer, batch_size=size, max_length=seq_len, backend=backend
    )


class Part:
    """A whole text, as `masked_rows` takes it."""

    def __init__(self, document: int, ids: Ints) -> None:
        self.document, self.ids, self.num_bytes, self.is_end = document, ids, 0.0, True


class MaskedModel(LM):  # type: ignore[misc]
    """A masked model that scores continuations and texts. It writes none."""

    def __init__(
        self, trained: Trained, network: LanguageModel, seq_len: int, batch_size: int | None, batch_tokens: int
    ) -> None:
        super().__init__()
        self.trained, self.network, self.seq_len = trained, network, seq_len
        self.batch_size, self.batch_tokens = batch_size, batch_tokens
        self.ids_of = text_encoder(trained.tokenizer, TokenRules())
        vocabulary = vocabulary_of(trained.tokenizer)
        if vocabulary.mask is None:
            raise UserError(f"{trained.name}: its tokenizer has no mask token, so no token can be hidden from it")
        self.frame = Frame(vocabulary.prefix, vocabulary.suffix, vocabulary.mask, vocabulary.word_starts)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Score each request's continuation given its context: nats, and whether each token is the likeliest."""
        pairs = [request.args for request in requests]
        rows = (row for number, pair in enumerate(pairs) for row in self._continuation(number, *pair))
        sums, right = self._sums(rows, len(pairs), predict=True)
        return list(zip(sums, right, strict=True))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Score whole texts, through windows if they are long."""
        parts = [Part(number, self._ids(request.args[0])) for number, request in enumerate(requests)]
        rows = (row for row in masked_rows(parts, self.frame, self.seq_len) if LOSS in row.counts_for)
        return self._sums(rows, len(parts), predict=False)[0]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        raise UserError(f"{self.trained.name}: a masked model writes no text; leave out tasks that generate")

    def _ids(self, text: str) -> Ints:
        [ids] = self.ids_of([text])
        return np.array(ids, np.int64)

    def _continuation(self, number: int, context: str, continuation: str) -> Iterator[Row]:
        """Hide each token of a continuation by itself; what doesn't fit is cut off the context's beginning."""
        spaces = len(context) - len(context.rstrip())
        before = self._ids(context[: len(context) - spaces])
        whole = self._ids(context + continuation)
        room = self.seq_len - len(self.frame.before) - len(self.frame.after)
        first = len(before) - max(len(whole) - room, 0)
        ids = np.concatenate([self.frame.before, whole[-room:], self.frame.after])
        for at in range(len(self.frame.before) + max(first, 0), len(ids) - len(self.frame.after)):
            hidden, labels = ids.copy(), np.full_like(ids, IGNORED)
            hidden[at], labels[at] = self.frame.mask, ids[at]
            yield Row(number, hidden, labels)

    def _sums(self, rows: Iterator[Row], num: int, predict: bool) -> tuple[list[float], list[bool]]:
        sums, right = [0.0] * num, [True] * num
        device = self.trained.model.device
        batches = in_batches(rows, self.batch_size, self.batch_tokens)
        collate = partial(padded, sees_padding=True)
        for batch in scored(self.network, batches, collate, device, predict):
            for row, pairs in zip(batch.rows, batch.pairs, strict=True):
                sums[row.document] -= pairs[LOSS][0]
            if predict:
                is_right = (batch.predicted == batch.tensors["labels"]).all(1).tolist()
                for row, answer in zip(batch.rows, is_right, strict=True):
                    right[row.document] &= answer
        return sums, right
