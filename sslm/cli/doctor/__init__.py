"""Look whether this machine can train: packages, GPUs, limits, disks, network, and real steps of each strategy.

    sslm doctor [--quick] [--strategies single,ddp] [--json] [--offline] [--run_dir runs]
    torchrun --nnodes 2 … -m sslm doctor --nodes [--json]     # or srun sslm doctor --nodes: the ranks of a job

The exit code is 1 if something would hurt a run, and 0 if nothing would.
"""

import argparse
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

from sslm.cli.doctor import disk, environment, network, versions
from sslm.cli.doctor.finding import Check, Finding, findings_of
from sslm.config import DataConfig
from sslm.system.errors import without_secrets
from sslm.system.exits import DONE, FAILED, exits_politely, leave
from sslm.system.paths import local_path
from sslm.system.signals import stops_on_signals
from sslm.system.terminal import Progress, keep_libraries_quiet, plural, print_table, say

MARKS = {"good": "good", "note": "note", "bad": "BAD"}


@exits_politely
@stops_on_signals
def main(arguments: list[str] | None = None) -> int:
    options, environ = flag_parser().parse_args(arguments), dict(os.environ)  # before libraries add to it
    if options.nodes:
        return ranks_of_this_job(options.json)
    findings = [finding for check in packages_first(environ) for finding in findings_of(check)]
    if any(finding.name == "torch" and finding.level == "good" for finding in findings):
        findings += machine(options, environ)
    return tell(findings, options.json)


def ranks_of_this_job(in_json: bool) -> int:
    """Look at the ranks beside each other; all take part, and rank 0 tells."""
    from sslm.cli.doctor import nodes  # brings torch

    keep_libraries_quiet()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, which renames collectives
    findings = list(nodes.look())
    leave(tell(findings, in_json) if findings else DONE)  # at once: what hangs would keep the process


def tell(findings: list[Finding], in_json: bool) -> int:
    """Print what was found; return the exit code."""
    if in_json:
        print(as_json(findings))
    else:
        show(findings)
    return FAILED if any(finding.level == "bad" for finding in findings) else DONE


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's flags."""
    parser = argparse.ArgumentParser(prog="sslm doctor", description=__doc__.split("\n")[0], allow_abbrev=False)
    nodes = "look at the ranks of a job beside each other, under srun or torchrun: who is missing, slow or cut off"
    parser.add_argument("--nodes", action="store_true", help=nodes)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--offline", action="store_true", help="ask no server, as with HF_HUB_OFFLINE=1")
    parser.add_argument("--quick", action="store_true", help="leave the steps of the strategies out")
    names = "train three steps under each of these; default: single, ddp, fsdp, and deepspeed_2 if it is installed"
    parser.add_argument("--strategies", metavar="NAMES", help=names)
    runs = "where runs are to be; default: runs"
    parser.add_argument("--run_dir", metavar="DIR", type=local_path, default=Path("runs"), help=runs)
    cache = "where prepared corpora are to be; default: as train's --data.cache_dir"
    parser.add_argument("--cache_dir", metavar="DIR", type=local_path, help=cache)
    return parser


def packages_first(environ: Mapping[str, str]) -> Iterator[Check]:
    """Yield what can be looked at where torch is broken."""
    yield Check("environment", partial(environment.look, environ), seconds=10)
    yield Check("versions", versions.look, seconds=120)


def machine(options: argparse.Namespace, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Look at the rest, by torch."""
    from sslm.cli.doctor import strategies

    keep_libraries_quiet()
    names = strategies.parsed(options.strategies)
    for check in checks(options, environ):
        yield from findings_of(check)
    if not options.quick:
        yield from steps(names, environ, is_told=not options.json)


def checks(options: argparse.Namespace, environ: Mapping[str, str]) -> Iterator[Check]:
    """Yield what is looked at of the machine, in the order of the table."""
    from sslm.cli.doctor import gpus, host  # these bring torch: --help and wrong flags must not wait for it
    from sslm.data.stream.streams import cache_folder

    yield Check("GPUs", gpus.look, seconds=120)
    yield Check("host", host.look, seconds=60)
    cache = options.cache_dir or cache_folder(DataConfig())
    for name, folder, flag in (("run folder", options.run_dir, "--run_dir"), ("cache", cache, "--data.cache_dir")):
        yield Check(f"{name}'s disk", partial(disk.look, folder, name, flag), seconds=60)
    if options.offline or network.is_offline(environ):
        yield Check("servers", network.none_asked, seconds=1)
        return
    yield Check("hub", partial(network.hub, environ), network.SECONDS, if_late="note")
    yield Check("W&B", partial(network.wandb, environ), network.SECONDS, if_late="note")


def steps(names: list[str], environ: Mapping[str, str], is_told: bool) -> Iterator[Finding]:
    """Train some steps under each strategy, one after another; nothing of them stays."""
    from sslm.cli.doctor import strategies

    if (refused := strategies.not_here()) is not None:
        yield refused
        return
    bars = closing(Progress()) if is_told else nullcontext()
    with tempfile.TemporaryDirectory(prefix="sslm-doctor-", ignore_cleanup_errors=True) as folder, bars as bar:
        for trial in strategies.trials(names):
            if bar is not None:
                bar.show(f"Trying {trial.name}")
            yield strategies.tried(trial, Path(folder), environ)


def as_json(findings: list[Finding]) -> str:
    """Write findings as one JSON object: `hurts` (whether one is bad) and the list."""
    rows = [{key: without_secrets(text) for key, text in asdict(finding).items()} for finding in findings]
    return json.dumps({"hurts": any(finding.level == "bad" for finding in findings), "findings": rows}, indent=1)


def show(findings: list[Finding]) -> None:
    """Print a table, and after it what to do about each finding that isn't good."""
    cells = [[MARKS[finding.level], finding.name, without_secrets(finding.found)] for finding in findings]
    print_table(["", "looked at", "found"], cells, right=(), wide=(2,))
    for finding in findings:
        if finding.hurts or finding.to_type:
            say()
            say(f"{MARKS[finding.level]}: {finding.name}: {finding.found}")
            say(f"  hurts: {finding.hurts}")
            if finding.to_type:
                say(f"  do:    {finding.to_type}", to_copy=True)
    say()
    bad = sum(finding.level == "bad" for finding in findings)
    say(f"{plural(bad, 'thing')} would hurt a run" if bad else "nothing found that would hurt a run")
