"""Python runs this first: packages that the environment lacks are found in that of the tests; when torch is imported,
what the fake runtime can't do is switched off in it. torchao is not found: transformers imports it, and it asks for the
GPU as soon as that is done, after which no forked process could use one.
"""

import importlib.util
import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any


class AfterTorch(MetaPathFinder):
    """Finds torch as usual, but once, and has its loader prepare it."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                import fakegpu

                fakegpu.prepare()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.path.append(os.environ["FAKE_SITE"])
sys.modules["torchao"] = None  # type: ignore[assignment]
sys.meta_path.insert(0, AfterTorch())
