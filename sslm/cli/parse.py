"""Command line and YAML files -> Config.

jsonargparse types the values and writes the help; what it lacks is here: flags win whatever the order typed, open
sections, and errors of one sentence that name the nearest flag.
"""

import argparse
import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sslm.config import OPEN_SECTIONS, Config, parse_stop_after, to_tree
from sslm.system.errors import UserError, nearest
from sslm.system.typed import fits, kind_in_words, one_sentence, whole


def parse(arguments: list[str]) -> Config:
    """Command line -> Config. `--help` prints and exits 0.

    Raises:
        UserError: an unknown flag or key (naming the nearest), a value of the wrong type, an unreadable file.
    """
    arguments, files = _take_config_files(arguments)
    tree: dict[str, Any] = {}
    for file in files:
        _merge(tree, _open_to_settings(_read_yaml(file), file))
    arguments = _take_open_settings(arguments, tree)
    _check_keys(tree, Config, "")
    return _check_values(_parse_with_jsonargparse(arguments, tree))


def _parse_with_jsonargparse(arguments: list[str], tree: dict[str, Any]) -> Config:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="python -m sslm.train",
        usage="python -m sslm.train [--config FILE]… [flags]",
        exit_on_error=False,
        description="Pretrain a language model. No arguments: learn from this Python's documentation in two minutes.",
        epilog="--model.KEY takes any key of the architecture's config (--model.hidden_size 512), --objective.KEY any "
        "setting of the objective. YAML files have the same keys, in the same sections.",
    )
    parser.add_argument(
        "--config", action="config", help="YAML file with any of these keys; may be given several times."
    )
    parser.add_class_arguments(Config, help="A run")
    if {"-h", "--help"} & set(arguments):
        _show_only_our_flags(parser)
        parser.print_help()
        raise SystemExit(0)
    try:
        namespace = parser.parse_args([f"--config={yaml.safe_dump(tree)}", *arguments] if tree else arguments)
    except argparse.ArgumentError as error:
        raise UserError(one_sentence(error, _flags())) from None
    namespace.pop("config", None)
    return Config(**parser.instantiate(namespace).as_dict())


def _show_only_our_flags(parser: argparse.ArgumentParser) -> None:
    """Leave jsonargparse's own flags, and the open sections' inner name, out of the help."""
    for action in parser._actions:
        action.option_strings = [name for name in action.option_strings if not name.endswith("+")]
        if action.dest == "objective.name":
            action.option_strings = ["--objective"]
        elif action.dest not in ("help", "config", *_flags()) or action.dest.endswith(".settings"):
            action.help = argparse.SUPPRESS


def _flags() -> dict[str, Any]:
    """Every flag that is always there, and the type of its value."""
    flags: dict[str, Any] = {}
    for top in dataclasses.fields(Config):
        if dataclasses.is_dataclass(top.type):
            flags |= {f"{top.name}.{leaf.name}": leaf.type for leaf in dataclasses.fields(top.type)}
        else:
            flags[top.name] = top.type
    return flags


def _take_config_files(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split `--config FILE`s off, so that flags win whatever the order typed."""
    rest, files, stream = [], [], iter(arguments)
    for argument in stream:
        if argument == "--config":
            file = next(stream, None)
            if file is None or file.startswith("--"):
                raise UserError("--config needs a file: --config configs/laptop.yaml")
            files.append(file)
        elif argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    return rest, files


def _read_yaml(file: str) -> dict[str, Any]:
    try:
        tree = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise UserError(f"--config {file}: there is no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"--config {file}: not a YAML file: {' '.join(str(error).split())}") from None
    if tree is None:  # all of it is commented out
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"--config {file}: expected keys and values, got {type(tree).__name__}")
    return tree


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as YAML 1.2 has it; PyYAML follows 1.1, where it is text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"), list("-+.0123456789")
)


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _open_to_settings(tree: dict[str, Any], file: str) -> dict[str, Any]:
    """`model: {hidden_size: 8}` -> `model: {settings: {hidden_size: 8}}`; `objective: NAME` -> `{name: NAME}`."""
    types_of = {f.name: f.type for f in dataclasses.fields(Config)}
    tree = dict(tree)
    for section in OPEN_SECTIONS:
        if section not in tree:
            continue
        given = tree[section] or {}
        if section == "objective" and isinstance(given, str):
            given = {"name": given}
        if not isinstance(given, dict):
            raise UserError(f"--config {file}: {section} takes keys and values, got {given!r}")
        fixed = {f.name for f in dataclasses.fields(typing.cast(Any, types_of[section]))} - {"settings"}
        tree[section] = {k: v for k, v in given.items() if k in fixed}
        tree[section]["settings"] = {str(k): v for k, v in given.items() if k not in fixed}
    return tree


def _take_open_settings(arguments: list[str], tree: dict[str, Any]) -> list[str]:
    """Move `--model.KEY VALUE` and `--objective.KEY VALUE` into the tree; check that the other flags exist."""
    flags, rest = _flags(), []
    stream = list(arguments)
    while stream:
        argument = stream.pop(0)
        if argument in ("-h", "--help"):
            rest.append(argument)
            continue
        if not argument.startswith("--"):
            raise UserError(f"{argument!r} is not a flag: flags start with --, as in --data.train {argument}")
        name, equals, value = argument[2:].partition("=")
        name = "objective.name" if name == "objective" else name
        section, _, key = name.partition(".")
        is_open = section in OPEN_SECTIONS and key and name not in flags and "." not in key
        if not is_open and (name not in flags or key == "settings"):
            raise UserError(
                f"there is no flag --{name}{nearest('--' + name, ['--' + f for f in flags])}; "
                "python -m sslm.train --help lists them"
            )
        if not equals:
            if flags.get(name) is bool and (not stream or stream[0].startswith("--")):
                value = "true"
            elif not stream or stream[0].startswith("--"):
                raise UserError(f"--{name} needs a value")
            else:
                value = stream.pop(0)
        if is_open or _items(flags[name]):
            into = tree.setdefault(section, {})
            into = into.setdefault("settings", {}) if is_open else into
            try:
                into[key] = yaml.load(value, Loader=_Loader)
            except yaml.YAMLError:
                raise UserError(f"--{name} {value}: can't be read; quote it as in YAML") from None
        else:
            rest.append(f"--{name}={whole(value, flags[name])}")
    return rest


def _check_keys(tree: dict[str, Any], cls: Any, prefix: str) -> None:
    known = {f.name: f.type for f in dataclasses.fields(cls)}
    for key, value in list(tree.items()):
        if key not in known:
            raise UserError(
                f"there is no key {prefix}{key}{nearest(str(key), known)}; allowed{' in ' + prefix[:-1] if prefix else ''}: "
                f"{', '.join(known)}"
            )
        if dataclasses.is_dataclass(known[key]):
            if value is None:  # a section with all its keys commented out
                del tree[key]
                continue
            if not isinstance(value, dict):
                raise UserError(f"{prefix}{key} takes keys and values, got {value!r}")
            _check_keys(value, known[key], f"{prefix}{key}.")
        elif (item := _items(known[key])) and value is not None:
            _check_list(value, item, f"{prefix}{key}")
        else:
            tree[key] = whole(value, known[key])


def _items(kind: Any) -> Any:
    """The dataclass of which a key takes a list; None where it takes something else."""
    listed = next((part for part in (kind, *typing.get_args(kind)) if typing.get_origin(part) is list), None)
    item = typing.get_args(listed)[0] if listed else None
    return item if dataclasses.is_dataclass(item) else None


def _check_list(value: Any, item: Any, name: str) -> None:
    needed = [f.name for f in dataclasses.fields(item) if f.default is dataclasses.MISSING]
    example = f"[{{{', '.join(f'{key}: …' for key in needed)}}}, …]"
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise UserError(f"--{name} {value}: expected a list such as {example}")
    for one in value:
        _check_keys(one, item, f"{name}.")
        if missing := [key for key in needed if one.get(key) is None]:
            raise UserError(f"--{name} {one}: {missing[0]} is missing; expected {example}")
        for field in dataclasses.fields(item):
            if field.name in one and not fits(one[field.name], field.type):
                raise UserError(f"--{name}: {field.name} {one[field.name]}: expected {kind_in_words(field.type)}")


def _texts(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _texts(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield f"{prefix}{key}", value


def _check_values(config: Config) -> Config:
    """What no type says."""
    positive = {
        "seq_len": config.seq_len,
        "batch_size": config.batch_size,
        "micro_batch_size": config.micro_batch_size,
        "max_steps": config.max_steps,
        "max_tokens": config.max_tokens,
        "log_every": config.log_every,
        "val_every": config.val_every,
        "devices": config.devices,
        "num_nodes": config.num_nodes,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "checkpoint.every_minutes": config.checkpoint.every_minutes,
        "checkpoint.keep_last": config.checkpoint.keep_last,
        "checkpoint.keep_best": config.checkpoint.keep_best,
        "checkpoint.keep_every_steps": config.checkpoint.keep_every_steps,
        "data.val_sequences": config.data.val_sequences,
        "data.cache_gb": config.data.cache_gb,
        "data.block_shards": config.data.block_shards,
        "optim.lr": config.optim.lr,
        "optim.clip_norm": config.optim.clip_norm,
        "optim.eps": config.optim.eps,
        "anomaly.spike_z": config.anomaly.spike_z,
        "anomaly.patience": config.anomaly.patience,
        "robust.epsilon": config.robust.epsilon,
        "robust.adversarial_steps": config.robust.adversarial_steps,
        "tensor_parallel_size": config.tensor_parallel_size,
        "fsdp.replicas": config.fsdp.replicas,
        "start_timeout_seconds": config.start_timeout_seconds,
        "collective_timeout_seconds": config.collective_timeout_seconds,
        "watchdog_seconds": config.watchdog_seconds,
    }
    for name, value in positive.items():
        if isinstance(value, int | float) and not 0 < value < float("inf"):
            raise UserError(f"--{name} {value}: expected a number above 0")
    for name in ("start_timeout_seconds", "collective_timeout_seconds"):
        if getattr(config, name) > 1e9:
            raise UserError(f"--{name} {getattr(config, name):g}: expected at most 1e9")
    if config.data.train is not None and config.data.sources is not None:
        raise UserError("--data.train and --data.sources: both are given; give one of them")
    if config.data.stages is not None and config.data.sources is None:
        raise UserError("--data.stages: are weights of --data.sources, which are not given")
    for name, text in _texts(to_tree(config)):
        if text == "":
            raise UserError(f"--{name} needs a value; it is empty")
    if not 0 <= config.seed < 1 << 63:
        raise UserError(f"--seed {config.seed}: expected a whole number from 0 to 2^63 - 1")
    if config.total_steps < 1:
        raise UserError(
            f"--max_tokens {config.max_tokens}: less than one step of {config.batch_size} x {config.seq_len} "
            f"tokens; give at least {config.batch_size * config.seq_len}"
        )
    optim, robust = config.optim, config.robust
    if not 0 <= robust.label_smoothing < 1:
        raise UserError(
            f"--robust.label_smoothing {robust.label_smoothing}: expected at least 0 and less than 1, such as 0.1"
        )
    for name, weight in {"z_loss": robust.z_loss, "embedding_noise": robust.embedding_noise}.items():
        if not 0 <= weight < float("inf"):
            raise UserError(f"--robust.{name} {weight}: expected 0 or more")
    for name, share in {"decay_fraction": optim.decay_fraction, "min_lr_ratio": optim.min_lr_ratio}.items():
        if not 0 <= share <= 1:
            raise UserError(f"--optim.{name} {share}: expected a share from 0 to 1")
    for name, beta in {"beta1": optim.beta1, "beta2": optim.beta2, "average_decay": optim.average_decay or 0}.items():
        if not 0 <= beta < 1:
            raise UserError(f"--optim.{name} {beta}: expected a number from 0 to below 1")
    if not 0 <= optim.weight_decay < float("inf"):
        raise UserError(f"--optim.weight_decay {optim.weight_decay}: expected a number of 0 or more")
    if min(config.optim.warmup_steps, config.data.num_workers, config.anomaly.max_rewinds) < 0:
        raise UserError("--optim.warmup_steps, --data.num_workers and --anomaly.max_rewinds can't be below 0")
    if config.stop_after is not None:
        parse_stop_after(config.stop_after)
    return config
