"""How many tokens of the corpus a second each objective makes a batch of, beside the collators of others.

    python benchmarks/objectives.py --out benchmarks/results/objectives.json
    python benchmarks/objectives.py --text FOLDER --rounds 1

README.md beside this file says what is measured and how. One process, one thread; the systems take turns, and medians
are reported.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from data import environment
from numpy.typing import NDArray
from text import documents
from tokenizers import processors
from transformers import DataCollatorForLanguageModeling

from sslm.data.corpus.tokenizer import Tokenizer
from sslm.data.corpus.tokenizer_training import train_bpe
from sslm.data.stream.recipe import Examples, Recipe
from sslm.data.stream.vocabulary import SpecialTokens, Vocabulary, extended, vocabulary_of
from sslm.objectives.causal_lm import CausalLMRecipe
from sslm.objectives.denoising import DenoisingRecipe
from sslm.objectives.masked_lm import MaskedLMRecipe
from sslm.objectives.span_corruption import SpanCorruptionRecipe
from sslm.objectives.token_order import TokenOrderRecipe

RECIPES: dict[str, Recipe] = {
    "causal_lm": CausalLMRecipe(),
    "masked_lm, token": MaskedLMRecipe(),
    "masked_lm, word": MaskedLMRecipe(unit="word"),
    "masked_lm, ngram": MaskedLMRecipe(unit="ngram"),
    "masked_lm, span": MaskedLMRecipe(unit="span"),
    "span_corruption": SpanCorruptionRecipe(),
    "denoising": DenoisingRecipe(),
    "denoising, infilling alone": DenoisingRecipe(permute_sentences=0),
    "token_order, encoder": TokenOrderRecipe(),
    "token_order, encoder_decoder": TokenOrderRecipe(layout="encoder_decoder"),
    "token_order, decoder": TokenOrderRecipe(layout="decoder"),
    "token_order, sentence": TokenOrderRecipe(unit="sentence"),
}
SEED = 0
TRAINING_CHARS = 1 << 23
"""The tokenizer is trained on so much of the text."""
VERSIONS = ("sslm", "numpy", "tokenizers", "torch", "transformers")

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class System(NamedTuple):
    """What is measured."""

    num_tokens: int
    """Tokens of the corpus in a batch."""
    make_batch: Callable[[int], Any]
    """Makes the batch of a round."""
    beside: str | None = None
    """Of a peer, the recipe that does what it does."""


class Corpus:
    """A text's tokens, cut into windows as they are asked for; the tokenizer has all that any recipe needs."""

    def __init__(self, texts: list[str], tokenizer: Tokenizer, vocabulary: Vocabulary, num_tokens: int) -> None:
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)  # spaces belong to no word
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for text in texts:
            if len(ids) >= num_tokens:
                break
            encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
            ids += [*encoding.ids, tokenizer.eos_token_id]
            offsets += [*encoding.offsets, (0, 0)]
        if len(ids) < num_tokens:
            raise SystemExit(f"the text has {len(ids)} tokens; {num_tokens} are needed: give more with --text")
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        self.ids, self.offsets = np.array(ids), np.array(offsets)

    def windows(self, num: int, window_len: int, stride: int) -> Ints:
        """[num, window_len] ids, each window's first `stride` places after the one's before."""
        windows: Ints = self.ids[np.arange(num)[:, None] * stride + np.arange(window_len)]
        return windows


def ours(recipe: Recipe, corpus: Corpus, num: int, seq_len: int) -> System:
    vocabulary, stride = corpus.vocabulary, recipe.stride(seq_len, corpus.vocabulary)
    tokens = corpus.windows(num, recipe.window_len(seq_len, vocabulary), stride)
    zeros = np.zeros(num, np.int64)

    def make_batch(number: int) -> Any:
        return recipe.make_batch(Examples(tokens, number * num + np.arange(num), zeros, zeros), vocabulary, SEED)

    return System(num * stride, make_batch)


def collator(corpus: Corpus, num: int, seq_len: int, kind: str, whole_words: bool) -> System:
    """Make Hugging Face's collator for masked language modelling.

    It gets what its documentation asks for: lists, and their special tokens' mask; and to tell words apart the offsets,
    which a byte-level tokenizer has to be told to trim.
    """
    masked, random = (1.0, 0.0) if whole_words else (0.8, 0.1)  # with whole words it allows no others
    collate = DataCollatorForLanguageModeling(
        corpus.tokenizer,
        whole_word_mask=whole_words,
        mask_replace_prob=masked,
        random_replace_prob=random,
        return_tensors=kind,
        seed=SEED,
    )
    ids = corpus.windows(num, seq_len, seq_len)
    rows = {"input_ids": ids.tolist(), "special_tokens_mask": corpus.vocabulary.special[ids].astype(int).tolist()}
    if whole_words:
        rows["offset_mapping"] = corpus.offsets[: ids.size].reshape(*ids.shape, 2).tolist()
    examples = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
    return System(ids.size, lambda _: collate(examples), f"masked_lm, {'word' if whole_words else 'token'}")


def t5(corpus: Corpus, num: int, seq_len: int, batched: bool) -> System:
    """T5's own way, in numpy: noise drawn row by row, sentinels put in row by row too, or in all rows at once."""
    recipe = SpanCorruptionRecipe()
    window_len = recipe.window_len(seq_len, corpus.vocabulary)
    tokens = corpus.windows(num, window_len, window_len)
    random = np.random.default_rng(SEED)

    def make_batch(_: int) -> Any:
        return t5_batch(tokens, corpus.vocabulary, recipe.ratio, recipe.mean_span, random, batched)

    return System(tokens.size, make_batch, "span_corruption")


# ------------------------------------------------------------------- T5's span corruption, written for this comparison


def t5_batch(
    tokens: Ints, vocabulary: Vocabulary, ratio: float, mean_span: float, random: np.random.Generator, batched: bool
) -> dict[str, Ints]:
    """Make inputs and labels of [n, length] ids by the steps of T5's published preprocessors.

    These are `random_spans_noise_mask`, `noise_span_to_unique_sentinel` and `nonnoise_span_to_unique_sentinel` (Raffel
    et al. 2020).
    """
    masks = [random_spans_noise_mask(tokens.shape[1], ratio, mean_span, random) for _ in tokens]
    if batched:
        return dict(zip(("input_ids", "labels"), _both(tokens, np.array(masks), vocabulary), strict=True))
    rows = [_both(row[None], mask[None], vocabulary) for row, mask in zip(tokens, masks, strict=True)]
    inputs, labels = zip(*rows, strict=True)
    return {"input_ids": np.concatenate(inputs), "labels": np.concatenate(labels)}


def random_spans_noise_mask(length: int, ratio: float, mean_span: float, random: np.random.Generator) -> Bools:
    """[length] which tokens are noise: spans of text and of noise take turns, text first."""
    num_noise = min(max(round(length * ratio), 1), length - 1)
    num_spans = max(round(num_noise / mean_span), 1)
    noise, text = (_segments(num_items, num_spans, random) for num_items in (num_noise, length - num_noise))
    starts = np.cumsum(np.stack([text, noise], axis=1).ravel())[:-1]
    begins = np.zeros(length, np.int64)
    begins[starts] = 1
    is_noise: Bools = np.cumsum(begins) % 2 == 1
    return is_noise


def _segments(num_items: int, num: int, random: np.random.Generator) -> Ints:
    """[num] lengths of non-empty segments."""
    begins = np.arange(num_items - 1) < num - 1
    random.shuffle(begins)
    return np.unique(np.cumsum(np.concatenate([[0], begins])), return_counts=True)[1]


def _both(tokens: Ints, noise: Bools, vocabulary: Vocabulary) -> tuple[Ints, Ints]:
    return _with_sentinels(tokens, noise, vocabulary), _with_sentinels(tokens, ~noise, vocabulary)


def _with_sentinels(tokens: Ints, gone: Bools, vocabulary: Vocabulary) -> Ints:
    """[n, any] each run of what is gone replaced by the next sentinel, and the end after it."""
    first = gone.copy()
    first[:, 1:] &= ~gone[:, :-1]
    tokens = np.where(
        first, vocabulary.sentinels[0] - 1 + np.cumsum(first, axis=1), tokens
    )  # their ids follow each other
    tokens = tokens[first | ~gone].reshape(len(tokens), -1)
    return np.concatenate([tokens, np.full((len(tokens), 1), vocabulary.end)], axis=1)


# ------------------------------------------------------------------------------------------------- measuring, printing


def set_up(corpus: Corpus, num: int, seq_len: int) -> dict[str, System]:
    """Name -> what is measured, each peer after the recipe that it is beside."""
    systems: dict[str, System] = {}
    for name, recipe in RECIPES.items():
        systems[name] = ours(recipe, corpus, num, seq_len)
        if name in ("masked_lm, token", "masked_lm, word"):
            what = "Hugging Face's collator" + (", whole words" if name.endswith("word") else "")
            for kind, library in (("np", "numpy"), ("pt", "torch")):
                systems[f"{what}, {library}"] = collator(corpus, num, seq_len, kind, name.endswith("word"))
        if name == "span_corruption":
            systems["T5's numpy loop"] = t5(corpus, num, seq_len, batched=False)
            systems["T5's numpy loop, sentinels for all rows at once"] = t5(corpus, num, seq_len, batched=True)
    return systems


def tokens_per_second(system: System, number: int, seconds: float) -> float:
    before, num = time.perf_counter(), 0
    while True:
        system.make_batch(number)
        num += 1
        if (took := time.perf_counter() - before) >= seconds:
            return num * system.num_tokens / took


def measured(systems: dict[str, System], rounds: int, seconds: float) -> dict[str, list[float]]:
    # glibc maps and unmaps every array of over 128 kB, and the kernel zeroes it each time, until a process has freed a
    # larger one: sslm's loader sees to that when it starts. Here it is done once, for all systems alike.
    np.ones(30_000_000, np.uint8)
    for system in systems.values():
        system.make_batch(0)
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(1, rounds + 1):
        for name, system in systems.items():
            rates[name].append(tokens_per_second(system, number, seconds))
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    return rates


def markdown(results: dict[str, Any]) -> str:
    lines = ["| | M tokens/s | sslm's is |", "| --- | --: | --: |"]
    systems = results["systems"]
    for name, system in systems.items():
        rate, beside = statistics.median(system["tokens_per_second"]), system["beside"]
        ratio = beside and f"{statistics.median(systems[beside]['tokens_per_second']) / rate:.3g} times"
        lines.append(f"| {name if beside else f'**{name}**'} | {shown(rate / 1e6)} | {ratio or ''} |")
    return "\n".join(lines)


def shown(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" if rate >= 1 else f"{rate:.2f}"


def lay_out(given: Path | None, vocab_size: int, num: int, seq_len: int) -> Corpus:
    texts: list[str] = []
    chars = 0
    for text in documents(given):
        texts.append(text)
        if (chars := chars + len(text)) > TRAINING_CHARS:
            break
    needs = [needs for recipe in RECIPES.values() if (needs := recipe.special_tokens(seq_len))]
    tokenizer = extended(
        train_bpe([(text, True) for text in texts], vocab_size), SpecialTokens(*map(max, zip(*needs, strict=True)))
    )
    vocabulary = vocabulary_of(tokenizer)
    return Corpus(texts, tokenizer, vocabulary, num * max(r.window_len(seq_len, vocabulary) for r in RECIPES.values()))


def run(options: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    print("training a tokenizer", file=sys.stderr, flush=True)
    num, seq_len = options.batch_size, options.seq_len
    corpus = lay_out(options.text, options.vocab_size, num, seq_len)
    systems = set_up(corpus, num, seq_len)
    rates = measured(systems, options.rounds, options.seconds)
    return {
        "command": " ".join(["python benchmarks/objectives.py", *sys.argv[1:]]),
        **environment(),
        "versions": {package: metadata.version(package) for package in VERSIONS},
        "text": options.text.name if options.text else "this Python's library and packages",
        "vocab_size": corpus.vocabulary.size,
        "batch_size": num,
        "seq_len": seq_len,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "systems": {
            name: {"beside": system.beside, "tokens_per_second": rates[name]} for name, system in systems.items()
        },
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/objectives.py", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--text",
        type=Path,
        help="file or folder of text (.jsonl: field text); default: this Python's "
        "library and the packages installed in it",
    )
    parser.add_argument(
        "--vocab_size", type=int, default=32_000, help="of the BPE trained on it (default: %(default)s)"
    )
    parser.add_argument("--batch_size", type=int, default=256, help="in sequences (default: %(default)s)")
    parser.add_argument("--seq_len", type=int, default=512, help="in tokens (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of every timing (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each timing (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    options = parser.parse_args(arguments)
    if options.text and not options.text.exists():
        parser.error(f"--text {options.text}: there is no such file or folder")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    results = run(options)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(markdown(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
