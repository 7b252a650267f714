"""Imports of the server that runs on fake GPUs are forked from: none may ask CUDA anything, nor start a thread."""

import os

os.environ["DS_ACCELERATOR"] = "cuda"  # or DeepSpeed asks how many there are

import deepspeed  # noqa: F401

del os.environ["DS_ACCELERATOR"]

import tests.fakegpu.watch
import tests.support.preloaded  # noqa: F401
