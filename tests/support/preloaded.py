"""What the server that test processes are forked from has imported: they start in a moment. Nothing here may start a thread."""

import torch._dynamo  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import sslm.data.corpus.remote
import sslm.objectives.causal_lm
import sslm.runs.checkpoints.mirror
import sslm.runs.curves
import sslm.train
import sslm.training.callbacks.checkpoint
import sslm.training.callbacks.rewind
import sslm.training.callbacks.watchdog  # noqa: F401
