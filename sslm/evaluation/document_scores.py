"""What models think of documents, as steps of a clean: a classifier's opinion, and perplexity.

A small model that was fine-tuned on documents told good or bad by people or by a larger model (Penedo et al. 2024,
FineWeb-Edu, arXiv:2406.17557), and the perplexity under a model of clean text (Wenzek et al. 2019, CCNet,
arXiv:1911.00359), of which documents with much are noise.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from sslm.data.cleaning.document import Document
from sslm.data.cleaning.tally import Tally
from sslm.data.corpus.tokenizer import text_encoder
from sslm.data.token_documents import TokenPiece
from sslm.evaluation.measuring import BATCH_TOKENS
from sslm.evaluation.methods import Method, method_of
from sslm.evaluation.texts import rules_of
from sslm.models.head import LanguageModel
from sslm.models.scoring import LOSS, in_batches, scored
from sslm.models.weights import in_fp32, sha256_of_weights
from sslm.runs.trained import Trained, open_language_model, open_trained
from sslm.system.errors import UserError, nearest

TEXTS_AT_ONCE = 16
USUAL_LEN = 512
MOST_CHARS = 20_000
"""Characters of a document that a model reads: its beginning tells what it is."""
WORST = 1e9
"""Perplexity that stands for what can't be told apart from it, and for documents with nothing to predict."""


@dataclass(frozen=True)
class Perplexity:
    """Drops documents whose perplexity under a model is out of bounds, and counts it by powers of two."""

    model: str
    least: float | None = None
    most: float | None = None
    threads: int | None = None
    """Of torch in each process; None for its default."""
    weights: str = ""
    """Checksum of the model's weights (`opened`)."""

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        scorer = _scorer(self.model, self.threads)
        kept = []
        for document, value in zip(documents, scorer.perplexities([one.text for one in documents]), strict=True):
            tally.count("perplexity", f"{int(math.log2(max(value, 1.0))):02d}")
            if self.most is not None and value > self.most:
                tally.drop("perplexity: too high", document, f"{value:.4g}, and {self.most:g} is allowed")
            elif self.least is not None and value < self.least:
                tally.drop("perplexity: too low", document, f"{value:.4g}, and {self.least:g} is needed")
            else:
                kept.append(document)
        return kept

    def written(self) -> dict[str, Any]:
        return {"step": "perplexity", **asdict(self), "threads": None}


@dataclass(frozen=True)
class Quality:
    """Drops documents to which a fine-tuned classifier, or a model of numbers, gives too little."""

    model: str
    least: float
    label: str | None = None
    """The class whose probability counts; None for a model of numbers."""
    threads: int | None = None
    weights: str = ""

    def __call__(self, documents: list[Document], tally: Tally) -> list[Document]:
        classifier = _classifier(self.model, self.label, self.threads)
        kept = []
        for document, value in zip(documents, classifier.values([one.text for one in documents]), strict=True):
            tally.count("quality", f"{value:.1f}")
            if not value >= self.least:  # what is no number isn't good
                tally.drop("quality: too low", document, f"{value:.4g}, and {self.least:g} is needed")
            else:
                kept.append(document)
        return kept

    def written(self) -> dict[str, Any]:
        return {"step": "quality", **asdict(self), "threads": None}


Step = TypeVar("Step", Perplexity, Quality)


class _Scorer(NamedTuple):
    trained: Trained
    network: LanguageModel
    method: Method

    def perplexities(self, texts: Sequence[str]) -> list[float]:
        encode = text_encoder(self.trained.tokenizer, rules_of(self.trained))
        ids = encode([text[:MOST_CHARS] for text in texts])
        pieces = (TokenPiece(n, np.array(row, np.int64), 0.0, True) for n, row in enumerate(ids) if len(row))
        sums = np.zeros((len(texts), 2))
        device = self.trained.model.device
        batches = in_batches(self.method.rows(pieces), None, BATCH_TOKENS[device.type])
        for batch in scored(self.network, batches, self.method.collate, device):
            for row, pairs in zip(batch.rows, batch.pairs, strict=True):
                sums[row.document] += pairs.get(LOSS, (0.0, 0.0))
        return [_perplexity(nats, num) for nats, num in sums.tolist()]


def _perplexity(nats: float, num: float) -> float:
    """Perplexity of so many predictions' summed loss; WORST if none was made, or the loss is no number."""
    is_told = num and not math.isnan(nats)
    return math.exp(min(nats / num, math.log(WORST))) if is_told else WORST


class _Classifier(NamedTuple):
    trained: Trained
    label: int | None

    def values(self, texts: Sequence[str]) -> list[float]:
        model: Any = self.trained.model
        found: list[float] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            some = [text[:MOST_CHARS] for text in texts[start : start + TEXTS_AT_ONCE]]
            length = self.trained.seq_len or USUAL_LEN
            inputs: Any = self.trained.tokenizer(
                some, truncation=True, max_length=length, padding=True, return_tensors="pt"
            )
            with torch.no_grad():
                logits = model(**inputs.to(model.device)).logits.float()
            found += (logits[:, 0] if self.label is None else logits.softmax(-1)[:, self.label]).tolist()
        return found


def opened(step: Step) -> Step:
    """Open the step's model, and note its weights' checksum: another model under the same name makes another clean.

    Raises:
        UserError: the model can't be what the step needs.
    """
    if isinstance(step, Perplexity):
        trained = _scorer(step.model, None).trained
    else:
        trained = _classifier(step.model, step.label, None).trained
    return replace(step, weights=sha256_of_weights(trained.model))


def _device(threads: int | None) -> torch.device:
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def _scorer(path: str, threads: int | None) -> _Scorer:
    device = _device(threads)
    trained = open_language_model(path)
    max_scored = None if trained.model.config.is_encoder_decoder else 1
    network = LanguageModel(in_fp32(trained.model), max_scored).eval().to(device)
    return _Scorer(trained, network, method_of(trained, rules_of(trained), None, None))


@functools.cache
def _classifier(path: str, label: str | None, threads: int | None) -> _Classifier:
    device = _device(threads)
    trained = open_trained(path, prefers_export=True)
    flag = f"--quality_model {path}"
    if trained.objective not in ("classification", "regression"):
        raise UserError(f"{flag}: was trained for {trained.objective}; give a fine-tuned classifier, or a regression")
    in_fp32(trained.model).eval().to(device)
    if trained.objective == "regression":
        if label is not None:
            raise UserError(f"--quality_label {label}: {path} gives numbers, not labels; leave the flag out")
        return _Classifier(trained, None)
    config: Any = trained.model.config
    names = {str(name): int(number) for number, name in config.id2label.items()}
    if label not in names:
        what = "which of its labels is the good one is missing" if label is None else "it has no such label"
        close = "" if label is None else nearest(label, names)
        raise UserError(f"--quality_label {label or ''}: {what}{close}; it has {', '.join(names)}".replace(" :", ":"))
    return _Classifier(trained, names[label])
