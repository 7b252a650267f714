"""`sslm VERB …`, or `python -m sslm VERB …`."""

import sys
from importlib import import_module

import sslm
from sslm.cli import VERBS, usage
from sslm.system.errors import nearest


def main() -> int:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    verb, *rest = arguments
    if verb == "--version":
        print(sslm.__version__)
        return 0
    if verb not in VERBS:
        print(f"sslm: there is no verb {verb!r}{nearest(verb, VERBS)}; allowed: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    module = "sslm.train" if verb == "train" else f"sslm.cli.{verb.replace('-', '_')}"
    return int(import_module(module).main(rest))


if __name__ == "__main__":
    sys.exit(main())
