"""An architecture of transformers and its config: which there are, what a user may set, and what must fit."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from sslm.models.head import UNPADDED
from sslm.models.lstm import LstmForCausalLM  # its module makes transformers know it
from sslm.models.masks import first_position, num_positions
from sslm.models.quantized import check_readable
from sslm.system.errors import UserError, nearest, one_line, short
from sslm.system.other_names import SETTINGS

Keys = dict[str, Any]
"""Keys of a config and their values."""


Ids = dict[str, int | None]
"""Keys of a config for special tokens, and their ids."""


VOCABULARY_MULTIPLE = 64


HALVES = ("encoder", "decoder")


LANGUAGE_MODELS: dict[str, Mapping[str, str]] = {
    "AutoModelForSeq2SeqLM": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "AutoModelForMaskedLM": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "AutoModelForCausalLM": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}


ARCHITECTURES = LANGUAGE_MODELS | {
    "AutoModelForSequenceClassification": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForTokenClassification": MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "AutoModelForQuestionAnswering": MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
}
"""Auto class -> model_type -> name of the class."""


EXAMPLES = {
    "AutoModelForCausalLM": "llama, gpt2, qwen3, mistral",
    "AutoModelForMaskedLM": "bert, roberta, modernbert",
    "AutoModelForSeq2SeqLM": "t5, bart, t5gemma",
    "AutoModelForSequenceClassification": "bert, modernbert, llama",
    "AutoModelForTokenClassification": "bert, modernbert, roberta",
    "AutoModelForQuestionAnswering": "bert, modernbert, roberta",
}


def model_config(
    settings: Keys,
    *,
    model_type: str | None,
    default: Keys,
    auto_class: str,
    vocab_size: int,
    seq_len: int,
    special_ids: Ids,
    pretrained: str | None = None,
) -> PreTrainedConfig:
    """Work out an architecture's config.

    Args:
        settings: keys given by the user, which win.
        model_type: architecture asked for, or None for the default's. Another than the default's discards its keys.
        default: model_type and keys of the objective's default model.
        auto_class: transformers' auto class that must know the architecture (`AutoModelForCausalLM`).
        vocab_size: entries of the tokenizer; the model's vocabulary unless `settings` has one.
        seq_len: tokens of the longest sequence; the model's positions unless `settings` has them.
        special_ids: bos_token_id, eos_token_id, pad_token_id of the tokenizer.
        pretrained: folder or hub name of a checkpoint whose config is taken, but for what is given here.

    Raises:
        UserError: an unknown architecture or key, values the architecture refuses, too few positions or entries.
    """
    if pretrained is None:
        kind = model_type or default["model_type"]
        keys = default if kind == default["model_type"] else {}
        config = _fresh_config(kind, keys, settings, auto_class, vocab_size, seq_len, special_ids)
    else:
        config = _pretrained_config(pretrained, model_type, settings, auto_class, vocab_size, special_ids)
    check_fits(config, vocab_size, seq_len)
    return config


def check_keys(settings: Keys, model_type: str, auto_class: str, pretrained: str | None = None) -> None:
    """Refuse keys that an architecture doesn't have: that of `model_type`, or of a checkpoint."""
    _check_keys(
        _config_class(model_type, auto_class) if pretrained is None else type(read_config(pretrained)), settings
    )


def _pretrained_config(
    pretrained: str, model_type: str | None, settings: Keys, auto_class: str, vocab_size: int, special_ids: Ids
) -> PreTrainedConfig:
    config = read_config(pretrained)
    if model_type not in (None, config.model_type):
        raise UserError(f"--model.model_type {model_type}: {pretrained} is a {config.model_type}; leave the flag out")
    _check_has_model(type(config), auto_class, f"--model.pretrained {pretrained}: {config.model_type}")
    _check_keys(type(config), settings)
    follow = {**special_ids, **(_vocabulary_keys(vocab_size) if vocab_size > config.vocab_size else {})}
    try:
        known = {key: value for key, value in follow.items() if hasattr(config, key) or key == UNPADDED}
        for key, value in (known | settings).items():
            setattr(config, key, value)
    except Exception as error:  # each architecture has its own checks and exception types
        raise UserError(f"--model: {config.model_type} refuses these settings ({brief(error)})") from None
    set_vocab_size(config, config.vocab_size)
    return config


def _fresh_config(
    model_type: str, default: Keys, settings: Keys, auto_class: str, vocab_size: int, seq_len: int, special_ids: Ids
) -> PreTrainedConfig:
    config_class = _config_class(model_type, auto_class)
    _check_keys(config_class, settings)
    positions = seq_len + first_position(model_type, special_ids.get("pad_token_id"))
    follow = {"max_position_embeddings": positions, **special_ids, **_start_ids(config_class, special_ids)}
    follow |= {} if "vocab_size" in settings else _vocabulary_keys(vocab_size)
    known = _keys(config_class) | {UNPADDED, "decoder_start_token_id"}
    follow = {key: value for key, value in follow.items() if _canonical(config_class, key) in known}
    if auto_class == "AutoModelForCausalLM" and "is_decoder" in known:
        follow["is_decoder"] = True
    follow |= {key: value for key, value in default.items() if key != "model_type"}
    keys: Keys = {_canonical(config_class, key): value for key, value in [*follow.items(), *settings.items()]}
    for half in HALVES:  # T5Gemma has a config for each
        if half in known:
            ids = {key: special_ids.get(key) for key in ("pad_token_id", "eos_token_id")}
            ids["bos_token_id"] = keys["decoder_start_token_id"]  # what its decoder begins with
            keys[half] = {"vocab_size": keys["vocab_size"], **ids, **settings.get(half, {})}
    try:
        return config_class(**keys)
    except Exception as error:  # each architecture has its own checks and exception types
        raise UserError(f"--model: {model_type} refuses these settings: {one_line(error, None)}") from None


def _vocabulary_keys(vocab_size: int) -> dict[str, int]:
    """Round up to what matrix units like; what is added is never predicted, and cut off when the model is exported."""
    rounded = -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return {"vocab_size": rounded} | ({UNPADDED: vocab_size} if rounded != vocab_size else {})


def set_vocab_size(config: PreTrainedConfig, size: int) -> None:
    """Set it in a config, and in those of the encoder and the decoder if it has them."""
    for part in (config, *(getattr(config, half, None) for half in HALVES)):
        if isinstance(part, PreTrainedConfig):
            part.vocab_size = size


def _start_ids(config_class: type[PreTrainedConfig], special_ids: Ids) -> Ids:
    """Let the decoder of an encoder–decoder model begin with the kind of token that its family begins with."""
    family = config_class()
    if not family.is_encoder_decoder:
        return {}
    own = getattr(family, "decoder_start_token_id", None)
    same = (key for key in ("pad_token_id", "eos_token_id", "bos_token_id") if own == getattr(family, key, None))
    start = special_ids.get("pad_token_id" if own is None else next(same, "pad_token_id"))
    return {"decoder_start_token_id": start, "forced_eos_token_id": special_ids.get("eos_token_id")}


def read_config(pretrained: str, flag: str = "--model.pretrained ") -> PreTrainedConfig:
    """Read the config of a checkpoint, a folder or a hub name.

    Raises:
        UserError: it can't be read, or the library that its weights need is missing; names the flag.
    """
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(pretrained, trust_remote_code=False)
    except Exception as error:  # missing files, no network, broken JSON: all are about what was given
        raise UserError(
            f"{flag}{pretrained}: no model could be loaded from it; expected a run folder, a folder "
            f"with config.json and weights, or a hub name ({brief(error)})"
        ) from None
    check_readable(config, f"{flag}{pretrained}")
    return config


def _known_class(model_type: str) -> type[PreTrainedConfig]:
    if model_type not in CONFIG_MAPPING:
        what = f"transformers {transformers.__version__} knows no such architecture"
        raise UserError(f"--model.model_type {model_type}: {what}{nearest(model_type, CONFIG_MAPPING.keys())}")
    config_class: type[PreTrainedConfig] = CONFIG_MAPPING[model_type]
    return config_class


def _config_class(model_type: str, auto_class: str) -> type[PreTrainedConfig]:
    config_class = _known_class(model_type)
    _check_has_model(config_class, auto_class, f"--model.model_type {model_type}:")
    return config_class


def _check_has_model(config_class: type[PreTrainedConfig], auto_class: str, what: str) -> None:
    known = getattr(transformers, auto_class)._model_mapping
    # BART counts as a masked LM too
    one_half = auto_class in ("AutoModelForMaskedLM", "AutoModelForCausalLM")
    both_halves = one_half and config_class().is_encoder_decoder
    if config_class not in known or both_halves:
        has = f"has no model for this objective ({auto_class}); {EXAMPLES[auto_class]} and others have"
        raise UserError(f"{what} {has}")


def auto_class_of(model_type: str) -> str:
    """Auto class of what an architecture is first of all: a BART has a masked-LM head too, but it writes.

    Raises:
        UserError: transformers knows no such architecture, or no language model of it.
    """
    config_class = _known_class(model_type)
    for auto_class in LANGUAGE_MODELS:
        if config_class in getattr(transformers, auto_class)._model_mapping:
            return auto_class
    raise UserError(f"--model.model_type {model_type}: transformers has no language model of it")


def _keys(config_class: type[PreTrainedConfig]) -> set[str]:
    declared = {field.name for field in dataclasses.fields(config_class)} - {"transformers_version", "architectures"}
    if hasattr(config_class(), "tie_word_embeddings"):  # T5 declares it nowhere
        declared.add("tie_word_embeddings")
    return declared


def _canonical(config_class: type[PreTrainedConfig], key: str) -> str:
    """Name under which a config stores a key: GPT-2 calls hidden_size n_embd."""
    return str(config_class.attribute_map.get(key, key))


def _check_keys(config_class: type[PreTrainedConfig], settings: Keys) -> None:
    known = _keys(config_class) | set(config_class.attribute_map)
    for key in settings:
        if key not in known:
            usual = {other: name.removeprefix("model.") for other, name in SETTINGS.items()}
            known_as = {other: name for other, name in usual.items() if name in known}
            close = nearest(key, known, known_as)
            raise UserError(f"--model.{key}: {config_class.model_type} has no such key{close}")


def check_fits(config: PreTrainedConfig, vocab_size: int, seq_len: int) -> None:
    """Refuse a model with fewer entries than the tokenizer, or fewer positions than a sequence has.

    Raises:
        UserError: it says what would fit.
    """
    positions = num_positions(config)
    if positions is not None and positions < seq_len:
        first = first_position(config.model_type, config.pad_token_id)
        raise UserError(
            f"--seq_len {seq_len}: the model has {positions} positions; give --seq_len {positions}, "
            f"or a model with --model.max_position_embeddings {seq_len + first}"
        )
    if not isinstance(getattr(config, "vocab_size", None), int):
        why = "has no vocabulary of its own, it is no model of text alone; take its text part, as in gemma3_text"
        raise UserError(f"--model.model_type {config.model_type}: {why}")
    if getattr(config, "num_hidden_layers", 1) < 1:
        raise UserError(f"--model.num_hidden_layers {config.num_hidden_layers}: expected at least 1")
    if config.vocab_size < vocab_size:
        what = f"the tokenizer has {vocab_size} entries; leave the key out, or give at least that"
        raise UserError(f"--model.vocab_size {config.vocab_size}: {what}")


def class_named(name: str) -> type[PreTrainedModel]:
    """Look up the class that a config's `architectures` names, among transformers' models and ours.

    Raises:
        UserError: there is no such model.
    """
    if name == LstmForCausalLM.__name__:
        return LstmForCausalLM
    if not any(name in names.values() for names in ARCHITECTURES.values()):
        raise UserError(f"{short(name)}: transformers {transformers.__version__} has no such language model")
    found: type[PreTrainedModel] = getattr(transformers, name)
    return found


def auto_class_named(name: str) -> str:
    """transformers' auto class of a model's class: `T5ForConditionalGeneration` -> `AutoModelForSeq2SeqLM`."""
    return next((auto for auto, names in ARCHITECTURES.items() if name in names.values()), "AutoModelForCausalLM")


def brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
