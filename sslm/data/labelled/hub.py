"""Rows of Hugging Face datasets: saved folders, and names of the hub."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sslm.data.corpus.text_rows import is_saved_dataset
from sslm.system.errors import UserError, one_line

HELD_OUT = ("validation", "dev", "val", "validation_matched", "test")
"""Splits to validate on, the first that is there."""
ROWS_AT_ONCE = 1024


class Opened(NamedTuple):
    """A split of a dataset."""

    record: list[dict[str, Any]]
    fields: tuple[str, ...]
    read: Callable[[Iterable[str]], Iterator[tuple[str, dict[str, Any]]]]
    class_names: dict[str, list[str]]


def open_rows(given: str, is_held_out: bool) -> Opened:
    """Open a split of a dataset: the training split, or the first of those to validate on.

    Raises:
        UserError: there is no such dataset.
    """
    import datasets  # heavy, and only datasets need it

    datasets.disable_progress_bars()
    rows = _loaded(given, is_held_out)
    named = {name: classes for name, kind in rows.features.items() if (classes := _classes(kind)) is not None}

    def read(fields: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        number, wanted = 0, list(fields)
        for batch in rows.select_columns(wanted).with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
            for row in batch.to_pylist():
                values = {name: _named(value, named.get(name)) for name, value in row.items()}
                yield f"{given}, row {number}", values
                number += 1

    name, _, config = given.partition(":")
    record = [{"dataset": name, "config": config, "split": str(rows.split), "fingerprint": rows._fingerprint}]
    return Opened(record, tuple(rows.column_names), read, named)


def _loaded(given: str, is_held_out: bool) -> Any:
    import datasets

    name, _, config = given.partition(":")
    try:
        saved = is_saved_dataset(Path(given))
        found = datasets.load_from_disk(given) if saved else datasets.load_dataset(name, config or None)
    except Exception as error:  # whatever datasets, the hub or the network say, the cause is the name
        what = f"neither a file or folder here, nor a dataset that could be loaded ({one_line(error)})"
        raise UserError(f"{given}: {what}") from None
    if not isinstance(found, dict):
        return found
    wanted = (*HELD_OUT, "train") if is_held_out else ("train",)
    split = next((split for split in wanted if split in found), None)
    if split is None:
        raise UserError(f"{given}: no split {wanted[0]!r}; it has {', '.join(found)}")
    return found[split]


def _classes(kind: Any) -> list[str] | None:
    """Names of a column's classes, be it of classes or of lists of them."""
    import datasets

    inner = getattr(kind, "feature", kind[0] if isinstance(kind, list) and len(kind) == 1 else kind)
    return list(inner.names) if isinstance(inner, datasets.ClassLabel) else None


def _named(value: Any, names: list[str] | None) -> Any:
    if names is None:
        return value
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
