"""sslm finetune: sslm train with an objective on labelled data."""

from sslm.cli.parse import objective_in
from sslm.objectives import FINE_TUNING, PRETRAINING
from sslm.system.errors import UserError


def check(arguments: list[str]) -> None:
    """Raise UserError if a command line names no objective on labelled data, or is wrong."""
    if {"-h", "--help"} & {*arguments}:
        return
    name = objective_in(arguments)
    if name is None or name in PRETRAINING:
        given = "no --objective is given" if name is None else f"--objective {name}: is for pretraining (sslm train)"
        raise UserError(f"sslm finetune: {given}; choose one of {', '.join(FINE_TUNING)}")
