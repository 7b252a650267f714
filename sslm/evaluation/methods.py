"""How each kind of model is measured: which rows it is given, and what is counted of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from sslm.data.corpus.tokenizer import TokenRules, beginning, end_of_document
from sslm.data.stream.recipe import IGNORED, Examples, Recipe
from sslm.data.stream.vocabulary import SpecialTokens, Vocabulary, extended, vocabulary_of
from sslm.models.head import LanguageModel
from sslm.models.lstm import LstmForCausalLM
from sslm.models.masks import num_positions
from sslm.models.scoring import (
    BITS_PER_BYTE,
    LOSS,
    WORD_LOSS,
    Collate,
    Frame,
    Pairs,
    Piece,
    Row,
    causal_rows,
    consecutive_rows,
    masked_rows,
    padded,
)
from sslm.models.standard_error import Estimate, Ratio
from sslm.objectives import load_objective
from sslm.runs.trained import Trained
from sslm.system.errors import UserError
from sslm.system.typed import typed

LONGEST_WINDOW = 4096
"""Default of the longest window of a model that is no run's: some take a hundred thousand positions."""
EXACT_SPANS = "span_exact_match"
Ratios = dict[str, Ratio]


@dataclass(frozen=True)
class Method:
    """How a model is measured."""

    convention: str
    """What exactly is measured, in a sentence."""
    rows: Callable[[Iterable[Piece]], Iterator[Row]]
    collate: Collate
    figures: Callable[[Ratios], dict[str, Estimate]]
    """What was counted -> name -> figure."""
    extra: Callable[[LanguageModel, dict[str, Tensor]], list[Pairs]] | None = None
    """What else is counted of each row."""


def _causal_figures(ratios: Ratios) -> dict[str, Estimate]:
    loss = ratios[LOSS].estimate()
    return {LOSS: loss, "perplexity": loss.exp(), BITS_PER_BYTE: ratios[BITS_PER_BYTE].estimate()}


def _masked_figures(ratios: Ratios) -> dict[str, Estimate]:
    loss, word_loss = ratios[LOSS].estimate(), ratios[WORD_LOSS].estimate()
    return {LOSS: loss, "pseudo_perplexity": loss.exp(), "pseudo_perplexity_within_word": word_loss.exp()}


def _objective_figures(ratios: Ratios) -> dict[str, Estimate]:
    return {name: ratios[name].estimate() for name in (LOSS, EXACT_SPANS) if name in ratios}


def window_len(trained: Trained, asked: int | None) -> int:
    """Most tokens of a window: what was asked for, or the run's, or the model's.

    Raises:
        UserError: more than the model takes.
    """
    most = num_positions(trained.model.config)
    if asked is not None and most is not None and asked > most:
        raise UserError(f"--seq_len {asked}: {trained.name} takes at most {most} tokens; give --seq_len {most}")
    length = asked or trained.seq_len or 512
    return length if asked or trained.settings else min(length, LONGEST_WINDOW)


def method_of(trained: Trained, rules: TokenRules, seq_len: int | None, stride: int | None) -> Method:
    """Choose how a model is measured.

    Raises:
        UserError: sequences are longer than the model takes, or too short.
    """
    length = window_len(trained, seq_len)
    if trained.objective == "causal_lm":
        return _causal(trained, rules, length, stride)
    if stride is not None:
        raise UserError(f"--stride {stride}: is for causal models, and {trained.name} is none; leave the flag out")
    return _masked(trained, length) if trained.objective == "masked_lm" else objective_method(trained, length)


def _causal(trained: Trained, rules: TokenRules, seq_len: int, stride: int | None) -> Method:
    stride = stride or max(seq_len // 2, 1)
    if stride > seq_len:
        raise UserError(f"--stride {stride}: is more than a window of {seq_len} tokens; give at most {seq_len}")
    tokenizer = trained.tokenizer
    before = beginning(tokenizer, rules)
    if not before and not trained.settings.get("data", {}).get("document_mask"):
        before = [end_of_document(tokenizer)]
    name = tokenizer.convert_ids_to_tokens(before[0]) if before else None
    begins = f"its first token after {name}" if name else "its first token not scored (nothing stood before it)"
    state = ", a state of zeros in each" if isinstance(trained.model, LstmForCausalLM) else ""
    convention = (
        f"each document by itself, {begins}, its end not scored; windows of {seq_len} tokens, of which each after the "
        f"first scores {stride}{state}"
    )
    rows = partial(causal_rows, before=before, seq_len=seq_len, stride=stride)
    return Method(convention, rows, partial(padded, sees_padding=False), _causal_figures)


def _masked(trained: Trained, seq_len: int) -> Method:
    if trained.tokenizer.mask_token_id is None:
        raise UserError(f"{trained.name}: its tokenizer has no mask token, so no token can be hidden from it")
    vocabulary = vocabulary_of(trained.tokenizer)
    around = len(vocabulary.prefix) + len(vocabulary.suffix)
    if seq_len <= around:
        raise UserError(f"--seq_len {seq_len}: leaves no room beside {around} special tokens; give --seq_len 128")
    assert vocabulary.mask is not None
    frame = Frame(vocabulary.prefix, vocabulary.suffix, vocabulary.mask, vocabulary.word_starts)
    convention = (
        f"each document by itself, in windows of {seq_len} tokens with the tokenizer's own around each; each token "
        f"hidden alone (Salazar et al. 2020), and with the later tokens of its word (Kauf and Ivanova 2023)"
    )
    rows = partial(masked_rows, frame=frame, seq_len=seq_len)
    return Method(convention, rows, partial(padded, sees_padding=True), _masked_figures)


def objective_method(trained: Trained, seq_len: int) -> Method:
    """The objective's own loss, with its own noise."""
    objective = load_objective(trained.objective).for_model_type(trained.model.config.model_type)
    settings = {name: value for name, value in trained.settings.get("objective", {}).items() if name != "name"}
    recipe = objective.make_recipe(typed(objective.recipe_class, "objective", settings))
    vocabulary = vocabulary_of(extended(trained.tokenizer, recipe.special_tokens(seq_len) or SpecialTokens()))
    if vocabulary.size > trained.model.config.vocab_size:
        needs = f"{trained.objective} of {seq_len} tokens needs more special tokens than {trained.name} has"
        raise UserError(f"--seq_len {seq_len}: {needs}; give a smaller --seq_len")
    window_len, seed = recipe.window_len(seq_len, vocabulary), int(trained.settings.get("seed", 0))
    are_spans = trained.objective == "span_corruption"
    convention = (
        f"each document by itself, in windows of {window_len} tokens; loss of {trained.objective} with the noise of "
        f"seed {seed}" + (", and spans written by greedy search that are exactly right" if are_spans else "")
    )
    collate = partial(corrupted, recipe=recipe, vocabulary=vocabulary, window_len=window_len, seed=seed)
    extra = partial(written_spans, vocabulary=vocabulary) if are_spans else None
    rows = partial(consecutive_rows, length=window_len)
    return Method(convention, rows, collate, _objective_figures, extra)


def corrupted(
    batch: list[Row], recipe: Recipe, vocabulary: Vocabulary, window_len: int, seed: int
) -> dict[str, Tensor]:
    """Make an objective's batch of windows; what is padding in all rows of an encoder-decoder is cut off."""
    tokens = np.zeros((len(batch), window_len), np.int64)
    for number, row in enumerate(batch):
        tokens[number, : len(row.ids)] = row.ids
    positions, lengths = (
        np.array(column) for column in zip(*((row.position, len(row.ids)) for row in batch), strict=True)
    )
    nothing = np.zeros(len(batch), np.int64)
    arrays = recipe.make_batch(Examples(tokens, positions, nothing, nothing, lengths), vocabulary, seed)
    if "attention_mask" in arrays and arrays["labels"].shape != arrays["input_ids"].shape:
        width, target_width = (
            _width(arrays[name] != none) for name, none in (("attention_mask", 0), ("labels", IGNORED))
        )
        arrays = {name: values[:, : target_width if name == "labels" else width] for name, values in arrays.items()}
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}


def _width(used: Any) -> int:
    columns = np.flatnonzero(used.any(axis=0))
    return int(columns[-1]) + 1 if len(columns) else 1


def written_spans(network: LanguageModel, tensors: dict[str, Tensor], vocabulary: Vocabulary) -> list[Pairs]:
    """Let the model write the spans, and count those that are exactly right."""
    labels, config = tensors["labels"], network.model.config
    how = GenerationConfig(
        max_new_tokens=labels.shape[1],
        do_sample=False,
        num_beams=1,
        eos_token_id=vocabulary.end,
        pad_token_id=vocabulary.pad,
        decoder_start_token_id=getattr(config, "decoder_start_token_id", None),
    )
    inputs = {name: tensor for name, tensor in tensors.items() if name in ("input_ids", "attention_mask")}
    written: Any = network.model.generate(**inputs, generation_config=how)  # type: ignore[operator]
    sentinels = set(vocabulary.sentinels.tolist())
    pairs: list[Pairs] = []
    for right, given in zip(labels.tolist(), written[:, 1:].tolist(), strict=True):
        wanted, found = (spans_in(ids, sentinels, vocabulary.end) for ids in (right, given))
        num_right = sum(found.get(sentinel) == span for sentinel, span in wanted.items())
        pairs.append({EXACT_SPANS: (num_right, len(wanted))})
    return pairs


def spans_in(ids: list[int], sentinels: set[int], end: int) -> dict[int, list[int]]:
    """Sentinel -> the ids after it, up to the next sentinel or the end; a sentinel counts once.

    >>> spans_in([99, 7, 8, 98, 5, 1, 0], {99, 98}, end=1)
    {99: [7, 8], 98: [5]}
    """
    spans: dict[int, list[int]] = {}
    span: list[int] = []
    for token in ids:
        if token in (end, IGNORED):
            break
        if token in sentinels:
            span = []
            spans.setdefault(token, span)
        else:
            span.append(token)
    return spans
