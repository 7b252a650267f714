"""The public names, as type checkers see them."""

from sslm.config.data import DataConfig
from sslm.data.corpus.shards import Corpus
from sslm.data.module import DataModule
from sslm.objectives.causal_lm import CausalLM
from sslm.objectives.denoising import Denoising
from sslm.objectives.masked_lm import MaskedLM
from sslm.objectives.span_corruption import SpanCorruption
from sslm.objectives.token_order import TokenOrder
from sslm.system.errors import UserError
from sslm.training.callbacks.monitor import Monitor

__version__: str
__all__ = [
    "CausalLM",
    "Corpus",
    "DataConfig",
    "DataModule",
    "Denoising",
    "MaskedLM",
    "Monitor",
    "SpanCorruption",
    "TokenOrder",
    "UserError",
    "__version__",
]
