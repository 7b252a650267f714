"""What the server that test processes are forked from has done for all of them. None of it may start a thread."""

import contextlib
import importlib
import os
import tempfile
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed guesses, and says so

with contextlib.suppress(ImportError):
    import deepspeed  # noqa: F401  accelerate does when transformers saves a model

del os.environ["DS_ACCELERATOR"]

import attrs  # noqa: F401
import jsonargparse  # noqa: F401
import PIL.Image
import torch
import torch._dynamo.backends.common
import transformers.models.auto.modeling_auto
import transformers.models.bart.modeling_bart
import transformers.models.bert.modeling_bert
import transformers.models.llama.modeling_llama
import transformers.models.modernbert.modeling_modernbert
import transformers.models.t5.modeling_t5
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import sslm.cli.evaluate.measure
import sslm.cli.generate.opening
import sslm.cli.prepare
import sslm.cli.train
import sslm.data.corpus.remote
import sslm.objectives.causal_lm
import sslm.objectives.denoising
import sslm.objectives.masked_lm
import sslm.objectives.span_corruption
import sslm.objectives.token_order
import sslm.runs.checkpoints.mirror
import sslm.train
import sslm.training.callbacks.checkpoint
import sslm.training.callbacks.monitor
import sslm.training.callbacks.preemption
import sslm.training.callbacks.rescue
import sslm.training.callbacks.rewind
import sslm.training.callbacks.watchdog  # noqa: F401
from sslm.models.build import build
from sslm.parallel.planning.activation_memory import measure
from sslm.runs.curves import draw_curves


def warm_up() -> None:
    """Fill libraries' tables of what never changes: fonts, formats of images, patterns of names, rules of shapes."""
    PIL.Image.preinit()
    with tempfile.TemporaryDirectory() as folder:
        draw_curves([], Path(folder) / "curves.png", "")
    get_checkpoint_conversion_mapping("llama")
    if torch.backends.cuda.is_built():  # the rest would ask it for its GPUs, and no child could any more
        return
    importlib.import_module("torch._inductor.compile_fx")
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8
    )
    measure(build(config, "AutoModelForCausalLM", seed=0), {"input_ids": (8,), "labels": (8,)}, on_gpu=False)


warm_up()
