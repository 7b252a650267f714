"""When how much is pruned, and which settings go together."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from sslm.config import PruneConfig
from sslm.models.build import build
from sslm.models.compression.pruning.recipe import Pruning
from sslm.models.task import network_for
from sslm.system.errors import UserError
from sslm.training.pruning.pruner import Pruner
from sslm.training.pruning.schedule import STAGES, Schedule, schedule_of


def test_sparsity_is_that_of_zhu_and_gupta() -> None:
    schedule = Schedule(Pruning(0.9), begin=1000, end=3000)
    for done in range(1000, 3001, 250):
        assert schedule.sparsity(done) == pytest.approx(0.9 + (0 - 0.9) * (1 - (done - 1000) / 2000) ** 3)
    assert schedule.sparsity(0) == 0
    assert schedule.sparsity(10**6) == 0.9


@pytest.mark.parametrize(("begin", "end"), [(0, 1), (3, 50), (10, 110), (7, 5003)])
def test_it_is_pruned_in_stages_of_which_the_last_is_the_end(begin: int, end: int) -> None:
    stages = [done for done in range(end + 50) if Schedule(Pruning(0.5), begin, end).is_stage(done)]
    assert len(stages) == min(STAGES, end - begin)
    assert begin < stages[0]
    assert stages[-1] == end


def test_a_run_that_names_no_end_has_a_fifth_of_its_steps_left() -> None:
    schedule = schedule_of(PruneConfig(pattern="2:4", begin=10), 1000)
    assert schedule == Schedule(Pruning(0.5, pattern="2:4"), 10, 800)
    assert schedule_of(PruneConfig(), 1000) is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sparsity": 0.5, "begin": 60, "end": 50}, "--prune.begin 60: is not before --prune.end 50"),
        ({"sparsity": 0.5, "end": 200}, "--prune.end 200: the run ends at step 100, before all is pruned"),
        ({"sparsity": 0.5, "begin": 100}, "--prune.begin 100: the run ends at step 100"),
        ({"method": "wanda"}, "--prune.method wanda: prunes nothing; give --prune.sparsity 0.5, too"),
        ({"end": 3}, "--prune.end 3: prunes nothing"),
        ({"sparsity": 0.8, "pattern": "4:8"}, "prune.pattern 4:8 is a sparsity of 0.5"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        schedule_of(PruneConfig(**settings), 100)
    assert said in str(error.value)


@pytest.mark.parametrize("pattern", ["unstructured", "neurons"])
def test_what_is_pruned_stays_so_if_the_schedule_is_moved(pattern: Any) -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1
    )
    model, pruning = build(config, "AutoModelForCausalLM", 0), Pruning(0.5, pattern=pattern)
    pruner, optimizer = Pruner(network_for(model, None), Schedule(pruning, 0, 2)), torch.optim.SGD(model.parameters())
    pruner.finish_step(2, optimizer, None)  # type: ignore[arg-type]
    masks = {name: mask.clone() for name, mask in pruner.kept.items()}
    pruner.schedule = Schedule(pruning, 2, 4)
    pruner.finish_step(3, optimizer, None)  # type: ignore[arg-type]
    assert pruner.schedule.sparsity(3) < 0.5
    assert all(torch.equal(mask, pruner.kept[name]) for name, mask in masks.items())
