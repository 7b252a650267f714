"""sslm finetune: sslm train with an objective on labelled data."""

import sys

from sslm import train
from sslm.cli.parse import objective_in
from sslm.objectives import FINE_TUNING
from sslm.system.errors import UserError
from sslm.system.exits import exits_politely


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not {"-h", "--help"} & {*arguments} and (name := objective_in(arguments)) not in FINE_TUNING:
        given = "no --objective is given" if name is None else f"--objective {name}: is for pretraining (sslm train)"
        raise UserError(f"sslm finetune: {given}; choose one of {', '.join(FINE_TUNING)}")
    return train.main(arguments)
