"""Imports of the server that test processes are forked from. None of them may start a thread."""

import jsonargparse  # noqa: F401
import torch._dynamo  # noqa: F401
import transformers.models.auto.modeling_auto
import transformers.models.bart.modeling_bart
import transformers.models.bert.modeling_bert
import transformers.models.llama.modeling_llama
import transformers.models.modernbert.modeling_modernbert
import transformers.models.t5.modeling_t5  # noqa: F401

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
import sslm.runs.curves
import sslm.train
import sslm.training.callbacks.checkpoint
import sslm.training.callbacks.monitor
import sslm.training.callbacks.preemption
import sslm.training.callbacks.rescue
import sslm.training.callbacks.rewind
import sslm.training.callbacks.watchdog  # noqa: F401
