"""What a configuration asks for: objective, data and model, refused here if they can't be had or don't go together.

This happens before another process is started, and before the run folder is touched.
"""

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from sslm.config import Config
from sslm.data.corpus import tokenizer as tokenizers
from sslm.data.corpus.tokenizer import identity, special_ids, wrapping
from sslm.data.module import DataModule
from sslm.data.stream.recipe import Recipe
from sslm.models.adapters import Adapters, adapt, check_adapters, trained_in_full
from sslm.models.architecture import check_keys, model_config, read_config
from sslm.models.build import check_runs, on_meta, shallow_model
from sslm.models.compression.aware import rounding_of
from sslm.models.freezing import freeze, parse_freeze
from sslm.models.layers_of import parse_layers, student_config
from sslm.models.quantized import library_of
from sslm.models.weights import sha256_of_weights
from sslm.models.word_vectors import check_vectors
from sslm.objectives import load_objective
from sslm.parallel.launch import Launch
from sslm.parallel.parallelize import parallelize
from sslm.parallel.recompute import parse_recompute
from sslm.runs.folder import RunFolder, pretrained_folder
from sslm.runs.resume import first_batch_size
from sslm.runs.trained import tokenizer_folder
from sslm.system.errors import UserError
from sslm.system.terminal import count, say
from sslm.system.typed import typed
from sslm.training.distillation.cache import TeacherCache
from sslm.training.distillation.layers import depths_of, plan_layers, weights_of_layers
from sslm.training.distillation.teacher import Distillation, LiveTeacher, open_teacher
from sslm.training.layer_decay import check_layer_decay
from sslm.training.module import Objective
from sslm.training.mup import check_mup
from sslm.training.optimizers.build import check_optimizer
from sslm.training.pruning.check import check_prune
from sslm.training.pruning.schedule import schedule_of


def choose_objective(config: Config) -> tuple[type[Objective], Recipe]:
    """Find the objective, as the model's architecture does it, and its recipe with the given settings.

    Settings of objective and model that don't exist are refused here, before anything is read.
    """
    check_adapters(config)
    rounding_of(config)
    check_distill(config)
    objective, pretrained = load_objective(config.objective.name), _config_folder(config)
    model_type = config.model.model_type
    if pretrained is not None:
        known = read_config(pretrained)
        if library_of(known) == "torchao":
            what = "its weights are of 8 bits, which can't be trained"
            raise UserError(f"{pretrained}: {what}; give the model that it was made of")
        model_type = known.model_type
    model_type = model_type or objective.default_model["model_type"]
    objective = objective.for_model_type(model_type)
    check_keys(config.model.settings, model_type, objective.auto_class, pretrained)
    return objective, objective.make_recipe(typed(objective.recipe_class, "objective", config.objective.settings))


def open_data(config: Config, recipe: Recipe) -> DataModule:
    """Open the corpora, prepared if they have to be."""
    data = DataModule(
        config.data,
        recipe,
        seq_len=config.seq_len,
        batch_size=config.batch_size,
        total_steps=config.total_steps,
        seed=config.seed,
        tokenizer=_usual_tokenizer(config),
        amendments=RunFolder(config.run_folder).amendments,
        first_batch_size=first_batch_size(config),
    )
    data.setup()
    return data


def _usual_tokenizer(config: Config) -> str | None:
    """That of the weights to begin with, or else of the teacher; None if there is neither."""
    teacher = config.distill.teacher
    return pretrained_folder(config) or (None if teacher is None else tokenizer_folder(teacher))


def with_epochs(config: Config, data: DataModule) -> Config:
    """Say --max_epochs in steps, now that it is known how much data there is."""
    if config.max_epochs is None:
        return config
    windows = data.train_stream.num_windows
    steps = max(config.batch_sizes.nearest_step(config.max_epochs * windows), 1)
    config = replace(config, max_steps=min(steps, config.max_steps or steps))
    data.total_steps = config.total_steps
    return config


def choose_model(
    config: Config, objective: type[Objective], data: DataModule, teacher: PreTrainedModel | None = None
) -> PreTrainedConfig:
    """Work out the architecture's config; vocabulary and positions follow the data, or all follows the teacher."""
    if config.distill.from_layers is not None:
        whole = read_config(str(_config_folder(config)), "") if teacher is None else teacher.config
        return student_config(whole, parse_layers(config.distill.from_layers))
    chosen = model_config(
        objective.model_keys(data.recipe, data.labels) | config.model.settings,
        model_type=config.model.model_type,
        default=objective.default_model,
        auto_class=objective.auto_class,
        vocab_size=data.vocab_size,
        seq_len=data.num_positions,
        special_ids=special_ids(data.tokenizer),
        pretrained=pretrained_folder(config),
    )
    check_ends(chosen, objective, data)
    return chosen


def check_ends(model: PreTrainedConfig, objective: type[Objective], data: DataModule) -> None:
    """Refuse a tokenizer that ends no text for a model that classifies what it reads up to the end-of-text token."""
    is_asked_at_end = objective.auto_class == "AutoModelForSequenceClassification" and model.is_encoder_decoder
    if (
        is_asked_at_end
        and data.tokenizer is not None
        and data.tokenizer.eos_token_id not in wrapping(data.tokenizer)[1]
    ):
        what = (
            f"a {model.model_type} classifies a text by its end-of-text token, which this tokenizer does not put there"
        )
        raise UserError(f"--data.tokenizer: {what}; give the model's own, or take an encoder or a decoder")


def choose_adapters(config: Config, objective: type[Objective], model_config: PreTrainedConfig) -> Adapters | None:
    """Work out which layers have adapters and what else is trained, or return None if there are to be none."""
    folder, asked = pretrained_folder(config), config.lora
    if asked.rank is None or folder is None:
        return None
    targets = () if asked.targets is None else tuple(name.strip() for name in asked.targets.split(","))
    alpha = 2.0 * asked.rank if asked.alpha is None else asked.alpha
    return Adapters(
        asked.rank, alpha, asked.dropout, targets, trained_in_full(folder, model_config, objective.auto_class)
    )


def build_on_meta(
    config: Config, objective: type[Objective], model_config: PreTrainedConfig, adapters: Adapters | None = None
) -> PreTrainedModel:
    """Build the model without weights, and try it on a few tokens."""
    model = on_meta(model_config, objective.auto_class)
    check_runs(model, objective.auto_class)
    if config.optim.layer_decay is not None:
        check_layer_decay(model)
    if config.optim.mup is not None:
        check_mup(model, config.optim.name)
    if config.optim.mup is not None and config.model.embedding_init is not None:
        raise UserError("--model.embedding_init: not with --optim.mup, which scales fresh weights; leave one out")
    if adapters is not None:
        adapt(model, adapters, config.seed)
    if config.model.freeze is not None:
        freeze(model, parse_freeze(config.model.freeze))  # plan and counts see what is trained
    check_optimizer(config.optim, model)
    check_prune(config, model)
    return model


def make_module(
    config: Config,
    objective: type[Objective],
    recipe: Recipe,
    model: PreTrainedConfig | PreTrainedModel,
    adapters: Adapters | None,
    launch: Launch,
    *,
    total_steps: int,
    micro_batch_size: int | None,
    teacher: PreTrainedModel | None = None,
    cache: TeacherCache | None = None,
) -> Objective:
    """Make the objective that trains a model as the settings say, on the devices of a launch."""
    return objective(
        model,
        recipe,
        optim=config.optim,
        robust=config.robust,
        anomaly=config.anomaly,
        total_steps=total_steps,
        micro_batch_size=micro_batch_size,
        seed=config.seed,
        parallelize=partial(
            parallelize,
            replicas=launch.replicas,
            shares_rows=launch.context_parallel_size > 1,
            shares_places=launch.shares_places,
            is_pipeline=launch.traits.is_pipeline,
            expert_parallel_size=launch.expert_parallel_size,
            reshard_after_forward=config.fsdp.reshard_after_forward,
            prefetch=config.fsdp.prefetch,
            in_bf16=launch.holds_bf16,
            computes_in_bf16=launch.autocasts_to_bf16,
            float8=launch.float8,
            compiled=launch.compiled,
            is_async=launch.is_async,
            recomputation=parse_recompute(config.activation_checkpointing),
        ),
        reduce_gradients=config.fsdp.reduce_gradients,
        static_shapes=launch.compiled != "off" or launch.context_parallel_size > 1 or launch.num_stages > 1,
        chunks_loss=launch.chunks_loss,
        attention=launch.attention,
        frozen=None if config.model.freeze is None else parse_freeze(config.model.freeze),
        adapters=adapters,
        rounding=rounding_of(config),
        distillation=_distillation(config, teacher, cache, launch),
        pruning=schedule_of(config.prune, total_steps),
    )


def _distillation(
    config: Config, teacher: PreTrainedModel | None, cache: TeacherCache | None, launch: Launch
) -> Distillation | None:
    if cache is not None:
        return Distillation(cache, config.distill)
    if teacher is None:
        return None
    return Distillation(LiveTeacher(teacher, config.distill.precision, launch.replicas), config.distill)


def open_cache(config: Config, data: DataModule, teacher: PreTrainedModel | None) -> TeacherCache | None:
    """Open what a teacher said of this run's batches, which then have it; None if there is no cache."""
    asked = config.distill
    if asked.cache is None:
        return None
    cache = TeacherCache(Path(asked.cache))
    num_examples = config.batch_sizes.position_at(config.total_steps)
    cache.check(data, asked.temperature, num_examples, None if teacher is None else sha256_of_weights(teacher))
    data.beside = cache
    return cache


def check_distill(config: Config) -> None:
    """Refuse settings of a teacher if there is none, and a student of its layers if --model says what it is."""
    asked, given = config.distill, config.model
    if asked.teacher is None and asked.cache is None:
        for leaf in fields(asked):
            if (value := getattr(asked, leaf.name)) != leaf.default:
                raise UserError(f"--distill.{leaf.name} {value}: of which teacher? give --distill.teacher")
    if asked.from_layers is None:
        return
    parse_layers(asked.from_layers)
    flag = f"--distill.from_layers {asked.from_layers}"
    if asked.teacher is None:
        raise UserError(f"{flag}: of which teacher? give --distill.teacher")
    other = [name for name in ("model_type", "pretrained", "embedding_init") if getattr(given, name) is not None]
    if other := [*other, *given.settings]:
        raise UserError(f"{flag}: the student is as the teacher is; leave --model.{other[0]} out")


def _config_folder(config: Config) -> str | None:
    """Of the weights that the model begins with; None if it begins with none."""
    asked = config.distill
    takes_layers = asked.teacher is not None and asked.from_layers is not None
    return tokenizer_folder(str(asked.teacher)) if takes_layers else pretrained_folder(config)


def choose_teacher(config: Config, objective: type[Objective], data: DataModule) -> PreTrainedModel | None:
    """Open the teacher, checked against the student; None if there is to be none."""
    if config.distill.teacher is None:
        return None
    problem_type = objective.model_keys(data.recipe, data.labels).get("problem_type")
    teacher = open_teacher(config.distill.teacher, objective.auto_class, problem_type, data)
    say(f"Teacher: {teacher.name}, {count(teacher.model.num_parameters())} parameters")
    return teacher.model


def weightless_teacher(config: Config, objective: type[Objective]) -> PreTrainedModel | None:
    """Build the teacher on the meta device; None if there is to be none, or if a cache has what it said."""
    if config.distill.teacher is None or config.distill.cache is not None:
        return None
    known: Any = read_config(tokenizer_folder(config.distill.teacher), "")
    teacher: Any = on_meta(known, objective.auto_class)
    return teacher.to(known.dtype or torch.float32)  # type: ignore[no-any-return]


def check_compared(
    config: Config, objective: type[Objective], student: PreTrainedModel, teacher: PreTrainedModel | None
) -> None:
    """Refuse to compare layers of a student, which may lack its weights, with a teacher's if that can't be done."""
    if teacher is not None and weights_of_layers(config.distill).are_used:
        probe = shallow_model(student.config, objective.auto_class)
        plan_layers(probe, depths_of(student), teacher, config.distill)


def check_tokenizer(config: Config, data: DataModule) -> None:
    """Warn if ids mean other tokens to the pretrained weights; tokens that were added at the end may differ."""
    folder, ours = pretrained_folder(config), data.tokenizer
    if folder is None or ours is None:
        return
    try:
        theirs = tokenizers.load(folder)
    except UserError:  # the weights came without one: nobody knows
        return
    shared = min(len(ours), len(theirs))
    if identity(ours, shared) != identity(theirs, shared):
        ids, known = ours.get_vocab(), theirs.get_vocab()
        same = sum(ids.get(token) == number for token, number in known.items())
        say(
            f"Warning: --model.pretrained {config.model.pretrained} was trained with another tokenizer: {same:,} of "
            f"its {len(known):,} entries have the same ids in this one. To keep its own, leave --data.tokenizer out, "
            f"and give text or a corpus prepared with it"
        )


def check_embedding(config: Config, data: DataModule, model: PreTrainedModel) -> None:
    """Check that word vectors fit the embedding, as far as their file's first line shows.

    Raises:
        UserError: they don't, or the embedding is trained already.
    """
    file = config.model.embedding_init
    if file is None:
        return
    if config.model.pretrained is not None:
        brings = "--model.pretrained brings an embedding that is trained already"
        raise UserError(f"--model.embedding_init {file}: {brings}; leave one of the two out")
    check_vectors(file, model, data.tokenizer, config.model.embedding_project)
