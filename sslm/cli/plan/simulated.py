"""`sslm plan --simulate nodes=64`: what one step of the first of many ranks took, as tables."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rich.table import Table
from transformers import PreTrainedConfig

from sslm.config import Config
from sslm.data.module import DataModule
from sslm.data.stream.recipe import Recipe
from sslm.models.adapters import Adapters
from sslm.objectives.choose import make_module
from sslm.parallel.launch import Launch, devices
from sslm.parallel.planning.budget import Budget
from sslm.parallel.planning.machines import Machine, here
from sslm.parallel.planning.memory import Memory
from sslm.parallel.planning.messages import Message
from sslm.system.errors import UserError
from sslm.system.terminal import bytes_in_words
from sslm.training.module import Objective
from sslm.training.simulation import Simulation, simulate

DEVICES = 8
"""Devices of a node, if nothing says how many."""


def simulated_machine(text: str, config: Config, machine: Machine | None) -> Machine:
    """Return the machine that `--simulate` names: nodes like the machine that is planned for, or like this one.

    Raises:
        UserError: `text` is not nodes=64 or nodes=64,devices=8.
    """
    found = re.fullmatch(r"nodes=([1-9]\d{0,4})(?:,devices=([1-9]\d{0,2}))?", text)
    if found is None:
        raise UserError(f"--simulate {text}: expected nodes=64, or nodes=64,devices=8 for 64 nodes of 8 devices")
    num_nodes, per_node = int(found[1]), int(found[2] or 0)
    if machine is None:
        return here(devices(config).accelerator, per_node or DEVICES, num_nodes)
    of_node = machine.devices if machine.devices > 1 else DEVICES
    return replace(machine, num_nodes=num_nodes, devices=per_node or of_node)


def run_simulation(
    budget: Budget,
    launch: Launch,
    data: DataModule,
    objective: type[Objective],
    recipe: Recipe,
    model: PreTrainedConfig,
    adapters: Adapters | None,
) -> "Simulated":
    """Take a step as the first rank; compilation, attention's kernel and 8-bit matmuls don't change what ranks send."""
    size, config = budget.chosen_size(launch), budget.config
    if budget.recomputation.kind == "budget":  # which is the compiler's
        config = replace(config, activation_checkpointing="none")
    precision = launch.precision if launch.float8 is None else "bf16-mixed"
    plain = replace(launch, compiled="off", attention="sdpa", precision=precision)
    how: dict[str, Any] = {"total_steps": config.total_steps, "micro_batch_size": size}
    module = make_module(config, objective, recipe, model, adapters, plain, **how)
    simulation = simulate(module, model, data, plain, budget.shapes, budget.rows_per_rank(launch))
    return Simulated(simulation, budget.machine, launch, budget.memory(launch, size))


class Row(NamedTuple):
    """All messages of a kind among the same ranks."""

    kind: str
    ranks: str
    times: int
    num_bytes: int
    sent: float


@dataclass(frozen=True)
class Simulated:
    """A simulation, to be shown beside the plan."""

    simulation: Simulation
    machine: Machine
    launch: Launch
    planned: Memory

    def parts(self) -> list[Table | str]:
        title = f"[bold]Simulated[/bold]: a step of the first of {self.machine.world:,} ranks"
        if not self.simulation.messages:
            return [title, self._memory(), "It sends no messages."]
        what = "[bold]Messages of a step[/bold] that the first rank takes part in"
        return [title, self._memory(), what, self._messages(), self._time()]

    def _memory(self) -> Table:
        table = _table("memory", "simulated", "planned")
        for name in ("weights", "gradients", "optimizer"):
            table.add_row(name, *(bytes_in_words(getattr(it, name)) for it in (self.simulation, self.planned)))
        return table

    def _messages(self) -> Table:
        table = _table("", "among", "times", "bytes in all", "sent by each rank")
        for row in self.rows():
            sizes = bytes_in_words(row.num_bytes), bytes_in_words(row.sent)
            table.add_row(row.kind, row.ranks, f"{row.times:,}", *sizes)
        return table

    def rows(self) -> list[Row]:
        """What is shown of the messages: the largest sum first."""
        found: dict[tuple[str, tuple[int, ...]], Counter[Message]] = {}
        for message, times in self.simulation.messages.items():
            found.setdefault((message.kind, message.ranks), Counter())[message] = times
        rows = [
            Row(
                kind,
                self._in_words(ranks),
                same.total(),
                sum(message.num_bytes * times for message, times in same.items()),
                sum(message.sent * times for message, times in same.items()),
            )
            for (kind, ranks), same in found.items()
        ]
        return sorted(rows, key=lambda row: -row.sent)

    def _in_words(self, ranks: tuple[int, ...]) -> str:
        nodes = len({rank // self.machine.devices for rank in ranks})
        where = "a node" if nodes == 1 else f"{nodes:,} nodes"
        return f"{len(ranks):,} ranks of {where}"

    def _time(self) -> str:
        """Say how long the wires are busy at least."""
        within, between, devices = self.machine.link, self.machine.network, self.machine.devices
        sent = {True: 0.0, False: 0.0}
        for message, times in self.simulation.messages.items():
            sent[message.crosses_nodes(devices)] += message.sent * times
        if (sent[False] and within is None) or (sent[True] and between is None):
            return "How long they take is not known: no speed of the links is listed for this machine."
        seconds = sent[False] / (within or 1.0) + sent[True] / (between or 1.0)
        speeds = [f"{within / 1e9:g} GB/s within nodes"] if within and sent[False] else []
        speeds += [f"{between / 1e9:g} GB/s for each device between nodes"] if between and sent[True] else []
        at = " and ".join(speeds)
        return f"The wires need {seconds * 1000:,.1f} ms a step at least, at {at}; computation may hide a part of it."


def _table(*titles: str) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=True)
    for number, _ in enumerate(titles):
        table.add_column(justify="left" if number < len(titles) - 3 or not number else "right", no_wrap=True)
    table.add_row(*(f"[dim]{title}[/dim]" for title in titles))
    return table
