"""What the server that test processes are forked from has imported: they start in a moment. Nothing here may start a thread."""

import torch._dynamo  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import sslm.callbacks.anomaly
import sslm.callbacks.checkpoint
import sslm.callbacks.watchdog
import sslm.checkpoints.mirror
import sslm.data.remote
import sslm.objectives.causal_lm
import sslm.plots
import sslm.train  # noqa: F401
