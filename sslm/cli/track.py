"""A run's rows, given to trackers from its metrics.jsonl; what they have is not given again.

sslm track RUN --to wandb,mlflow
sslm track RUN --workspace ENTITY/PROJECT
"""

import argparse
from importlib.util import find_spec

from sslm.runs.checkpoints.folder import newest_first, number_of
from sslm.runs.folder import RunFolder, settings_in
from sslm.runs.trackers import TAKE_MODELS, TRACKERS, Trackers, check_model_trackers, check_trackers, parse_trackers
from sslm.runs.trackers.tracker import Row
from sslm.runs.trackers.workspace import build_workspace
from sslm.system.errors import RunFailed, UserError, one_line, short
from sslm.system.exits import DONE, FAILED, exits_politely
from sslm.system.paths import local_path
from sslm.system.terminal import plural, say

SECONDS_TO_SEND = 3600.0
"""How long a tracker may take for all rows of a run, and its model."""


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    options = flag_parser().parse_args(arguments)
    names = parse_trackers(options.to, "--to")
    check_trackers(names, "--to")
    if not names and options.workspace is None:
        raise UserError("sslm track: give --to TRACKERS, --workspace ENTITY/PROJECT, or both")
    if options.workspace is not None:
        check_workspace(options.workspace)
    if options.model:
        check_model_trackers(names, "--model")
    run = RunFolder(options.run)
    if not run.metrics.is_file() or not run.config.is_file():
        raise UserError(f"{run.path}: not a run folder: it needs metrics.jsonl and config.yaml")
    if options.model and not (run.export / "config.json").is_file():
        raise UserError(f"--model: {run.path} has no export; make it with sslm export {run.path}")
    settings = settings_in(str(run.path), run.config.read_bytes())
    with run.locked():
        rows = rows_that_hold(run)
        trackers = Trackers(names, run, settings, SECONDS_TO_SEND)
        trackers.begin(rows)
        if options.model:
            trackers.send_model(run.export)
        trackers.close()
    for feed in trackers.feeds:
        if not feed.failed:
            model = " and its model" if options.model and feed.name in TAKE_MODELS else ""
            say(f"{feed.name}: has the {plural(len(rows), 'row')} of {run.path}{model}")
    if options.workspace is not None:
        send_workspace(rows, options.workspace)
    return FAILED if any(feed.failed for feed in trackers.feeds) else DONE


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's flags."""
    parser = argparse.ArgumentParser(prog="sslm track", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", type=local_path, help="run folder of a run that is done or has stopped")
    to = f"trackers, separated by commas: {', '.join(TRACKERS)}"
    parser.add_argument("--to", default="", metavar="TRACKERS", help=to)
    model = f"send the exported model, too, to {' or '.join(TAKE_MODELS)}"
    parser.add_argument("--model", action="store_true", help=model)
    workspace = "make a dashboard of a run's metrics in this project of W&B (pip install wandb-workspaces)"
    parser.add_argument("--workspace", metavar="ENTITY/PROJECT", help=workspace)
    return parser


def check_workspace(place: str) -> None:
    """Refuse what names no project, or a package that is missing."""
    if len(list(filter(None, place.split("/")))) != 2:
        raise UserError(f"--workspace {short(place)}: expected ENTITY/PROJECT, such as me/sslm")
    if find_spec("wandb_workspaces") is None:
        raise UserError("--workspace: wandb-workspaces is not installed; pip install wandb-workspaces")


def send_workspace(rows: list[Row], place: str) -> None:
    """Make the dashboard at W&B.

    Raises:
        RunFailed: W&B does not take it.
    """
    entity, project = place.split("/")
    try:
        made = build_workspace(rows, entity, project).save()
    except Exception as error:  # of the library, of the network, or of W&B's server
        raise RunFailed(f"--workspace {short(place)}: {one_line(error) or type(error).__name__}") from error
    say(f"Dashboard: {made.url}", to_copy=True)


def rows_that_hold(run: RunFolder) -> list[Row]:
    """Return the rows that do not come again if the run goes on: those up to its newest checkpoint, or all."""
    newest = next((number_of(checkpoint) for checkpoint in newest_first(run.checkpoints)), None)
    return [row for row in run.rows() if newest is None or row["step"] <= newest]
