"""--stop_when: a run ends at a validation, done, and whoever asks again or for more gets what is right."""

import json
from pathlib import Path

import pytest

from sslm.system.errors import UserError
from sslm.training.stopping import parse_stop_when
from tests.support.processes import train_forked
from tests.support.runs import TrainTiny, losses_of, val_of

STILL = ["--optim.lr", "1e-12", "--max_steps", "40", "--stop_when", "val/loss stops improving for 2"]
"""Nothing is learned: the first validation stays the best."""


def test_a_run_that_has_learned_enough_is_done_and_goes_on_if_asked(train_tiny: TrainTiny, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    for _ in range(2):  # the second finds nothing to do
        assert train_tiny(run, "--stop_when", "val/loss<100") == 0
        status = json.loads((run / "status.json").read_text())
        assert (status["state"], status["step"], status["reason"]) == ("done", 4, "--stop_when val/loss<100")
        assert (run / "export/config.json").is_file()
        assert list(val_of(run)) == [0, 4]
    assert train_tiny(run) == 0
    assert train_tiny(whole) == 0
    assert losses_of(run) == losses_of(whole)


@pytest.mark.parametrize("devices", ["1", "2"])
def test_a_run_that_no_longer_improves_ends_where_it_would_have_without_an_interruption(
    tiny: list[str], tmp_path: Path, devices: str
) -> None:
    command = [*tiny, "--run_dir", str(tmp_path / "run"), *STILL, "--devices", devices]
    codes = [train_forked([*command, *more], tmp_path / "log").returncode for more in (["--stop_after", "9steps"], [])]
    assert codes == [75, 0]
    assert list(val_of(tmp_path / "run")) == [0, 4, 8, 12]


@pytest.mark.parametrize(
    "text", ["val/loss", "loss<3", "val/loss<nan", "val/f1 stops improving for 0", "", "val/loss=3"]
)
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"expected .val/loss<3\.2"):
        parse_stop_when(text)
