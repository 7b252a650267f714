"""sslm: self-supervised pretraining of language models, from a folder of text to a Hugging Face checkpoint.

    python -m sslm.train                      # learns from English that every Python carries, in two minutes
    python -m sslm.train --data.train my.txt  # learns from yours

Importing sslm imports nothing heavy: a public name is loaded when it is first asked for. `__init__.pyi` gives type
checkers the same names.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_MODULES = {
    "CausalLM": "sslm.objectives.causal_lm",
    "Corpus": "sslm.data.corpus.shards",
    "DataConfig": "sslm.config.data",
    "DataModule": "sslm.data.module",
    "Denoising": "sslm.objectives.denoising",
    "MaskedLM": "sslm.objectives.masked_lm",
    "Monitor": "sslm.training.callbacks.monitor",
    "SpanCorruption": "sslm.objectives.span_corruption",
    "TokenOrder": "sslm.objectives.token_order",
    "UserError": "sslm.system.errors",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'sslm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
