"""`sslm VERB …`, or `python -m sslm VERB …`."""

import sys
from importlib import import_module

import sslm
from sslm.cli import VERBS, finetune, seeds, usage
from sslm.system.errors import UserError, nearest
from sslm.system.exits import DONE, exits_politely


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return DONE
    verb, *rest = arguments
    if verb == "--version":
        print(sslm.__version__)
        return DONE
    if verb not in VERBS:
        raise UserError(f"sslm {verb}: there is no such verb{nearest(verb, VERBS)}; allowed: {', '.join(VERBS)}")
    if verb == "finetune":
        if seeds.names_seeds(rest):
            finetune.check(seeds.taken(rest)[1])
            return seeds.main(rest)
        finetune.check(rest)
    module = "sslm.train" if verb in ("train", "finetune") else f"sslm.cli.{verb.replace('-', '_')}"
    return int(import_module(module).main(rest))


if __name__ == "__main__":
    sys.exit(main())
