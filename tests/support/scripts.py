"""Shell scripts whose calls of `sslm` are forked from a server that has imported everything."""

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Client, Listener
from pathlib import Path

from sslm.__main__ import main
from tests.support.processes import train_forked

FORWARD = f"""#!{sys.executable} -IS
import sys
from multiprocessing.connection import Client
with Client(sys.argv[0] + ".socket") as test:
    test.send(sys.argv[1:])
    sys.exit(test.recv())
"""


def run_script(script: Sequence[str | Path], folder: Path, timeout: float = 300) -> None:
    """Run a script in a folder; what it asks `sslm` for is done in forked processes, and printed."""
    commands = folder / "commands"
    commands.mkdir()
    sslm = commands / "sslm"
    sslm.write_text(FORWARD)
    sslm.chmod(0o755)
    path = os.pathsep.join((str(commands), str(Path(sys.executable).parent), os.environ["PATH"]))
    with Listener(f"{sslm}.socket") as listener:
        server = threading.Thread(target=_answer, args=(listener, folder, timeout))
        server.start()
        try:
            subprocess.run(script, cwd=folder, check=True, timeout=timeout, env=os.environ | {"PATH": path})
        finally:
            with Client(f"{sslm}.socket") as end:
                end.send(None)
            server.join()


def _answer(listener: Listener, folder: Path, timeout: float) -> None:
    """Do what is asked for, one call after another, until None is."""
    while True:
        with listener.accept() as call:
            if (arguments := call.recv()) is None:
                return
            in_folder = functools.partial(os.chdir, folder)
            done = train_forked(arguments, folder / "said", timeout=timeout, before=in_folder, verb=main)
            print(done.stdout)
            call.send(done.returncode)
