"""What a pruner does from step to step."""

from transformers import LlamaConfig

from sslm.models.build import build
from sslm.models.compression.pruning.recipe import Pruning
from sslm.models.head import LanguageModel
from sslm.training.pruning.pruner import Pruner
from sslm.training.pruning.schedule import Schedule
from tests.support.models import GATED


def test_a_step_that_never_ended_leaves_no_watch_on_the_layers() -> None:
    network = LanguageModel(build(LlamaConfig(**GATED), "AutoModelForCausalLM", 0))
    pruner = Pruner(network, Schedule(Pruning(0.5, "wanda"), begin=0, end=2))
    pruner.watch(0)
    pruner.watch(1)
    assert {len(matrix.layer._forward_pre_hooks) for matrix in pruner.layers.values()} == {1}
    pruner.watch(2)  # after which nothing more goes
    assert not any(matrix.layer._forward_pre_hooks for matrix in pruner.layers.values())
