"""Tell beforehand what a run takes: memory, time, money and disk; and what to type so that it fits.

    sslm plan [--plan_for h100:8] [--simulate nodes=64] [--price_per_hour 2.5] [any flags of train]

Nothing is trained, and nothing is written except the cache of prepared corpora. Without --plan_for the plan is for this
machine. With --simulate the model is sharded over all ranks of so many nodes, without memory, and takes a step.
"""

import argparse
import itertools
import shlex
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from sslm.cli.parse import parse, split_flags
from sslm.cli.plan.simulated import Simulated, run_simulation, simulated_machine
from sslm.config import Config
from sslm.config.batch_sizes import Leg
from sslm.data.module import DataModule
from sslm.models.attention import attention_in_words
from sslm.models.flops import matmul_parameters, of_experts, share_of_experts
from sslm.objectives.choose import (
    build_on_meta,
    choose_adapters,
    choose_model,
    choose_objective,
    open_data,
    weightless_teacher,
    with_epochs,
)
from sslm.parallel.launch import Launch
from sslm.parallel.planning.budget import Budget, Proposal, plan_launch
from sslm.parallel.planning.expected_speed import expected_speed
from sslm.parallel.planning.machines import PLANNED_FOR, PRICED, named
from sslm.parallel.planning.memory import sizes
from sslm.runs.checkpoints.folder import damage_of, newest_first
from sslm.runs.folder import RunFolder
from sslm.runs.resume import check_ramps, examples_left
from sslm.system.errors import UserError
from sslm.system.exits import DONE, exits_politely
from sslm.system.terminal import bytes_in_words, console, count, duration, is_watched, keep_libraries_quiet, plural, say
from sslm.training.report import readings

WARNING = "[yellow]Warning[/yellow]"


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    options, rest = _take_own(arguments)
    config = parse(rest)
    machine = None if options.plan_for is None else named(options.plan_for)
    price = None if options.price_per_hour is None else _price(options.price_per_hour)
    if options.simulate is not None:
        machine = simulated_machine(options.simulate, config, machine)
    keep_libraries_quiet()
    objective, recipe = choose_objective(config)
    data = open_data(config, recipe)
    config = with_epochs(config, data)
    chosen = choose_model(config, objective, data)
    adapters = choose_adapters(config, objective, chosen)
    model = build_on_meta(config, objective, chosen, adapters)
    if machine is not None:
        config = replace(config, devices=machine.devices, num_nodes=machine.num_nodes)
    budget, launch = plan_launch(config, model, data, machine, weightless_teacher(config, objective))
    simulated = None
    if options.simulate is not None:
        simulated = run_simulation(budget, launch, data, objective, recipe, chosen, adapters)
    Plan(budget, data, launch, price, is_elsewhere=machine is not None, simulated=simulated).show(rest)
    return DONE


def _take_own(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Split this verb's flags from those of train."""
    try:
        return flag_parser().parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(f"{error.argument_name} needs a value, as in --plan_for h100:8 --simulate nodes=64") from None


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's own flags."""
    parser = argparse.ArgumentParser(
        prog="sslm plan",
        usage="sslm plan [--plan_for h100:8] [--simulate nodes=64] [--price_per_hour 2.5] [any flags of train]",
        description=f"{__doc__.splitlines()[0]} `sslm train --help` lists the flags of train.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    also = f"{', '.join(PLANNED_FOR)}, cpu"
    machines = f"h100, h100:8 (devices) or h100:8x4 (on 4 nodes); also {also}; default: this machine"
    parser.add_argument("--plan_for", metavar="MACHINE", help=machines)
    nodes = "take a step as the first rank of so many nodes: memory and messages; also nodes=64,devices=8 (default: 8)"
    parser.add_argument("--simulate", metavar="NODES", help=nodes)
    price = "price of a device, in dollars per hour; default: what it typically costs on demand"
    parser.add_argument("--price_per_hour", metavar="PRICE", help=price)
    return parser


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = -1.0
    if not 0 <= price < float("inf"):
        raise UserError(f"--price_per_hour {text}: expected dollars per device and hour, such as 2.5")
    return price


@dataclass(frozen=True)
class Plan:
    """What a run takes, and what would fit."""

    budget: Budget
    data: DataModule
    launch: Launch
    price: float | None = None
    """Dollars per device and hour, or None for what the machine typically costs."""
    is_elsewhere: bool = False
    """Whether the plan is for another machine than this."""
    simulated: Simulated | None = None
    """A step that was simulated; None if that was not asked for."""

    @property
    def config(self) -> Config:
        return self.budget.config

    @cached_property
    def _newest(self) -> Path | None:
        """The checkpoint that the run would go on from, or None if it would begin."""
        there = newest_first(RunFolder(self.config.run_folder).checkpoints)
        return next((checkpoint for checkpoint in there if not damage_of(checkpoint, hashed=False)), None)

    def show(self, arguments: list[str]) -> None:
        """Print the plan; the command that it proposes repeats the flags of train as typed.

        Raises:
            UserError: it doesn't fit into memory, or not one checkpoint fits onto the disk.
        """
        check_ramps(self.config, self._newest)
        say()
        simulated = [] if self.simulated is None else self.simulated.parts()
        parts = [self._title(), self._run(), *self._memory(), *simulated, self._cost(), *self._proposals(arguments)]
        for part in parts:
            is_whole = part is parts[-1] or not is_watched()  # a command to copy, or a log
            console().print(part, highlight=False, soft_wrap=isinstance(part, str) and is_whole)
            say()
        self.budget.micro_batch_size(self.launch)
        room, needed = self._disk_room(), self._checkpoint_bytes()
        if room < needed and not self.is_elsewhere:
            raise UserError(
                f"{self.config.run_folder}: a checkpoint takes {bytes_in_words(needed)} and the disk has "
                f"{bytes_in_words(room)} left; free some room, or give another --run_dir"
            )

    # ---------------------------------------------------------------------------------------- what is trained

    def _title(self) -> str:
        machine = self.budget.machine
        nodes = f"{machine.num_nodes} nodes of " if machine.num_nodes > 1 else ""
        devices = f"{machine.devices} x {machine.device}" if machine.is_gpu else plural(machine.devices, machine.device)
        return f"[bold]Plan for {nodes}{devices}[/bold] ({bytes_in_words(machine.memory)} each)"

    def _run(self) -> Table:
        config, data, model = self.config, self.data, self.budget.model
        steps, (first, *later) = config.total_steps, config.batch_sizes.legs
        corpora = [source.corpus for source in data.train_stream.sources]
        documents = sum(corpus.num_documents for corpus in corpora)
        source = f"{plural(documents, 'document', exact=True)}, " if documents else ""
        without = "" if data.tokenizer is not None else " (ids without a tokenizer)"
        padded = f", in the model {model.config.vocab_size:,}" if model.config.vocab_size != data.vocab_size else ""
        vocabulary = f"vocabulary {data.vocab_size:,}{without}{padded}"
        read = readings(config, data)
        epochs = "" if data.mixes else f", {read[0].epochs:,.2f} epochs"
        trained = plural(config.batch_sizes.position_at(steps) * config.window_tokens, "token")
        rows = [
            ("Model", f"{config.objective.name}, {model.config.model_type}: {self._parameters()}"),
            ("Text", f"{source}{plural(sum(corpus.num_tokens for corpus in corpora), 'token')}; {vocabulary}"),
            ("Run", f"{plural(steps, 'step', exact=True)} of {self._batch(first)}: {trained}{epochs}"),
        ]
        rows += [("", f"from step {leg.step + 1:,} on of {self._batch(leg)}") for leg in later]
        launch, has_documents = self.launch, config.data.document_mask
        attention = attention_in_words(launch.attention, model, launch.device_type, has_documents)
        rows += [("Attention", escape(attention))]
        if launch.masks_because is not None:
            rows += [(WARNING, escape(f"explicit masks are slow on a GPU; --attention varlen: {launch.masks_because}"))]
        for reading in read:
            rows += [("", escape(str(reading)))] if data.mixes else []
            rows += [(WARNING, escape(reading.warning))] if reading.warning else []
        return _grid(rows)

    def _batch(self, leg: Leg) -> str:
        tokens = self.config.window_tokens
        return f"{leg.rows} x {leg.seq_len or tokens:,} = {count(leg.size * tokens)} tokens"

    def _parameters(self) -> str:
        model = self.budget.model
        total = model.num_parameters()
        ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
        embedding = sum({id(p): p.numel() for end in ends for p in end.parameters()}.values())  # tied ones once
        idle = sum(p.numel() for p in of_experts(model)) * (1 - share_of_experts(model))
        active = f", {count(total - idle)} active" if idle else ""
        trained = model.num_parameters(only_trainable=True)
        active += f", {count(trained)} trained" if trained < total else ""
        multiply = f"{count(matmul_parameters(model))} used for each token"
        return f"{count(total)} parameters ({count(embedding)} of embeddings{active}; {multiply})"

    # ---------------------------------------------------------------------------------------- memory

    def _memory(self) -> list[Table | str]:
        size, launch, has = self.budget.chosen_size(self.launch), self.launch, self.budget.machine.memory
        memory = self.budget.memory(launch, size)
        recomputed = self.config.activation_checkpointing
        how = f"{launch.strategy_in_words}, micro-batches of {size}, precision {launch.precision_in_words}"
        how += f", {recomputed} recomputed" if recomputed != "none" else ""
        table = _table(right=(1, 2))
        for name, number in memory.parts.items():
            if number:
                table.add_row(name, bytes_in_words(number), f"{number / has:.0%}", _bar(number / has))
        verdict = "[green]fits[/green]" if memory.total <= has else "[red]does not fit[/red]"
        if memory.total <= has and self.budget.is_narrow(launch, size):
            verdict = "[yellow]fits narrowly: a tenth should be left for what is not counted[/yellow]"
        total = f"[bold]{bytes_in_words(memory.total)}[/bold]"
        table.add_row("[bold]in all[/bold]", total, f"{memory.total / has:.0%}", verdict)
        if memory.host:
            table.add_row("in the host", bytes_in_words(memory.host), "", "for each device")
        return [f"[bold]Memory of each device[/bold]: {how}", table]

    # ---------------------------------------------------------------------------------------- time, money, disk

    def _cost(self) -> Table:
        tokens = examples_left(self.config, self._newest) * self.config.window_tokens
        speed, why = expected_speed(self.budget, self.launch)
        if speed is None:
            return _grid([("Time", f"unknown: {why}"), *self._disk()])
        seconds = tokens / speed
        rows = [("Time", f"{duration(seconds)} for {count(tokens)} tokens, at {count(speed)} tokens/s")]
        rows.append(("", f"[dim]an estimate: {why}[/dim]"))
        price = self.budget.machine.price if self.price is None else self.price
        if price is not None:
            cost = seconds / 3600 * self.budget.machine.world * price
            typical = f"typical on demand in {PRICED}; give yours with --price_per_hour"
            source = typical if self.price is None else "as given"
            rows.append(("Cost", f"{_dollars(cost)}, at {_dollars(price)} per device and hour ({source})"))
        return _grid([*rows, *self._disk()])

    def _disk(self) -> list[tuple[str, str]]:
        size, keep, room = self._checkpoint_bytes(), self.config.checkpoint.keep_last, self._disk_room()
        last = f"the last {keep} are kept, {bytes_in_words(((keep or 0) + 1) * size)} while one is written"
        need = f"{bytes_in_words(size)} for a checkpoint; {last if keep else 'all are kept'}"
        if self.is_elsewhere:
            return [("Disk", need)]
        rows = [("Disk", f"{need}; {bytes_in_words(room)} are free at {escape(str(self.config.run_folder))}")]
        if room < ((keep or 1) + 1) * size:
            instead = "free some room, lower --checkpoint.keep_last, or give another --run_dir"
            rows.append((WARNING, f"the disk will be full before that; {instead}"))
        return rows

    def _checkpoint_bytes(self) -> int:
        """Size of weights, perhaps their average, and optimizer states of those that are trained, in fp32."""
        model, copies = self.budget.model, 2 if self.config.optim.averages else 1
        return 4 * copies * int(model.num_parameters()) + sizes(model, optimizer=self.config.optim.name).states

    def _disk_room(self) -> int:
        folder = Path(self.config.run_folder).absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        return shutil.disk_usage(there).free

    # ---------------------------------------------------------------------------------------- what would do

    def _proposals(self, arguments: list[str]) -> list[Table | str]:
        proposals = self.budget.proposals(self.launch.strategy)
        fitting = [proposal for proposal in proposals if proposal.fits]
        if not fitting:
            return ["[bold]Nothing fits[/bold] on these devices."]
        table = _table(right=(1, 3))
        table.add_row(*(f"[dim]{title}[/dim]" for title in ("strategy", "micro-batch", "recomputation", "memory", "")))
        for proposal in proposals:
            notes = [] if proposal.fits else ["[red]does not fit[/red]"]
            notes += ["[green]proposed[/green]"] if proposal is fitting[0] else []
            notes += ["gradients reduced with each micro-batch"] if proposal.reduce_gradients == "micro_batch" else []
            memory, size = bytes_in_words(proposal.memory.total), str(proposal.micro_batch_size)
            table.add_row(proposal.strategy, size, proposal.activation_checkpointing, memory, ", ".join(notes))
        return [
            "[bold]What fits[/bold] with a tenth of the memory to spare, each with its largest micro-batch",
            table,
            f"[bold]To type[/bold]\n  {escape(shlex.join(self._command(arguments, fitting[0])))}",
        ]

    def _command(self, arguments: list[str], proposal: Proposal) -> list[str]:
        """Build the proposed command: what was typed, but for the flags that the proposal changes."""
        machine, asked = self.budget.machine, parse(arguments)
        settled = {"strategy": self.launch.strategy, "micro_batch_size": proposal.micro_batch_size}
        auto: Any = {name: value for name, value in settled.items() if getattr(asked, name) == "auto"}
        changed = proposal.flags(replace(asked, **auto))  # auto finds the same
        whole = self.budget.rows_per_rank(self.budget.launch(proposal.strategy))
        if asked.micro_batch_size is None and proposal.micro_batch_size == whole:
            changed.pop("micro_batch_size")  # it is the default
        if self.is_elsewhere:
            there: dict[str, Any] = {"devices": machine.devices, "num_nodes": machine.num_nodes}
            there |= {} if machine.is_gpu else {"accelerator": "cpu"}
            changed |= {name: value for name, value in there.items() if getattr(asked, name) != value}
        start = ["srun"] if machine.num_nodes > 1 else []
        kept = [flag.words for flag in split_flags(arguments) if flag.name not in {*changed, "dry_run"}]
        new = [text for name, value in changed.items() for text in (f"--{name}", str(value))]
        return [*start, "python", "-m", "sslm.train", *itertools.chain(*kept), *new]


def _grid(rows: list[tuple[str, str]]) -> Table:
    table = _table(right=())
    for title, text in rows:
        table.add_row(f"[bold]{title}[/bold]", text)
    return table


def _table(right: tuple[int, ...]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0), pad_edge=True)
    for number in range(5):
        table.add_column(justify="right" if number in right else "left", no_wrap=number in right)
    return table


def _dollars(amount: float) -> str:
    return f"${amount:,.2f}" if amount < 100 else f"${amount:,.0f}"


def _bar(share: float, width: int = 32) -> str:
    return "█" * max(min(round(share * width), width), 0) or "▏"
