"""Every objective, strategy and precision on 1, 2 and 4 GPUs that compute what the CPU computes."""

import json
from pathlib import Path

import pytest

from tests.fakegpu.conftest import FakeGpus
from tests.support.runs import losses_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cpu(gpus: FakeGpus, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    done = gpus.train(tmp_path_factory.mktemp("cpu") / "run", tiny)
    assert done.code == 0, done.said
    return losses_of(done.run)


@pytest.mark.parametrize(("strategy", "world"), [("single", 1), ("ddp", 2), ("fsdp", 2), ("deepspeed_2", 2)])
def test_losses_in_fp32_are_those_of_the_cpu(
    strategy: str, world: int, gpus: FakeGpus, cpu: list[float], tiny: list[str], tmp_path: Path
) -> None:
    flags = ["--accelerator", "gpu", "--devices", str(world), "--strategy", strategy, "--precision", "32"]
    dtypes = tmp_path / "dtypes.json"
    done = gpus.train(tmp_path / "run", [*tiny, *flags], world=world, verb=("train_with_dtypes", str(dtypes)))
    assert done.code == 0, done.said
    assert losses_of(done.run) == pytest.approx(cpu, abs=2e-5)
    assert json.loads(dtypes.read_text()).keys() == {"float32"}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "deepspeed_2"])
def test_sruns_tasks_may_see_one_gpu_each(
    strategy: str, gpus: FakeGpus, cpu: list[float], tiny: list[str], tmp_path: Path
) -> None:
    flags = ["--accelerator", "gpu", "--strategy", strategy, "--precision", "32"]
    done = gpus.train(tmp_path / "run", [*tiny, *flags], world=2, verb=("train_as_task",))
    assert done.code == 0, done.said
    assert "Launch: 2 GPUs, " in done.said
    assert losses_of(done.run) == pytest.approx(cpu, abs=2e-5)
