"""From flags to a model that is ready to write."""

import argparse
from collections.abc import Callable

import torch
import transformers
from torch import nn

from sslm.cli.generate.chat import Chat
from sslm.cli.generate.flags import temperature_of
from sslm.cli.generate.tasks import Continuing, Settings, Task, task_class
from sslm.cli.generate.texts import Texts
from sslm.models.generation.draws import Sampling
from sslm.runs.trained import Trained, open_language_model
from sslm.system.errors import UserError

DTYPES = {"32": torch.float32, "bf16-true": torch.bfloat16}


def open_task(options: argparse.Namespace) -> Task:
    """Open a model, put it onto its device, and choose what it does with prompts.

    Raises:
        UserError: there is no such model or device, or a flag is not for this model.
    """
    device = device_of(options.device)
    transformers.logging.set_verbosity_error()  # of positions and lengths we say what there is to say
    transformers.logging.disable_progress_bar()
    trained = open_language_model(options.model, options.last)
    kind = task_class(trained)
    goes_on = trained.objective == "causal_lm"
    if kind.is_one_pass:
        refuse_what_writers_take(options, trained)
    texts = Texts(trained, options.special_tokens, options.begin)
    sampling = Sampling(
        temperature_of(options, goes_on),
        options.top_k,
        options.top_p,
        options.min_p,
        options.repetition_penalty,
        options.seed,
    )
    settings = Settings(sampling, options.max_new_tokens, options.num_beams, options.stop, options.fill == "iterative")
    model: nn.Module = trained.model
    model.to(device, DTYPES[options.precision])
    chat = Chat(trained.tokenizer, trained.name, options.system) if options.chat else None
    if chat is not None and kind is not Continuing:
        raise UserError(f"--chat: {trained.name} is a {trained.objective} model, which holds no conversation")
    return kind(trained, texts, settings, options.logprobs, chat)


def device_of(name: str) -> str:
    """Return torch's name of a device; UserError if there is no GPU and one was asked for."""
    has_gpu = torch.cuda.is_available()
    if name == "gpu" and not has_gpu:
        raise UserError("--device gpu: there is none that torch can use here; give --device cpu")
    return "cuda" if name == "gpu" or (name == "auto" and has_gpu) else "cpu"


def refuse_what_writers_take(options: argparse.Namespace, trained: Trained) -> None:
    """Refuse flags of writing for a model that fills in masks."""
    usual: dict[str, Callable[[], bool]] = {
        "num_beams": lambda: options.num_beams > 1,
        "stop": lambda: bool(options.stop),
        "repetition_penalty": lambda: options.repetition_penalty != 1,
    }
    for name, is_given in usual.items():
        if is_given():
            raise UserError(f"--{name}: {trained.name} fills in masks, and writes no text that goes on; leave it out")
