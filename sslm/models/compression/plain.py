"""A model of a Hugging Face folder, by transformers alone."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sslm.models.architecture import class_named, read_config


def load(folder: Path, **keys: Any) -> PreTrainedModel:
    """Load a folder's model in evaluation mode, in the dtype of its weights."""
    kind: Any = class_named((read_config(str(folder), "").architectures or ["no architecture"])[0])
    model: PreTrainedModel = kind.from_pretrained(folder, dtype="auto", trust_remote_code=False, **keys)
    model.eval()
    return model
