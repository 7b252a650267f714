"""Imports of the server that runs on fake GPUs are forked from: none may ask CUDA anything, nor start a thread."""

import importlib
import os
from unittest import mock

os.environ["DS_ACCELERATOR"] = "cuda"  # or DeepSpeed asks how many there are

import deepspeed  # noqa: F401

del os.environ["DS_ACCELERATOR"]

import tests.fakegpu.watch
import tests.support.preloaded  # noqa: F401

with mock.patch("torch.cuda.is_available", return_value=True):  # Inductor asks, which DeepSpeed imports in each run
    importlib.import_module("torch._inductor.compile_fx")
