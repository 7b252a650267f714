"""Rows of a file that a fine-tuned model is asked about, read as its run has read its own."""

from collections.abc import Mapping
from typing import Any

from sslm.config import DataConfig
from sslm.data.stream.labelled_rows import LabelledRows
from sslm.data.stream.streams import open_to_predict
from sslm.objectives import load_objective
from sslm.objectives.closing import WRITES, labels_of
from sslm.objectives.predictions import WORDS
from sslm.runs.trained import Trained
from sslm.system.errors import UserError
from sslm.system.typed import typed

KEPT = ("special_tokens", "bos", "cache_dir")
"""Settings of a run's data beside the names of its fields that decide how rows are read."""
SEVERAL = "multi_label_classification"
USUAL_LEN = 512
"""Tokens of the longest row if nothing tells how long rows may be."""


def is_fine_tuned(trained: Trained) -> bool:
    """Whether a model was taught by labelled rows."""
    return trained.objective in (*WORDS, WRITES)


def open_asked(trained: Trained, path: str, fields: Mapping[str, Any]) -> LabelledRows:
    """Open the rows of a file.

    Args:
        trained: a fine-tuned model.
        path: the file, in the forms of --data.val; labels may be missing.
        fields: names of settings of a run's data (text_field …) -> their values; None if they are as the run had them.

    Raises:
        UserError: the model was not fine-tuned, or the rows can't be read.
    """
    if not is_fine_tuned(trained):
        what = f"{trained.name}: was trained for {trained.objective}"
        raise UserError(f"{what}; sslm predict is for {', '.join(WORDS)} and {WRITES}, sslm generate for other models")
    kind = load_objective(trained.objective).for_model_type(trained.model.config.model_type)
    known = {key: value for key, value in trained.settings.get("objective", {}).items() if key != "name"}
    if trained.model.config.problem_type == SEVERAL:
        known["multi_label"] = True
    recipe: Any = kind.make_recipe(typed(kind.recipe_class, "objective", known))
    data = _data_config(trained.settings.get("data", {}), fields)
    return open_to_predict(path, data, recipe, trained.seq_len or USUAL_LEN, trained.folder, labels_of(trained))


def _data_config(had: Mapping[str, Any], fields: Mapping[str, Any]) -> DataConfig:
    """Name the fields as the run did, but for those that are given."""
    names = {name: value or had.get(name) for name, value in fields.items()}
    kept = {name: had.get(name) for name in KEPT}
    return DataConfig(**{name: value for name, value in {**kept, **names}.items() if value is not None})
