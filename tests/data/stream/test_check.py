"""Recipes are tried before they train: ours pass, and one that forgets padding or documents is named."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from sslm.data.corpus.tokenizer_training import train_bpe
from sslm.data.stream.check import check_recipe
from sslm.data.stream.recipe import Arrays, Examples, Recipe
from sslm.data.stream.vocabulary import Vocabulary, extended, vocabulary_of
from sslm.objectives.causal_lm import CausalLMRecipe
from sslm.objectives.denoising import DenoisingRecipe
from sslm.objectives.masked_lm import MaskedLMRecipe
from sslm.objectives.span_corruption import SpanCorruptionRecipe
from sslm.objectives.token_order import LAYOUTS, TokenOrderRecipe
from sslm.system.errors import UserError

RECIPES: list[Recipe] = [
    CausalLMRecipe(),
    SpanCorruptionRecipe(),
    DenoisingRecipe(),
    DenoisingRecipe(token_mask=0.2, token_delete=0.2, rotate=1.0),
    *[MaskedLMRecipe(unit=unit) for unit in ("token", "word", "ngram", "span")],  # type: ignore[arg-type]
    *[TokenOrderRecipe(layout=layout, mark=mark) for layout in LAYOUTS for mark in (False, True)],  # type: ignore[arg-type]
    *[TokenOrderRecipe(layout=layout, unit="sentence") for layout in LAYOUTS],  # type: ignore[arg-type]
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_our_recipes_score_neither_padding_nor_other_documents(recipe: Recipe, text: Path) -> None:
    tokenizer = train_bpe([(text.read_text()[:20_000], True)], 400)
    for seq_len, padded, documents in itertools.product((16, 128), (False, True), (False, True)):
        needs = recipe.special_tokens(seq_len)
        tables = None if needs is None else vocabulary_of(extended(tokenizer, needs))
        if recipe.keeps_documents or not documents:
            check_recipe(recipe, seq_len, tables, 400, padded=padded, documents=documents)


class Forgetful(Recipe):
    """Looks neither where a row ends nor where a document does."""

    keeps_documents = True

    def window_len(self, seq_len: int, vocabulary: Vocabulary | None) -> int:
        return seq_len + 1

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        batch = {"input_ids": examples.tokens[:, :-1], "labels": examples.tokens[:, 1:]}
        return batch if examples.documents is None else {**batch, "segment_ids": examples.documents[:, :-1]}


class WithoutSegments(Forgetful):
    """Tells nobody which documents there are."""

    def make_batch(self, examples: Examples, vocabulary: Vocabulary | None, seed: int) -> Arrays:
        return super().make_batch(examples._replace(documents=None), vocabulary, seed)


@pytest.mark.parametrize(
    ("recipe", "how", "said"),
    [
        (Forgetful(), {"padded": True, "documents": False}, "scores what stands past a row's end"),
        (Forgetful(), {"padded": False, "documents": True}, "a token of one document is to predict another's"),
        (WithoutSegments(), {"padded": False, "documents": True}, "needs segment_ids"),
    ],
)
def test_a_recipe_that_forgets_is_named(recipe: Recipe, how: Any, said: str) -> None:
    check_recipe(recipe, 16, None, 100, padded=False, documents=False)
    with pytest.raises(UserError, match=f"{type(recipe).__name__}: .*{said}"):
        check_recipe(recipe, 16, None, 100, **how)
