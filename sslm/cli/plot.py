"""A picture of runs beside each other, from their metrics.jsonl.

sslm plot RUN… --out FILE.png
"""

import argparse

from sslm.runs.comparison import AXES, View, draw_comparison, find_runs, metrics_of
from sslm.runs.folder import RunFolder
from sslm.system.errors import UserError, nearest, short
from sslm.system.exits import DONE, exits_politely
from sslm.system.paths import local_path
from sslm.system.terminal import say

FORMATS = (".png", ".svg", ".pdf")


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    options = flag_parser().parse_args(arguments)
    if options.out.suffix not in FORMATS:
        raise UserError(f"--out {options.out}: expected a file that ends in {', '.join(FORMATS)}")
    if not options.out.parent.is_dir():
        raise UserError(f"--out {options.out}: there is no folder {options.out.parent}")
    runs = find_runs(options.runs)
    metrics = list(dict.fromkeys(options.metric or ("train/loss", "val/loss")))
    _check(metrics, runs, told=options.metric is not None)
    draw_comparison(runs, View(metrics, options.over, options.smooth, options.log), options.out)
    say(f"{', '.join(str(run.path) for run in runs)} -> {options.out}")
    return DONE


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's flags."""
    parser = argparse.ArgumentParser(prog="sslm plot", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=local_path, help="run folders, or folders of runs")
    parser.add_argument("--out", required=True, type=local_path, help="picture to make or to replace: .png, .svg, .pdf")
    metric = "what to draw, by its name in metrics.jsonl; may be given several times; default: train/loss and val/loss"
    parser.add_argument("--metric", action="append", help=metric)
    hours = "hours count training alone, at the speed of each row"
    parser.add_argument("--over", choices=AXES, default="tokens", help=f"the axis (default: tokens); {hours}")
    smooth = "weight of the past in an exponential average of metrics of single steps; 0 (default) to below 1"
    parser.add_argument("--smooth", type=_weight, default=0.0, metavar="WEIGHT", help=smooth)
    parser.add_argument("--log", choices=("x", "y", "xy"), default="", help="which axes are logarithmic; default: none")
    return parser


def _weight(text: str) -> float:
    weight = float(text)
    if not 0 <= weight < 1:
        raise argparse.ArgumentTypeError(f"{short(text)}: expected 0 to below 1, such as 0.9")
    return weight


def _check(metrics: list[str], runs: list[RunFolder], told: bool) -> None:
    """Refuse what no run has; tell what some lack, if it was asked for.

    Raises:
        UserError: no run has a metric, or none has any.
    """
    had = {str(run.path): metrics_of(run.rows()) for run in runs}
    known = list(dict.fromkeys(name for names in had.values() for name in names))
    if not known:
        raise UserError(f"{', '.join(map(short, had))}: there are no rows yet; draw when the first steps are logged")
    for metric in metrics:
        lacking = [run for run, names in had.items() if metric not in names]
        if len(lacking) == len(runs) and told:
            raise UserError(
                f"--metric {short(metric)}: no row has it{nearest(metric, known)}; there are {_list(known)}"
            )
        if lacking and told:
            say(f"{', '.join(lacking)}: no {metric}")


def _list(names: list[str]) -> str:
    return ", ".join(short(name) for name in sorted(names))
