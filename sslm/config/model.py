"""Settings of the model, and of what it is trained to do."""

from dataclasses import dataclass, field
from typing import Any

from sslm.config.setting import BELOW_ONE, POSITIVE, Section, setting


@dataclass(frozen=True)
class ObjectiveConfig(Section):
    """What the model is trained to do."""

    prefix = "objective"

    name: str = "causal_lm"
    """Objective: causal_lm, masked_lm, span_corruption, denoising, token_order; of labelled data classification,
    regression, tagging, extraction, text_to_text; or your own, package.module:Class."""
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


@dataclass(frozen=True)
class LoraConfig(Section):
    """Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685): pretrained weights stay, small matrices learn."""

    prefix = "lora"

    rank: int | None = setting(None, POSITIVE)
    """Rank of an adapter beside each linear layer of the blocks (8), which is trained instead of the layer, with
    --model.pretrained; null: none, all weights are trained."""
    alpha: float | None = setting(None, POSITIVE)
    """An adapter's output is scaled by alpha / rank; default: twice the rank."""
    dropout: float = setting(0.0, BELOW_ONE)
    """Dropout of the adapters' inputs."""
    targets: str | None = None
    """Names of the layers that have one (q_proj,v_proj); default: all linear layers of the blocks."""
