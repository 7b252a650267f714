"""A trained model, wherever it lies: in a run, a checkpoint, or any Hugging Face folder."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from sslm.config.prune import UNITS
from sslm.data.corpus import tokenizer as tokenizers
from sslm.data.corpus.tokenizer import Tokenizer
from sslm.models.adapters import Adapters, adapt, adapter_weights, check_installed, merged, read_adapters, write_adapter
from sslm.models.architecture import (
    LANGUAGE_MODELS,
    auto_class_named,
    auto_class_of,
    class_named,
    read_config,
    set_vocab_size,
)
from sslm.models.compression.pruning.shrink import shrink_weights
from sslm.models.head import UNPADDED
from sslm.models.masks import num_positions
from sslm.models.task import NUMBER
from sslm.models.weights import tied_names, tied_to
from sslm.runs.checkpoints.folder import read_state
from sslm.runs.checkpoints.shards import index
from sslm.runs.checkpoints.tensors import read_weights
from sslm.runs.find import find_checkpoint, is_checkpoint
from sslm.runs.folder import RunFolder, run_of, settings_in, window_tokens_in
from sslm.system.errors import UserError, one_line

WEIGHTS, AVERAGES = "model.model.", "average.model."
"""Prefixes of names in a checkpoint."""
USUAL = {
    "AutoModelForCausalLM": "causal_lm",
    "AutoModelForMaskedLM": "masked_lm",
    "AutoModelForTokenClassification": "tagging",
    "AutoModelForQuestionAnswering": "extraction",
}
"""Auto class -> the objective that a model of unknown origin was probably trained with."""


class Trained(NamedTuple):
    """A trained model and what is known of it."""

    name: str
    """As it was typed."""
    folder: str
    """Of its config and its tokenizer, or its hub name."""
    model: PreTrainedModel
    """On the CPU, in evaluation mode, its weights in the dtype that they were saved in."""
    tokenizer: Tokenizer
    auto_class: str
    """transformers' auto class of it: AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM."""
    objective: str
    """What it was trained to do (causal_lm …): as the run says, or else what its architecture suggests."""
    seq_len: int | None
    """Tokens of the longest sequence that it was trained on, or else that it takes; None if nothing tells."""
    settings: dict[str, Any]
    """Those of the run, as its config.yaml has them; empty if it is no run's."""
    step: int | None
    """Optimizer steps of the run; None if it is no run's."""


def open_trained(path: str, last: bool = False, prefers_export: bool = False) -> Trained:
    """Open a run folder (its newest checkpoint, else its export), a checkpoint, a Hugging Face folder, or a hub name.

    Args:
        path: as typed.
        last: whether to take a run's last weights even if it averages them.
        prefers_export: whether to take a run's export if there is one, which may be its best checkpoint.

    Raises:
        UserError: nothing there, it is damaged, or its tokenizer is missing.
    """
    transformers.logging.set_verbosity_error()  # what is missing is said in a sentence
    transformers.logging.disable_progress_bar()
    run = RunFolder(Path(path))
    has_export = (run.export / "config.json").is_file()
    if prefers_export and has_export:
        return _of_folder(path, str(run.export), _settings(run))
    if is_checkpoint(run.path) or any(run.checkpoints.glob("step-*")):
        return _of_checkpoint(path, find_checkpoint(path), last)
    if has_export:
        return _of_folder(path, str(run.export), _settings(run))
    return _of_folder(path, path, {})


def open_language_model(path: str, last: bool = False) -> Trained:
    """Open what predicts tokens, as `open_trained` does; UserError if it was taught to label texts."""
    trained = open_trained(path, last)
    if trained.auto_class not in LANGUAGE_MODELS:
        what = f"{path}: was fine-tuned for {trained.objective}, and predicts no tokens"
        raise UserError(f"{what}; sslm predict {path} --data FILE --out FILE says what labels rows have")
    return trained


def tokenizer_folder(path: str) -> str:
    """Find the folder, or the hub name, of the tokenizer of what `open_trained` opens, preferring exports."""
    run = RunFolder(Path(path))
    if (run.export / "config.json").is_file():
        return str(run.export)
    if is_checkpoint(run.path) or any(run.checkpoints.glob("step-*")):
        return str(find_checkpoint(path) / "model")
    return path


def check_there(path: str) -> None:
    """Raise UserError, without opening it, if a path is no trained model; its weights may still be damaged."""
    run = RunFolder(Path(path))
    if not is_checkpoint(run.path) and not any(run.checkpoints.glob("step-*")):
        read_config(str(run.export) if (run.export / "config.json").is_file() else path, "")


def _of_checkpoint(name: str, checkpoint: Path, last: bool) -> Trained:
    model, weights = checkpoint_model(checkpoint, last)
    model = type(model).from_pretrained(None, config=model.config, state_dict=weights)
    tokenizer = tokenizers.load(checkpoint / "model", "")
    settings, step = _settings(run_of(checkpoint)), read_state(checkpoint)["step"]
    return _known(name, str(checkpoint / "model"), model, tokenizer, settings, step)


def of_weights(
    name: str,
    folder: Path,
    weights: dict[str, Tensor],
    settings: dict[str, Any],
    step: int,
    adapters: Adapters | None = None,
) -> Trained:
    """Make a model of weights in memory.

    Args:
        name: what it is called.
        folder: of its config and its tokenizer, as a checkpoint keeps them.
        weights: by name, whole.
        settings: those of its run.
        step: optimizer steps of the run.
        adapters: those that are among the weights.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model, weights = _of_weights(config, weights, adapters, _prunes_units(settings.get("prune")))
    model = type(model).from_pretrained(None, config=model.config, state_dict=weights)
    return _known(name, str(folder), model, tokenizers.load(folder, ""), settings, step)


def _of_folder(name: str, folder: str, settings: dict[str, Any]) -> Trained:
    config = read_config(folder, "")
    architecture = next(iter(getattr(config, "architectures", None) or []), None)
    kind: Any = class_named(architecture) if architecture else getattr(transformers, auto_class_of(config.model_type))
    tokenizer = tokenizers.load(folder, "")  # first, as it is soon known to be missing
    try:
        model, info = kind.from_pretrained(folder, trust_remote_code=False, dtype="auto", output_loading_info=True)
    except Exception as error:  # missing or damaged files, shapes: all are about the folder
        raise UserError(f"{name}: no model could be loaded from it ({one_line(error)})") from None
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{name}: has no weights for {', '.join(missing[:3])}{' …' if missing[3:] else ''}")
    return _known(name, folder, model, tokenizer, settings, None)


def _known(
    name: str, folder: str, model: PreTrainedModel, tokenizer: Tokenizer, settings: dict[str, Any], step: int | None
) -> Trained:
    auto_class = auto_class_named(type(model).__name__)
    written = settings.get("objective", {}).get("name")
    return Trained(
        name,
        folder,
        model.eval(),
        tokenizer,
        auto_class,
        written if isinstance(written, str) else _usual(auto_class, model.config, tokenizer),
        window_tokens_in(settings) or num_positions(model.config),
        settings,
        step,
    )


def _usual(auto_class: str, config: PreTrainedConfig, tokenizer: Tokenizer) -> str:
    """Name what a model is usually trained to do; an encoder–decoder with sentinels corrupts spans, others denoise."""
    if auto_class == "AutoModelForSequenceClassification":
        return "regression" if config.problem_type == NUMBER else "classification"
    if auto_class in USUAL:
        return USUAL[auto_class]
    return "span_corruption" if "<extra_id_0>" in tokenizer.get_vocab() else "denoising"


def _settings(run: RunFolder) -> dict[str, Any]:
    return settings_in(str(run.path), run.config.read_bytes()) if run.config.is_file() else {}


def checkpoint_model(checkpoint: Path, last: bool = False) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Return a checkpoint's model, on the meta device, and its weights, with the tokenizer's entries alone.

    Args:
        checkpoint: its folder.
        last: whether to take the last weights even if there is an average of them.
    """
    config = AutoConfig.from_pretrained(checkpoint / "model", trust_remote_code=False)
    model, adapters = _on_meta(config), read_adapters(read_state(checkpoint))
    if adapters is not None:
        check_installed(f"{checkpoint}: has adapters, which")
        adapt(model, adapters, 0)
    tied = tied_names(model)
    shapes = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    weights, pruned = read_weights(checkpoint, shapes, _prefix(checkpoint, last)), read_state(checkpoint).get("pruning")
    return _of_weights(config, weights, adapters, _prunes_units(pruned))


def _of_weights(
    config: PreTrainedConfig, weights: dict[str, Tensor], adapters: Adapters | None, prunes_units: bool
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Add adapters to the weights; leave out what a vocabulary was rounded up by, and units that are pruned."""
    if adapters is not None:
        adapted = _on_meta(config)
        adapt(adapted, adapters, 0)
        weights = merged(adapted, weights)
    model, weights = _unpadded(config, weights)
    return shrink_weights(model, weights) if prunes_units else (model, weights)


def _prunes_units(settings: Any) -> bool:
    """Whether heads, neurons or layers are pruned as a whole."""
    return isinstance(settings, dict) and settings.get("sparsity") is not None and settings.get("pattern") in UNITS


def _unpadded(config: PreTrainedConfig, weights: dict[str, Tensor]) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Make a model on the meta device, without what its vocabulary was rounded up by, and leave that out of weights."""
    if (unpadded := config.__dict__.pop(UNPADDED, None)) is None:
        return _on_meta(config), weights
    set_vocab_size(config, unpadded)
    model = _on_meta(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tokens = {name: tuple(map(slice, shapes.get(name, tensor.shape))) for name, tensor in weights.items()}
    return model, {name: weights[name][places].contiguous() for name, places in tokens.items()}  # padding comes after


def export_adapter(checkpoint: Path, folder: Path, base: str | None, last: bool = False) -> None:
    """Write the adapters of a checkpoint that has some as peft's own folder; of another, do nothing.

    Args:
        base: the pretrained model that they stand on, as it was given.
        last: as for `checkpoint_model`.
    """
    if (adapters := read_adapters(read_state(checkpoint))) is None:
        return
    config = AutoConfig.from_pretrained(checkpoint / "model", trust_remote_code=False)
    model = _on_meta(config)
    adapt(model, adapters, 0)
    shapes, first = adapter_weights(model, adapters), tied_to(model)
    read = read_weights(checkpoint, {first.get(n, n): t for n, t in shapes.items()}, _prefix(checkpoint, last))
    plain, weights = _unpadded(config, {name: read[first.get(name, name)] for name in shapes})
    write_adapter(folder, plain, adapters, weights, base)


def _prefix(checkpoint: Path, last: bool) -> str:
    """What names of the weights begin with: those of their average, if there is one and the last aren't asked for."""
    is_averaged = any(name.startswith(AVERAGES) for name in index(checkpoint))
    return AVERAGES if is_averaged and not last else WEIGHTS


def _on_meta(config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        return class_named((config.architectures or ["no architecture"])[0])(config)
