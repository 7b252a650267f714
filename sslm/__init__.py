"""sslm: self-supervised pretraining of language models, from a folder of text to a Hugging Face checkpoint.

    python -m sslm.train                      # learns from English that every Python carries, in two minutes
    python -m sslm.train --data.train my.txt  # learns from yours

The public names below are loaded when first asked for: importing sslm starts nothing and imports nothing heavy.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "CausalLM": "sslm.objectives.causal_lm",
    "Corpus": "sslm.data.corpus.shards",
    "DataModule": "sslm.data.module",
    "Denoising": "sslm.objectives.denoising",
    "MaskedLM": "sslm.objectives.masked_lm",
    "Monitor": "sslm.training.callbacks.monitor",
    "SpanCorruption": "sslm.objectives.span_corruption",
    "TokenOrder": "sslm.objectives.token_order",
}
__all__ = [
    "CausalLM",
    "Corpus",
    "DataModule",
    "Denoising",
    "MaskedLM",
    "Monitor",
    "SpanCorruption",
    "TokenOrder",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'sslm' has no attribute {name!r}")
