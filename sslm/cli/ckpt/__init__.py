"""Look after checkpoints: list, verify, compare, cut into other files, remove.

sslm ckpt ls RUN
sslm ckpt verify RUN|CHECKPOINT…
sslm ckpt diff A B
sslm ckpt reshard CHECKPOINT --shards N --out DIR
sslm ckpt rm RUN STEP…

The files are not trusted: nothing is unpickled, and a manifest or a header is believed as far as the files bear it out.
"""

import argparse
from collections.abc import Callable

from sslm.cli.ckpt import diff, ls, reshard, rm, verify
from sslm.runs.find import checkpoints_in
from sslm.system.errors import UserError, printable
from sslm.system.exits import DONE, FAILED, exits_politely
from sslm.system.paths import followed, local_path
from sslm.system.terminal import keep_libraries_quiet, plural, say, transfer_progress


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    options = flag_parser().parse_args(arguments)
    keep_libraries_quiet()
    act: Callable[[argparse.Namespace], int] = options.act
    return act(options)


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's flags."""
    parser = argparse.ArgumentParser(prog="sslm ckpt", description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, act: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        one.set_defaults(act=act)
        return one

    ls_verb = verb("ls", _ls, "list a run's checkpoints")
    ls_verb.add_argument("folder", type=followed, help="run folder, or a folder of checkpoints")
    verify_verb = verb("verify", _verify, "check every file against its SHA-256; exit code 1: something is damaged")
    all_of_it = "a run folder means all its checkpoints"
    verify_verb.add_argument("paths", nargs="+", type=followed, metavar="RUN|CHECKPOINT", help=all_of_it)
    what_differs = "tell what differs between two checkpoints, bit by bit; exit code 1: something does"
    diff_verb = verb("diff", _diff, what_differs)
    for name in ("a", "b"):
        diff_verb.add_argument(
            name, type=followed, metavar=name.upper(), help="checkpoint, or a run folder (its newest one)"
        )
    reshard_verb = verb("reshard", _reshard, "write the same tensors into another number of files")
    reshard_verb.add_argument("checkpoint", type=followed, help="checkpoint, or a run folder (its newest one)")
    shards = "files to make, of about equal size"
    reshard_verb.add_argument("--shards", required=True, type=int, metavar="N", help=shards)
    reshard_verb.add_argument("--out", required=True, type=local_path, help="folder to make; it must not exist")
    rm_verb = verb("rm", _rm, "remove checkpoints of a run that is not training")
    rm_verb.add_argument("run", type=followed, help="run folder")
    rm_verb.add_argument("steps", nargs="*", metavar="STEP", help="steps, or names as ls shows them")
    rm_verb.add_argument("--keep_last", "--keep-last", type=int, metavar="K", help="remove all but the K newest")
    rm_verb.add_argument("--force", action="store_true", help="remove the newest good one too")
    return parser


def _ls(options: argparse.Namespace) -> int:
    ls.show(ls.listed(options.folder))
    return DONE


def _verify(options: argparse.Namespace) -> int:
    paths = [path for given in options.paths for path in checkpoints_in(given)]
    with transfer_progress("Verifying", sum(map(verify.bytes_of, paths))) as done:
        code = DONE
        for path in paths:
            verdict = verify.verify(path, done)
            say(f"{printable(str(path))}: {verdict.in_words}")
            code = FAILED if verdict.damage else code
    return code


def _diff(options: argparse.Namespace) -> int:
    differences = diff.compare(checkpoints_in(options.a)[-1], checkpoints_in(options.b)[-1])
    diff.show(differences)
    return FAILED if differences.any else DONE


def _reshard(options: argparse.Namespace) -> int:
    checkpoint, out = checkpoints_in(options.checkpoint)[-1], options.out
    if options.shards < 1:
        raise UserError(f"--shards {options.shards}: expected a number of files, at least 1")
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out}: already exists; remove it, or choose another folder")
    reshard.reshard(checkpoint, options.shards, out)
    say(f"{checkpoint} -> {out}: the same tensors in {plural(options.shards, 'file')}")
    return DONE


def _rm(options: argparse.Namespace) -> int:
    if bool(options.steps) == (options.keep_last is not None):
        raise UserError("sslm ckpt rm takes either steps, as `sslm ckpt rm RUN 100 200`, or --keep_last K")
    if options.keep_last is not None and options.keep_last < 1:
        raise UserError(f"--keep_last {options.keep_last}: expected a number of checkpoints, at least 1")
    rm.rm(options.run, options.steps, options.keep_last, options.force)
    return DONE
