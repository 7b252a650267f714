"""A dashboard of W&B for pretraining, as code: the panels that people look at, over tokens. Needs wandb-workspaces."""

from typing import Any

from sslm.runs.trackers.tracker import Row, parts_of

SECTIONS = {
    "Loss": ("train/loss", "val/loss", "val/perplexity", "val/bits_per_byte", "val/accuracy"),
    "Optimisation": ("lr", "grad_norm"),
    "Speed": ("tokens_per_second", "mfu", "data_wait"),
    "Memory": ("gpu_memory_gib", "host_memory_gib"),
}
"""Title of a section -> what it shows if the run has it."""
PREFIXES = {"Sources": ("train/loss/", "epochs/", "tokens/"), "Evaluations": ("eval/",), "Scores": ("val/",)}
"""Title of a section -> how the names of what it shows begin, but for what another section has."""


def sections_of(rows: list[Row]) -> dict[str, list[str]]:
    """Choose what a dashboard shows of a run: title of a section -> names of metrics, in the order of SECTIONS.

    >>> sections_of([{"step": 1, "tokens": 64, "lr": 0.1, "train/loss": 2.0, "eval/wiki/loss": 3.0}])
    {'Loss': ['train/loss'], 'Optimisation': ['lr'], 'Evaluations': ['eval/wiki/loss']}
    """
    there = list(dict.fromkeys(key for row in rows for key in parts_of(row).numbers))
    found = {title: [name for name in names if name in there] for title, names in SECTIONS.items()}
    for title, prefixes in PREFIXES.items():
        taken = {name for names in found.values() for name in names}
        found[title] = [name for name in there if name.startswith(prefixes) and name not in taken]
    return {title: names for title, names in found.items() if names}


def build_workspace(rows: list[Row], entity: str, project: str) -> Any:
    """Make the dashboard of a run's metrics, which `save()` sends to W&B."""
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports.v2.interface import LinePlot

    sections = [
        workspaces.Section(
            name=title, is_open=True, panels=[LinePlot(title=name, x="tokens", y=[name]) for name in names]
        )
        for title, names in sections_of(rows).items()
    ]
    return workspaces.Workspace(name="Pretraining (sslm)", entity=entity, project=project, sections=sections)
