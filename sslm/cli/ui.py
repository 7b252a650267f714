"""A local page that shows runs beside each other, and goes on while they do.

sslm ui [RUN…] [--port 8666] [--host 127.0.0.1]
"""

import argparse
import getpass
import os
from pathlib import Path

from sslm.system.exits import DONE, exits_politely
from sslm.system.paths import local_path
from sslm.system.terminal import plural, say, warn
from sslm.ui.answers import Shown
from sslm.ui.server import Server


@exits_politely
def main(arguments: list[str] | None = None) -> int:
    options = flag_parser().parse_args(arguments)
    shown = Shown(options.runs)
    with Server(shown, options.host, options.port) as server:
        say(f"{plural(len(shown.runs()), 'run')}, to look at until Ctrl-C:")
        say(f"  {server.url}", to_copy=True)
        if hint := ssh_hint(os.environ.get("SSH_CONNECTION", ""), server.server_address[1]):
            say("From your own machine, first type there")
            say(f"  {hint}", to_copy=True)
        if not options.host.startswith("127.") and options.host not in ("localhost", "::1"):
            warn(f"whoever reaches {options.host} can read these runs' settings, samples and figures")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return DONE
    return DONE


def flag_parser() -> argparse.ArgumentParser:
    """Make the parser of this verb's flags."""
    parser = argparse.ArgumentParser(prog="sslm ui", description=__doc__.split("\n")[0], allow_abbrev=False)
    folders = "run folders, or folders of runs; default: runs"
    parser.add_argument("runs", nargs="*", metavar="RUN", type=local_path, default=[Path("runs")], help=folders)
    parser.add_argument("--port", type=_port, default=8666, help="port to listen at (default: 8666), 0 for a free one")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError("expected a port, 0 to 65535")
    return int(text)


def ssh_hint(connection: str, port: int) -> str | None:
    """Return what brings a port to the other end of an SSH connection, or None without one.

    Args:
        connection: SSH_CONNECTION: the client's address and port, then this machine's.
    """
    parts = connection.split()
    if len(parts) != 4:
        return None
    via = "" if parts[3] == "22" else f"-p {parts[3]} "
    return f"ssh -N -L {port}:localhost:{port} {via}{getpass.getuser()}@{parts[2]}"
