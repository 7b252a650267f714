"""A real terminal for forked processes, and what a person sees in it."""

import contextlib
import functools
import os
import re
import signal
import termios

MOVE = re.compile(r"\x1b\[(\d*)A")
ERASE, SEQUENCE = "\x1b[2K", re.compile(r"\x1b\[[?\d;]*[A-Za-z]")


class Terminal:
    """Give `take` to a forked process, and let this one read what it writes until it closes the terminal."""

    def __init__(self, width: int = 80, hang_up: "signal.Handlers" = signal.SIG_DFL) -> None:
        self.master, self.terminal = os.openpty()
        termios.tcsetwinsize(self.terminal, (40, width))
        self.take = functools.partial(_take, os.ttyname(self.terminal), hang_up)
        self.said = b""

    def read_until(self, words: bytes, times: int) -> None:
        while self.said.count(words) < times:
            self.said += os.read(self.master, 1 << 16)

    def close(self) -> None:
        os.close(self.terminal)
        os.close(self.master)

    def read_all(self) -> list[str]:
        """Read until the process ends; return the lines that stay on the screen, however long each is."""
        self.read_until(b"\n", times=1)  # the process has it open by then
        os.close(self.terminal)
        with contextlib.suppress(OSError):  # nobody has it open any longer
            while data := os.read(self.master, 1 << 16):
                self.said += data
        os.close(self.master)
        return _screen(self.said.decode())


def _take(path: str, hang_up: "signal.Handlers") -> None:
    """Make a terminal that of this process, which leads its session, and its input and output."""
    terminal = os.open(path, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(terminal, descriptor)
    signal.signal(signal.SIGHUP, hang_up)
    os.environ["TERM"] = "xterm"
    os.environ.pop("COLUMNS", None)


def _screen(said: str) -> list[str]:
    """Follow what moves the cursor up and erases lines, as progress bars do."""
    lines, row, column = [""], 0, 0
    for part in re.split(r"(\r|\n|\x1b\[[?\d;]*[A-Za-z])", said):
        if move := MOVE.fullmatch(part):
            row = max(row - int(move[1] or 1), 0)
        elif part == ERASE:
            lines[row] = " " * column
        elif part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\r":
            column = 0
        elif not SEQUENCE.fullmatch(part):
            lines[row] = lines[row][:column] + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]
