"""Low-rank adapters (LoRA; Hu et al. 2021, arXiv:2106.09685), by peft: a model's weights stay, small matrices learn.

Beside a linear layer W of a block, which stays, stands (alpha / rank) B A: A [rank, in] and B [out, rank] are trained,
B from zeros. What the pretrained weights lacked, such as a task's head, BERT's pooler or new rows of the vocabulary, is
trained as a whole, and so is a task's head in any case. Checkpoints hold the model with its adapters; `merged` adds
them up, to a model without any.
"""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sslm.config import Config
from sslm.models.architecture import LANGUAGE_MODELS, auto_class_named, read_config
from sslm.models.blocks import blocks
from sslm.models.head import UNPADDED
from sslm.models.weights import tied_to
from sslm.system.errors import UserError, nearest, one_line, short
from sslm.system.random_words import key64

ADAPTERS_LR = 1e-3
"""Peak learning rate of a run that names none: adapters take about ten times that of whole weights."""
ADAPTER = "default"
"""peft's name of a model's only adapter."""
TASK_TYPES = {
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
}
"""Auto class -> peft's name of what its models do; it has none for masked language models."""


class Adapters(NamedTuple):
    """A model's adapters."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]
    """Names of the layers that have one, or their last parts; empty: all linear layers of the blocks."""
    trained: tuple[str, ...]
    """Names of the weights that are trained as a whole."""


def check_adapters(config: Config) -> None:
    """Raise UserError if there can't be adapters: peft is missing, or there are no trained weights to adapt."""
    asked = config.lora
    if asked.rank is None:
        if other := next((name for name in ("alpha", "dropout", "targets") if getattr(asked, name)), None):
            raise UserError(f"--lora.{other} {getattr(asked, other)}: needs adapters; give --lora.rank 8, too")
        return
    flag = f"--lora.rank {asked.rank}"
    if config.model.pretrained is None:
        raise UserError(f"{flag}: adapts a trained model, and none is given; give --model.pretrained")
    check_installed(flag)


def check_installed(what: str) -> None:
    """Raise UserError if peft is missing."""
    if find_spec("peft") is None:
        raise UserError(f"{what}: needs peft, which is not installed; pip install 'sslm[lora]'")


def trained_in_full(folder: str, config: PreTrainedConfig, auto_class: str) -> tuple[str, ...]:
    """Name the weights that are trained beside the adapters: what a checkpoint lacks, rows too, and a task's head.

    Args:
        folder: the checkpoint's, or its name on the hub; its weights are not read, only their names.
        config: of the model that is to be trained.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, report = getattr(transformers, auto_class).from_pretrained(
            folder,
            config=config,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    except Exception as error:  # missing, cut or foreign files
        raise UserError(f"--model.pretrained {folder}: its weights can't be read ({one_line(error)})") from None
    weights = [name for name, _ in model.named_parameters()]
    lacking = {*report["missing_keys"]}
    if _has_new_tokens(config, folder):
        lacking |= {name for name, *_ in report["mismatched_keys"]}
    return tuple(name for name in weights if name in lacking or _is_of_head(model, name, auto_class))


def _has_new_tokens(config: PreTrainedConfig, folder: str) -> bool:
    """Whether a vocabulary has rows that the checkpoint's lacks, but for a decoder's padding, which is never read."""
    had, size = read_config(folder).vocab_size, getattr(config, UNPADDED, None) or config.vocab_size
    return bool(size > had + (config.pad_token_id == had and not config.is_encoder_decoder))


def _is_of_head(model: PreTrainedModel, name: str, auto_class: str) -> bool:
    body = f"{model.base_model_prefix}."
    return auto_class not in LANGUAGE_MODELS and model.base_model is not model and not name.startswith(body)


def adapt(model: PreTrainedModel, adapters: Adapters, seed: int) -> None:
    """Put adapters beside a model's layers, in place, and let nothing be trained but them and `adapters.trained`.

    Args:
        model: may be on the meta device: then its adapters are too.
        seed: of A's first values, which depend on it and on their names.

    Raises:
        UserError: no layer has such a name, or peft refuses the architecture.
    """
    from peft import inject_adapter_in_model

    weights = dict(model.named_parameters(remove_duplicate=False))
    is_meta = next(iter(weights.values())).is_meta
    names = target_layers(model, adapters)
    try:
        inject_adapter_in_model(_peft_config(model, adapters, names), model, ADAPTER, low_cpu_mem_usage=is_meta)
    except (ValueError, NotImplementedError, TypeError) as error:
        raise UserError(f"--lora.rank: {model.config.model_type} can't have adapters ({one_line(error)})") from None
    for name in adapters.trained:
        weights[name].requires_grad_(True)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if is_of_adapter(name) and not is_meta:
                weight.copy_(first_values(name, weight.shape, seed))


def target_layers(model: PreTrainedModel, adapters: Adapters) -> list[str]:
    """Name the layers that have an adapter; those that are trained as a whole have none.

    Raises:
        UserError: there are none, or none of a name that is asked for.
    """
    inside = {module for block in blocks(model) for module in block.modules()}
    in_full = {name.rpartition(".")[0] for name in adapters.trained}
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module in inside and name not in in_full
    ]
    if not linear:
        what = f"{model.config.model_type} has no blocks with linear layers"
        raise UserError(f"--lora.rank {adapters.rank}: {what}; leave it out")
    for wanted in adapters.targets:
        if not any(_is_named(name, wanted) for name in linear):
            there = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
            what = f"no linear layer of the blocks has the name {short(wanted)!r}{nearest(wanted, there)}"
            raise UserError(f"--lora.targets: {what}; there are {', '.join(there)}")
    return [name for name in linear if not adapters.targets or any(_is_named(name, it) for it in adapters.targets)]


def _is_named(name: str, wanted: str) -> bool:
    return f".{name}".endswith(f".{wanted}")


def _peft_config(model: PreTrainedModel, adapters: Adapters, layers: list[str], **more: Any) -> Any:
    from peft import LoraConfig

    alpha: Any = int(adapters.alpha) if adapters.alpha.is_integer() else adapters.alpha  # peft calls it an int
    return LoraConfig(
        r=adapters.rank,
        lora_alpha=alpha,
        lora_dropout=adapters.dropout,
        target_modules=layers,
        fan_in_fan_out=isinstance(model.get_submodule(layers[0]), Conv1D),  # its weights are [in, out]
        **more,
    )


def is_of_adapter(name: str) -> bool:
    """Whether a weight of this name is an adapter's."""
    return f".{ADAPTER}." in name and (".lora_A." in name or ".lora_B." in name)


def plain_name(name: str) -> str:
    """Name of a model's own weight in the model without adapters."""
    return name.replace(".base_layer.", ".")


def first_values(name: str, shape: torch.Size, seed: int) -> Tensor:
    """Draw an adapter's weight, from seed and name alone: B is 0, A uniform, as a linear layer of torch."""
    if ".lora_B." in name:
        return torch.zeros(shape)
    generator, limit = torch.Generator().manual_seed(key64(seed, name)), 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-limit, limit, generator=generator)


# ------------------------------------------------------------------------------------------------ what comes of it


def merged(model: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add adapters to the layers that they stand beside; the result has the names of a model without adapters.

    Args:
        model: with adapters, on the meta device; it gets the weights.
        weights: of the model, each under one name; those with an adapter change.
    """
    from peft.tuners.lora import LoraLayer

    model.load_state_dict(weights, strict=False, assign=True)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    tensors = model.state_dict()
    return {plain_name(name): tensors[name] for name in weights if not is_of_adapter(name)}


def adapter_weights(model: PreTrainedModel, adapters: Adapters) -> dict[str, Tensor]:
    """Name and weight, as the model has it, of everything that peft's folder of an adapter holds, shared ones too."""
    whole = _whole_modules(model, adapters)
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if is_of_adapter(name) or any(name.startswith(f"{module}.") for module in whole)
    }


def _whole_modules(model: PreTrainedModel, adapters: Adapters) -> list[str]:
    """Name the modules that are trained as a whole, those inside others left out; peft copies what modules share."""
    shared = [name for name, source in tied_to(model).items() if source in adapters.trained]
    owners = {name.rpartition(".")[0] for name in (*adapters.trained, *shared)} - {""}
    return sorted(name for name in owners if not any(name.startswith(f"{other}.") for other in owners))


def write_adapter(
    folder: Path, model: PreTrainedModel, adapters: Adapters, weights: dict[str, Tensor], base: str | None
) -> None:
    """Write peft's own folder, which `PeftModel.from_pretrained` puts onto the pretrained model.

    Args:
        model: without adapters; it may be on the meta device.
        weights: `adapter_weights`, with their values.
        base: the pretrained model, as it was given.
    """
    folder.mkdir()
    _peft_config(
        model,
        adapters,
        target_layers(model, adapters),
        task_type=TASK_TYPES.get(auto_class_named(type(model).__name__)),
        modules_to_save=_whole_modules(model, adapters) or None,
        base_model_name_or_path=base,
        inference_mode=True,
    ).save_pretrained(folder)
    named = {f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": tensor for name, tensor in weights.items()}
    apart = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in named.items()}
    save_file(apart, folder / "adapter_model.safetensors")


def read_adapters(state: dict[str, Any]) -> Adapters | None:
    """Adapters of a checkpoint, as its state.json has them, or None if it has none; UserError if that is damaged."""
    if (found := state.get("adapters")) is None:
        return None
    try:
        rank, alpha, dropout = int(found["rank"]), float(found["alpha"]), float(found["dropout"])
        targets, trained = (tuple(str(name) for name in found[key]) for key in ("targets", "trained"))
    except (KeyError, TypeError, ValueError):
        raise UserError("state.json: its adapters can't be read") from None
    return Adapters(rank, alpha, dropout, targets, trained)
