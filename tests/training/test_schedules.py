"""Learning rates by the step, against formulas of their papers and transformers' own."""

from typing import Any

import pytest
import torch
from transformers import get_scheduler

from sslm.config import OptimConfig
from sslm.training.schedules import learning_rate


def rates(steps: int, **settings: Any) -> list[float]:
    optim = OptimConfig(lr=1.0, **({"warmup_steps": 10, "min_lr_ratio": 0.0} | settings))
    return [learning_rate(step, 100, optim) for step in range(steps)]


def test_cosine_ends_at_the_lowest_rate_and_stays_there() -> None:
    cosine = rates(120, min_lr_ratio=0.1)
    assert cosine[0] == pytest.approx(0.1)
    assert max(cosine) == cosine[10] == pytest.approx(1.0)
    assert cosine[55] == pytest.approx(0.55)
    assert cosine[100] == cosine[119] == pytest.approx(0.1)


def test_wsd_is_a_trapezoid() -> None:
    wsd = rates(100, schedule="wsd", decay_fraction=0.2)
    assert set(wsd[9:81]) == {1.0}
    assert wsd[90] == pytest.approx(0.5)
    assert wsd[99] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"schedule": "linear"}, {"name": "linear"}),
        ({"schedule": "cosine"}, {"name": "cosine"}),
        (
            {"schedule": "cosine", "cycles": 3},
            {"name": "cosine_with_restarts", "scheduler_specific_kwargs": {"num_cycles": 3}},
        ),
        ({"schedule": "inverse_sqrt"}, {"name": "inverse_sqrt"}),
    ],
)
def test_after_warm_up_rates_are_those_of_transformers(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = get_scheduler(optimizer=optimizer, num_warmup_steps=10, num_training_steps=100, **theirs)
    found = []
    for _ in range(100):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    is_shifted = ours["schedule"] == "inverse_sqrt"  # theirs has its peak a step later
    assert rates(100 - is_shifted, **ours)[10:] == pytest.approx(found[10 + is_shifted :], abs=1e-9)


def test_inverse_sqrt_knows_no_end_and_a_lowest_rate() -> None:
    assert rates(100, schedule="inverse_sqrt", warmup_steps=0)[:4] == pytest.approx([1, 2**-0.5, 3**-0.5, 0.5])
    assert rates(5000, schedule="inverse_sqrt", min_lr_ratio=0.1)[4999] == 0.1


def test_each_cycle_of_cosine_begins_at_the_peak_and_the_run_ends_at_the_lowest_rate() -> None:
    restarted = rates(101, warmup_steps=0, cycles=4, min_lr_ratio=0.1)
    assert [restarted[step] for step in (0, 25, 50, 75, 100)] == pytest.approx([1, 1, 1, 1, 0.1])
    assert restarted[24] == pytest.approx(min(restarted[:99]), abs=0.01)
