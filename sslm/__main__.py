"""`sslm VERB …`: the same as `python -m sslm.VERB …`."""

import sys
from importlib import import_module

import sslm
from sslm.errors import nearest

VERBS = {
    "train": "pretrain a model (no arguments: a two-minute run on embedded English)",
    "prepare": "tokenise text into a corpus that `--data.train` takes",
    "plan": "tell beforehand what a run takes: memory, time, money, disk, on this machine or another",
    "verify-resume": "kill a run at random steps, resume it, and compare it with one that was not",
    "export": "make a plain Hugging Face folder of a run's checkpoint",
    "ckpt": "list, verify, compare, reshard or remove checkpoints",
}


def usage() -> str:
    lines = [f"  {verb:<15}{what}" for verb, what in VERBS.items()]
    return "\n".join([f"sslm {sslm.__version__}: self-supervised pretraining of language models", "",
                      "usage: sslm VERB [flags]", "", *lines, "", "`sslm VERB --help` explains a verb's flags."])  # fmt: skip


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
        print(
            f"sslm: there is no verb {verb!r}{nearest(verb, VERBS)}; allowed: {', '.join(VERBS)}",
            file=sys.stderr,
        )
        return 2
    code: int = import_module(f"sslm.{verb.replace('-', '_')}").main(rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
