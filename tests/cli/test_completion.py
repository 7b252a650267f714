"""What the Tab key makes of a line, in each shell that is here, at a terminal."""

import os
import pty
import re
import select
import shutil
import signal
import termios
from pathlib import Path

import pytest

from sslm.__main__ import main

SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'sslm() { printf "[[%s]]\\n" "$*"; }'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -U compinit && compinit -D -u; sslm() { printf "[[%s]]\\n" "$*"; }'),
    "fish": (
        ["fish", "--no-config", "-i"],
        'function sslm; printf "[[%s]]\\n" "$argv"; end; function fish_prompt; echo "~> "; end',
    ),
}
"""What starts a shell, and what makes `sslm` in it a function that says what was typed after it."""
TOLD = re.compile(rb"\[\[([^%\]]*)\]\].*?~> ", re.DOTALL)
"""What it says, and the prompt behind it: what is typed before that is not completed."""

LINES = {
    "trai\t": "train",
    "tra\t": "tra",  # train or track
    "train --obj\t masked_l\t": "train --objective masked_lm",
    "train --objective.unit w\t": "train --objective.unit word",
    "train --optim.sch\tw\t": "train --optim.schedule wsd",
    "verify-resume --ki\t3 --strategy fsdp_\t": "verify-resume --kills 3 --strategy fsdp_tp",
    "finetune --objective regr\t--seeds 1,2": "finetune --objective regression --seeds 1,2",
    "train --config lapt\t--compile bl\t": "train --config laptop.yaml --compile block",
    "train --precision=bf16-t\t": "train --precision=bf16-true",
    "ckpt resh\tlapt\t--sh\t2": "ckpt reshard laptop.yaml --shards 2",
    "completion z\t": "completion zsh",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_verbs_flags_values_and_files(
    shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, function = SHELLS[shell]
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    assert main(["completion", shell]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "laptop.yaml").touch()
    lines = [f"{function}; source ./script; sslm ready", *(f"sslm {line}" for line in LINES)]
    assert typed(lines, command, tmp_path) == ["ready", *LINES.values()]


def typed(lines: list[str], command: list[str], folder: Path) -> list[str]:
    """Type lines at a terminal, each when the one before is done; return what `sslm` was given by them."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execvpe(
            command[0], command, {"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "xterm", "PS1": "~> "}
        )
    termios.tcsetwinsize(terminal, (50, 200))
    said = b""
    try:
        for number, line in enumerate(lines, start=1):
            os.write(terminal, f"{line}\n".encode())
            while len(TOLD.findall(said)) < number:
                assert select.select([terminal], [], [], 10)[0], said.decode()
                said += os.read(terminal, 1 << 16)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(terminal)
    return [" ".join(words.decode().split()) for words in TOLD.findall(said)]
