"""What was asked for, seen to be possible: everything that can be wrong with it is found out here, before another process is started
and before the run folder is touched.
"""

from typing import TYPE_CHECKING

from sslm.config import Config
from sslm.runs.folder import RunFolder, pretrained_folder
from sslm.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from sslm.data.module import DataModule
    from sslm.data.stream.recipe import Recipe
    from sslm.training.module import Objective


def choose_objective(config: Config) -> "tuple[type[Objective], Recipe]":
    from sslm.models.build import read_config
    from sslm.objectives import load_objective
    from sslm.system.typed import typed

    objective, given = load_objective(config.objective.name), config.model
    pretrained = pretrained_folder(config)
    model_type = given.model_type if pretrained is None else read_config(pretrained).model_type
    objective = objective.for_model_type(model_type or objective.default_model["model_type"])
    return objective, objective.make_recipe(typed(objective.recipe_class, "objective", config.objective.settings))


def open_data(config: Config, recipe: "Recipe") -> "DataModule":
    from sslm.data.module import DataModule

    pretrained = pretrained_folder(config)
    data = DataModule(
        config.data,
        recipe,
        seq_len=config.seq_len,
        batch_size=config.batch_size,
        total_steps=config.total_steps,
        seed=config.seed,
        tokenizer=pretrained,
        amendments=RunFolder(config.run_folder).amendments,
    )
    data.setup()
    return data


def choose_model(config: Config, objective: "type[Objective]", data: "DataModule") -> "PreTrainedConfig":
    from sslm.data.corpus.tokenizer import special_ids
    from sslm.models.build import model_config

    return model_config(
        config.model.settings,
        model_type=config.model.model_type,
        default=objective.default_model,
        auto_class=objective.auto_class,
        vocab_size=data.vocab_size,
        seq_len=data.num_positions,
        special_ids=special_ids(data.tokenizer),
        pretrained=pretrained_folder(config),
    )


def build_on_meta(config: Config, objective: "type[Objective]", model_config: "PreTrainedConfig") -> "PreTrainedModel":
    """The model without weights, tried on a few tokens."""
    from sslm.models.blocks import blocks
    from sslm.models.build import check_runs, on_meta
    from sslm.parallel.recompute import parse_recompute

    recomputation = parse_recompute(config.activation_checkpointing, compile_blocks=config.compile)
    model = on_meta(model_config, objective.auto_class)
    check_runs(model, objective.auto_class)
    if not blocks(model) and (config.compile or recomputation.kind != "none"):
        raise UserError(
            f"--model.model_type {model_config.model_type}: its layers can't be told apart, as --compile and "
            f"--activation_checkpointing need; leave these out"
        )
    if config.compile and model_config.model_type == "sslm_lstm":
        raise UserError("--compile: torch can't compile an LSTM; leave it out")
    return model


def check_embedding(config: Config, data: "DataModule", model: "PreTrainedModel") -> None:
    """Word vectors fit the embedding, as far as the file's first line shows it."""
    from sslm.models.word_vectors import check_vectors

    file = config.model.embedding_init
    if file is None:
        return
    if config.model.pretrained is not None:
        raise UserError(
            f"--model.embedding_init {file}: --model.pretrained brings an embedding that is trained already; leave one of the two out"
        )
    check_vectors(file, model, data.tokenizer, config.model.embedding_project)
