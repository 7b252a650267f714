"""What a person is told: what will be trained on what, and afterwards where the model is and what to do next."""

import itertools
from collections import Counter
from typing import NamedTuple

from transformers import PreTrainedModel

from sslm.config import Config, SourceConfig
from sslm.data.labelled.baseline import baseline
from sslm.data.labelled.baseline import describe as labels_in_words
from sslm.data.labelled.task import Task
from sslm.data.module import DataModule
from sslm.data.stream.packing import Packed
from sslm.models.attention import attention_in_words
from sslm.parallel.checks import without_effect
from sslm.parallel.launch import Launch
from sslm.runs.export import auto_class_of, own_code
from sslm.runs.folder import RunFolder
from sslm.system.terminal import count, plural, say
from sslm.training.optimizers.groups import exemptions

MAX_EPOCHS = SourceConfig.max_epochs
"""Warn if a run reads its only text more often; each source of a mixture has its own max_epochs."""
UNSPACED_SHARE = 0.2
"""Warn of an objective on words if a larger share of the letters stands in words that nothing divides."""
UNREAD_SHARE = 0.01
"""Windows don't cross shards; of the tokens at shards' ends that stand in none, more than this is worth a word."""


def describe(config: Config, data: DataModule, model: PreTrainedModel) -> None:
    """Say what will be trained on what."""
    stream, steps, task = data.train_stream, config.total_steps, data.recipe.task(config.window_tokens)
    if task is None:
        describe_text(config, data)
    else:
        describe_labels(config, data, task)
    say(f"Model: {config.objective.name}, {model.config.model_type} with {parameters_in_words(model)}")
    if config.optim.weight_decay:
        say(weight_decay_of(model, config.optim.weight_decay))
    examples = config.batch_sizes.position_at(steps)
    epochs = "" if data.mixes else f", {count(examples / stream.num_windows)} epochs"
    trained = plural(examples * config.window_tokens, "token")
    say(f"Training: {plural(steps, 'step', exact=True)} of {batches_in_words(config)}, {trained}{epochs}")
    if data.recipe.moves_words and (share := data.held_out.unspaced_share) > UNSPACED_SHARE:
        what = "of the letters are of scripts that put no space between words, so whole clauses count as words"
        say(f"Warning: {share:.0%} {what}; an objective on tokens may suit the text better (--objective.unit token)")
    for reading in readings(config, data) if data.mixes else []:
        say(f"  {reading}")
        if reading.warning:
            say(f"Warning: {reading.warning}")
    if task is None:
        say(f"Unigram loss: {data.unigram_loss:.4f} nats/token (baseline that only knows token frequencies)")


def batches_in_words(config: Config) -> str:
    """Say how many sequences a step has, and from which step on it has more: `32 sequences (64 from step 11)`."""
    (first, *later), window_tokens = config.batch_sizes.legs, config.window_tokens
    grow = len(config.length_ramp.stages) > 1
    of = {leg: f" of {leg.seq_len or window_tokens} tokens" if grow else "" for leg in (first, *later)}
    more = ", ".join(f"{leg.rows}{of[leg]} from step {leg.step + 1:,}" for leg in later)
    return plural(first.rows, "sequence", exact=True) + of[first] + (f" ({more})" if more else "")


def parameters_in_words(model: PreTrainedModel) -> str:
    """Say how many parameters there are, and how many of them are trained if not all."""
    trained = model.num_parameters(only_trainable=True)
    part = "" if trained == model.num_parameters() else f", of which {count(trained)} are trained"
    return f"{plural(model.num_parameters(), 'parameter')}{part}"


def describe_text(config: Config, data: DataModule) -> None:
    """Say what the text is, and how it is cut into sequences."""
    stream = data.train_stream
    corpora = [source.corpus for source in stream.sources]
    documents = sum(corpus.num_documents for corpus in corpora)
    text = f"Text: {plural(documents, 'document', exact=True)}" if documents else "Ids of other tools"
    tokens = plural(sum(corpus.num_tokens for corpus in corpora), "token")
    say(f"{text}, {tokens}, vocabulary {data.vocab_size:,}")
    held_out = f"{data.held_out.stream.num_windows:,} held out"
    say(f"Sequences of {plural(config.window_tokens, 'token')}: {stream.num_windows:,} to train on, {held_out}")
    for (_, seq_len), (end, _) in itertools.pairwise(data.lengths.stages):
        pieces = data.pieces_of(seq_len)
        left = data.window_len - pieces.num_read
        without = f", without the last {left} of a window's {data.window_len} tokens" if left else ""
        say(f"Before {plural(end, 'token')}: each is cut into {pieces.num} of {seq_len}{without}")
    for source in stream.sources:
        of_it = f" of {source.name}" if source.name else ""
        if source.augment is not None:
            say(f"Noise{of_it}: {source.augment.setting}; in training alone")
        if isinstance(source.windows, Packed):
            say(f"Packing{of_it}: {source.windows.fill:.1%} of the places hold a token, the rest is padding")
        elif source.windows.num_unread > UNREAD_SHARE * source.corpus.num_tokens:
            say(
                f"Warning: {plural(source.windows.num_unread, 'token')}{of_it} will not be used: they are left over "
                f"where shards end; prepare the text again with larger --shard_tokens, or lower --seq_len"
            )


def describe_labels(config: Config, data: DataModule, task: Task) -> None:
    """Say what labels there are, how often each comes, and what is to be beaten."""
    train, val = data.label_counts
    say(f"Training rows: {labels_in_words(data.labels, train)}")
    say(f"Held-out rows: {labels_in_words(data.labels, val)}")
    if (to_beat := baseline(data.labels, train, val, task.is_one_each)) is not None:
        say(f"{to_beat}; its loss is {data.unigram_loss:.4f}")
    else:
        what = "place is that of an answer's edge" if task.targets_are_places else "token is written"
        say(f"Baseline to beat: loss {data.unigram_loss:.4f} (knows nothing but how often each {what})")
    say(f"Sequences of {plural(config.window_tokens, 'token')} at most, vocabulary {data.vocab_size:,}")


def weight_decay_of(model: PreTrainedModel, rate: float) -> str:
    """Say how many parameters decay, and how many of each kind don't."""
    sizes: Counter[str | None] = Counter()
    for parameter, exempt in exemptions(model):
        sizes[exempt] += parameter.numel()
    decayed = sizes.pop(None, 0)
    kinds = ", ".join(f"{kind} {count(size)}" for kind, size in sizes.items())
    left_out = f", {count(sizes.total())} don't ({kinds})" if sizes else ""
    return f"Weight decay {rate:g}: {count(decayed)} parameters decay{left_out}"


def describe_launch(config: Config, launch: Launch, model: PreTrainedModel) -> None:
    """Say on what and how it will be trained, and what was asked for that has no effect under this strategy."""
    devices = plural(launch.devices, "GPU" if launch.accelerator == "gpu" else "CPU process")
    nodes = f"{launch.num_nodes} nodes with {devices} each" if launch.num_nodes > 1 else devices
    say(f"Launch: {nodes}, {launch.strategy_in_words}, precision {launch.precision_in_words}{launch.compiled_in_words}")
    attention = attention_in_words(launch.attention, model, launch.device_type, config.data.document_mask)
    say(f"Attention: {attention}")
    if launch.masks_because is not None:
        slow = "attention gets explicit masks, which are slow on a GPU"
        say(f"Warning: {slow}; --attention varlen: {launch.masks_because}")
    if idle := without_effect(config, launch.strategy):
        say(f"Warning: --strategy {launch.strategy} makes no use of {', '.join(idle)}")


class Reading(NamedTuple):
    """What a run reads of one of its sources."""

    name: str
    """The source's name in metrics; "" if it is the only one."""
    share: float
    """Share of the run's sequences."""
    tokens: int
    epochs: float
    warning: str | None
    """What to do if the run reads it too often, or None if it doesn't."""

    def __str__(self) -> str:
        return f"{self.name}: {self.share:.2%} of the run, {plural(self.tokens, 'token')}, {self.epochs:.2f} epochs"


def readings(config: Config, data: DataModule) -> list[Reading]:
    """Work out what a whole run reads of each source."""
    sequences = config.batch_sizes.position_at(config.total_steps)
    limits = [source.max_epochs for source in config.data.sources or []] or [MAX_EPOCHS]
    found = []
    for (name, (examples, epochs)), limit in zip(data.train_stream.seen(sequences).items(), limits, strict=True):
        instead = "lower its weight, add text, or raise its max_epochs" if name else "add text"
        often = f"{name or 'the text'} will be read {epochs:,.1f} times, more than {limit:g}"
        warning = f"{often}; {instead}, or train for fewer tokens" if epochs > limit else None
        found.append(Reading(name, examples / sequences, examples * config.window_tokens, epochs, warning))
    return found


def longer(config: Config, step: int) -> str:
    """Flags for a run of twice as many steps."""
    tokens = f"--max_tokens {2 * config.batch_sizes.position_at(step) * config.window_tokens}"
    if config.max_tokens is None:
        return f"--max_steps {2 * step}"
    return tokens if config.max_steps is None else f"--max_steps {2 * step} {tokens}"


def summarise(config: Config, run: RunFolder, data: DataModule, step: int) -> None:
    """Say where the model of a run is that has taken `step` steps, how to load it, how to go on, what to try next."""
    measured = [row for row in run.rows() if "val/loss" in row]
    say()
    if measured:
        first, last = measured[0], measured[-1]
        per_byte = f", {last['val/bits_per_byte']:.3f} bits/byte" if "val/bits_per_byte" in last else ""
        unit, baseline_name = (
            (" nats/token", "unigram loss") if data.recipe.task(config.window_tokens) is None else ("", "baseline")
        )
        losses = f"{first['val/loss']:.4f} -> {last['val/loss']:.4f}{unit}{per_byte}"
        say(f"Held-out loss {losses}; {baseline_name} {data.unigram_loss:.4f}")
    if without := sum("without_targets" in row for row in run.rows()):
        say(f"Warning: {plural(without, 'step')} had nothing to predict (without_targets in metrics.jsonl)")
    say(f"Model:    {run.export}", to_copy=True)
    classes = [auto_class_of(run.export), *(["AutoTokenizer"] if data.tokenizer is not None else [])]
    say(f"  from transformers import {', '.join(classes)}")
    for name, loader in zip(("model", "tokenizer"), classes, strict=False):
        say(f"  {name} = {loader}.from_pretrained({str(run.export)!r}{own_code(run.export)})", to_copy=True)
    say(f"Curves:   {run.curves}", to_copy=True)
    say(f"Continue: the same command with {longer(config, step)}")
    if config.data.train is None and not config.data.sources:
        say("Next:     python -m sslm.train --data.train YOUR.txt --run_dir runs/mine", to_copy=True)
