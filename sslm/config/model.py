"""Settings of the model, and of what it is trained to do."""

from dataclasses import dataclass, field
from typing import Any

from sslm.config.setting import Section, setting


@dataclass(frozen=True)
class ObjectiveConfig(Section):
    """What the model is trained to do."""

    prefix = "objective"

    name: str = "causal_lm"
    """Objective: causal_lm, masked_lm, span_corruption, denoising, token_order; of labelled data classification,
    regression, tagging, extraction, text_to_text."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The chosen objective's own settings (typed as --objective.KEY)."""


@dataclass(frozen=True)
class ModelConfig(Section):
    """The model: any architecture of transformers, built from its config or continued from a checkpoint."""

    prefix = "model"

    model_type: str | None = None
    """Architecture, by its name in transformers (llama, gpt2, qwen3 …); default: a small one for the objective."""
    pretrained: str | None = setting(None, is_path=True)
    """Trained weights to begin with: a folder, a name on the Hugging Face hub, or a run folder of sslm."""
    freeze: str | None = None
    """Parts whose weights stay as they are: embeddings, blocks:6 (the first six), or embeddings,blocks:6."""
    embedding_init: str | None = setting(None, is_path=True)
    """File of word vectors (text format of word2vec or GloVe, .gz too) to initialise the input embeddings with."""
    embedding_project: bool = False
    """Map word vectors of another dimension to the embedding's, by a random orthogonal matrix."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Any key of that architecture's config (typed as --model.KEY)."""
