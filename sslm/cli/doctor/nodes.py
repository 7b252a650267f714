"""The ranks of a job beside each other: which is missing, slow or cut off, and how fast collectives are.

Each rank measures, and tells rank 0 so through the store at which ranks meet, which works where collectives don't. What
one rank can't do ends the look at that point, with its name.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from platform import node
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from sslm.cli.doctor import interconnect
from sslm.cli.doctor.finding import Finding, answer_of
from sslm.cli.doctor.interconnect import Place
from sslm.parallel.launchers import Slurm
from sslm.parallel.planning.machines import rate_in_words
from sslm.runs.trackers.about import versions
from sslm.system.errors import RunFailed, UserError, one_line
from sslm.system.ranks import under_srun, under_torchrun
from sslm.system.terminal import plural

SECONDS = 60.0
"""How long a rank may take for each trial."""
SECONDS_TO_HEAR = 10.0
"""How much longer rank 0 waits for what a rank tells."""
SECONDS_BETWEEN_LOOKS = 0.02
SLOW = 0.5
"""What is below this fraction of the best of its kind is slow."""
WHY_SLOW = {
    "within a node": "how its GPUs are connected (nvidia-smi topo -m), or others' work on its cores",
    "between nodes": "cable, switch port, network interface (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME); NCCL_DEBUG=INFO",
}
"""Where the ranks lie -> what may slow down the way between them."""
Told = dict[int, Any]
"""Rank -> what it has told of a trial."""


class Trial(NamedTuple):
    """What each rank does, and what rank 0 makes of that."""

    name: str
    work: Callable[["Meeting"], Any]
    judge: Callable[[Told, list[str]], Iterator[Finding]]
    """Of what all ranks have told, and the ranks' names."""


def look() -> Iterator[Finding]:
    """Go through the trials with all other ranks; yield findings on rank 0, and nothing elsewhere.

    Raises:
        UserError: no launcher has started this process as one of several.
        RunFailed: rank 0 can't be reached.
    """
    place = place_of_this_rank()
    meeting = Meeting(place)
    names = [f"rank {rank}" for rank in range(place.num_ranks)]
    for trial in TRIALS if place.num_ranks > 1 else TRIALS[:2]:
        meeting.tell(trial.name, outcome(trial, meeting))
        if place.rank == 0:
            told = meeting.hear(trial.name, SECONDS + SECONDS_TO_HEAR)
            failed = failures(trial.name, told, names)
            yield from failed or trial.judge(values_of(told), names)
            if trial.name == "ranks" and not failed:
                names = [f"{name} ({told[rank]['value']['host']})" for rank, name in enumerate(names)]
            meeting.decide(trial.name, goes_on=not failed)
        if not meeting.goes_on_after(trial.name):
            break
    meeting.end()


def place_of_this_rank() -> Place:
    """Read from the launcher's variables which rank this is."""
    if not (under_torchrun() or under_srun()):
        how = "srun sslm doctor --nodes in a batch script, or torchrun ... -m sslm doctor --nodes on each node"
        raise UserError(f"--nodes: looks at the ranks of a job, which a launcher starts: {how}")
    launcher = TorchElasticEnvironment() if under_torchrun() else Slurm()
    ranks = (launcher.global_rank(), launcher.world_size(), launcher.local_rank())
    return Place(*ranks, launcher.main_address, launcher.main_port)


class Meeting:
    """A store through which ranks tell rank 0 what they found, and rank 0 whether to go on."""

    def __init__(self, place: Place) -> None:
        self.place = place
        is_host = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        limit = timedelta(seconds=SECONDS)
        attempt = f"doctor-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                place.host, place.port, None, is_host, timeout=limit, wait_for_workers=False
            )
        except dist.DistError as error:
            why = f"rank 0 can't be reached at {place.host}:{place.port} within {SECONDS:g} s"
            raise RunFailed(f"rank {place.rank} ({node()}): {why}") from error
        self.store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]

    def tell(self, name: str, what: dict[str, Any]) -> None:
        """Say what this rank has found."""
        self.store.set(f"{name}/{self.place.rank}", json.dumps(what))

    def hear(self, name: str, seconds: float) -> Told:
        """Return what ranks have told within some seconds from now; a rank that has said nothing is left out."""
        end = time.monotonic() + seconds
        told: Told = {}
        while len(told) < self.place.num_ranks and time.monotonic() < end:
            for rank in set(range(self.place.num_ranks)) - set(told):
                if self.store.check([f"{name}/{rank}"]):
                    told[rank] = json.loads(self.store.get(f"{name}/{rank}"))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return told

    def decide(self, name: str, goes_on: bool) -> None:
        self.store.set(f"{name}/goes on", str(goes_on))

    def goes_on_after(self, name: str) -> bool:
        """Wait for what rank 0 decides; False if it is no longer there."""
        end = time.monotonic() + 2 * SECONDS + SECONDS_TO_HEAR
        with suppress(dist.DistError):
            while time.monotonic() < end:
                if self.store.check([f"{name}/goes on"]):
                    return bool(self.store.get(f"{name}/goes on") == b"True")
                time.sleep(SECONDS_BETWEEN_LOOKS)
        return False

    def end(self) -> None:
        """Wait, on rank 0, until the others have read all: the store is gone when it ends."""
        with suppress(dist.DistError):
            self.tell("end", {})
            if self.place.rank == 0:
                self.hear("end", SECONDS_TO_HEAR)


def outcome(trial: Trial, meeting: Meeting) -> dict[str, Any]:
    """Do a trial; return its value, or how it failed."""
    try:
        return {"value": answer_of(lambda: trial.work(meeting), trial.name, SECONDS)}
    except Exception as error:  # whatever it is, it is this rank's finding
        return {"error": one_line(error) or type(error).__name__}


def values_of(told: Told) -> Told:
    return {rank: outcome["value"] for rank, outcome in told.items()}


def failures(name: str, told: Told, names: list[str]) -> list[Finding]:
    """Find the ranks that have told nothing, and if there are none, those that have told an error."""
    silent = [names[rank] for rank in range(len(names)) if rank not in told]
    if silent:
        found = f"nothing heard of {', '.join(silent)}, while {plural(len(told), 'other')} did their part"
        why = "is that node up, does it reach rank 0, is its process stopped? Look at what it printed"
        return [Finding(name, found, "bad", "a run waits for it, and ends by its time limit", why)]
    return [
        Finding(name, f"{names[rank]}: {outcome['error']}", "bad", "no run of several ranks goes through this")
        for rank, outcome in sorted(told.items())
        if "error" in outcome
    ]


# ------------------------------------------------------------------------------------------------ trials


def introduction(meeting: Meeting) -> dict[str, Any]:
    """Say where this rank is, what it computes on, and with what."""
    device = meeting.place.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"host": node(), "device": gpu or "CPU", "versions": versions()}


def judge_introductions(told: Told, names: list[str]) -> Iterator[Finding]:
    """Say who is there; devices and versions that differ are bad."""
    hosts = list(dict.fromkeys(rank["host"] for rank in told.values()))
    yield Finding("ranks", f"{plural(len(names), 'rank')} on {plural(len(hosts), 'node')}: {', '.join(hosts)}")
    things = {"device": {rank: said["device"] for rank, said in told.items()}}
    for package in told[0]["versions"]:
        things[package] = {rank: said["versions"].get(package, "none") for rank, said in told.items()}
    for thing, of in things.items():
        others = [f"{names[rank]} ({told[rank]['host']}) has {value}" for rank, value in of.items() if value != of[0]]
        if others:
            found = f"{', '.join(others)}; rank 0 has {of[0]}"
            yield Finding(
                thing, found, "bad", "ranks compute different things, or wait for each other", "the same everywhere"
            )


def judge_nothing(told: Told, names: list[str]) -> Iterator[Finding]:
    """Find nothing where it is enough that no rank has failed."""
    yield from ()


def judge_products(told: Told, names: list[str]) -> Iterator[Finding]:
    """Name the ranks that compute slowly."""
    best = max(told.values())
    slow = [f"{names[rank]}: {rate_in_words(rate)}" for rank, rate in sorted(told.items()) if rate < SLOW * best]
    if slow:
        why = "a GPU that is too hot or shared (nvidia-smi), or threads of others on its cores (htop)"
        yield Finding(
            "matmul", f"{', '.join(slow)}; the best has {rate_in_words(best)}", "bad", "all ranks wait for it", why
        )
    else:
        yield Finding("matmul", f"{rate_in_words(min(told.values()))} to {rate_in_words(best)} a rank")


def judge_pairs(told: Told, names: list[str]) -> Iterator[Finding]:
    """Name the ranks that others reach slowly, or the two between which it is slow, within nodes and between them."""
    hosts = [name.partition(" (")[2] for name in names]
    rates = {(rank, int(other)): rate for rank, to in told.items() for other, rate in to.items() if rank < int(other)}
    for kind in WHY_SLOW:
        is_within = kind == "within a node"
        of_kind = {pair: rate for pair, rate in rates.items() if (hosts[pair[0]] == hosts[pair[1]]) == is_within}
        if of_kind:
            yield _judge_kind(kind, of_kind, names)


def _judge_kind(kind: str, rates: Mapping[tuple[int, int], float], names: list[str]) -> Finding:
    best = max(rates.values())
    slow = {pair: rate for pair, rate in rates.items() if rate < SLOW * best}
    name = f"rank to rank, {kind}"
    if not slow:
        return Finding(name, f"{_rate(min(rates.values()))} to {_rate(best)}")
    culprits = [
        rank
        for rank in range(len(names))
        if (its := [pair for pair in rates if rank in pair]) and len(its) > 1 and set(its) <= set(slow)
    ]
    who = [names[rank] for rank in culprits] or [f"{names[a]} and {names[b]}" for a, b in slow]
    found = f"{', '.join(who)}: {_rate(min(slow.values()))}; the best has {_rate(best)}"
    return Finding(name, found, "bad", "every collective is as slow as its slowest link", WHY_SLOW[kind])


def judge_collectives(told: Told, names: list[str]) -> Iterator[Finding]:
    """Tell each collective's latency and bandwidth: those of the slowest rank."""
    for name in told[0]:
        seconds, rates = zip(*(of[name] for of in told.values()), strict=True)
        yield Finding(name, f"{max(seconds) * 1e6:.0f} µs for a few bytes; bus bandwidth {_rate(min(rates))}")


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.3g} GB/s"


TRIALS = (
    Trial("ranks", introduction, judge_introductions),
    Trial("matmul", lambda meeting: interconnect.product(meeting.place), judge_products),
    Trial("connection", lambda meeting: interconnect.connect(meeting.place, meeting.store, SECONDS), judge_nothing),
    Trial("rank to rank", lambda meeting: interconnect.to_neighbours(meeting.place), judge_pairs),
    Trial("collectives", lambda meeting: interconnect.collectives(meeting.place), judge_collectives),
)
