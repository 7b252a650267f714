"""The front door: text in, a trained Hugging Face model out.

    python -m sslm.train [--config FILE]… [flags]

The same as `sslm train`. Lightning's launcher starts its children by this name, too.
"""

import sys

from sslm.cli.parse import parse
from sslm.system import ranks
from sslm.system.exits import exits_politely
from sslm.system.signals import stops_on_signals
from sslm.system.terminal import keep_libraries_quiet


@exits_politely
@stops_on_signals
def main(arguments: list[str] | None = None) -> int:
    if ranks.is_child():
        ranks.die_with_parent()  # before the imports, which take long on a busy machine
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse(arguments)
    keep_libraries_quiet(config.accelerator)  # before they are imported, too
    from sslm.cli.train import run  # what trains takes seconds to import: a wrong flag is told of before

    return run(config, arguments)


if __name__ == "__main__":
    sys.exit(main())
