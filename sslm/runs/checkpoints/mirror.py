"""Upload checkpoints while training goes on (`fetch` downloads them).

A store of objects knows no rename, but an object is there whole or not at all. So a checkpoint's manifest.json comes
last and goes first, and a checkpoint without it is not there.

Tried with S3 and folders. Google Storage (gs://) shares the code and was not tried.
"""

import contextlib
import json
import math
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

from sslm.config import Config
from sslm.runs.checkpoints.fetch import BESIDE, MANIFEST_BYTES, steps_in
from sslm.runs.checkpoints.folder import UNREADABLE, Manifest, newest_first, number_of, parse_manifest, read_manifest
from sslm.system import ranks
from sslm.system.errors import UserError, sentence_of, without_secrets
from sslm.system.remote_folder import RemoteFolder, Stopped

WRITABLE = ("s3", "gs", "gcs", "file", "memory")
CHECK_SECONDS, CHECK_PATIENCE_SECONDS = 30.0, 5.0
CLOSE_SECONDS = 5.0


class Mirror:
    """Uploads a run's checkpoints, one at a time, in a daemon thread that lives while there is something to upload.

    Training never ends by it: what goes wrong is told once, and the next checkpoint tries again.

    Args:
        url: of the run's folder there; a path will do.
        tell: called from the thread.
        keeps: steps whose checkpoints stay there though they are not here (any more).
    """

    def __init__(
        self, url: str, run: Path, tell: Callable[[str], None], keeps: Callable[[int], bool] = lambda step: False
    ) -> None:
        self.url, self.run, self.tell, self.keeps = url, run, tell, keeps
        self.failure: str | None = None
        """What went wrong with the last upload, or None."""
        self._server = RemoteFolder(url)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._asked: Path | None = None
        self.busy: Path | None = None
        """The checkpoint being uploaded, which must not be removed meanwhile."""

    def put(self, checkpoint: Path) -> None:
        """Upload a checkpoint soon, instead of one that still waits."""
        with self._changed:
            self._asked = checkpoint
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="sslm-upload", daemon=True)
                self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the last upload, at most so many seconds. Returns whether none is left; see `failure` then."""
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None, timeout)

    def close(self) -> None:
        """Give up what is not uploaded. A request under way ends by itself, or with the process."""
        with self._changed:
            self._asked = None
        self._server.close()
        self.wait(CLOSE_SECONDS)

    def _work(self) -> None:
        while (checkpoint := self._next()) is not None:
            self._try(checkpoint)

    def _next(self) -> Path | None:
        with self._changed:
            self.busy, self._asked = self._asked, None
            if self.busy is None:
                self._thread = None
                self._changed.notify_all()
            return self.busy

    def _try(self, checkpoint: Path) -> None:
        what = f"{checkpoint.name} was not uploaded to {without_secrets(self.url)}"
        try:
            upload(self._server, self.run, checkpoint, self.keeps)
            self.failure = None
        except Stopped:
            self.failure = f"{what}: there was no time left"
        except Exception as error:
            failure = f"{what}: {sentence_of(error) or f'{type(error).__name__}: {error}'}"
            is_news, self.failure = self.failure is None, failure
            if is_news:  # stdout may be gone; who waits for this thread must not wait for ever
                with contextlib.suppress(OSError):
                    self.tell(f"{failure}. Training goes on; the next checkpoint tries again")


# ------------------------------------------------------------------------------------------------ there


def upload(server: RemoteFolder, run: Path, checkpoint: Path, keeps: Callable[[int], bool]) -> None:
    """Upload a checkpoint and the run's small files, and remove checkpoints there that are gone here.

    Raises:
        UserError: not permitted, or the server stayed away.
        OSError, ValueError: the checkpoint here can't be read.
    """
    there = server.files("checkpoints")
    _upload_files(server, there, checkpoint)
    for name in BESIDE:
        if (run / name).is_file():
            server.write(name, _beside(run / name, number_of(checkpoint)))
    server.write("checkpoints/latest", f"{checkpoint.name}\n".encode())
    here = {path.name for path in [*newest_first(run / "checkpoints"), checkpoint]}
    for name in sorted(steps_in(there) - here):
        manifest = f"checkpoints/{name}/manifest.json"
        if manifest not in there or not keeps(number_of(Path(name))):
            server.remove(manifest)
            server.remove_folder(f"checkpoints/{name}")


def _upload_files(server: RemoteFolder, there: dict[str, int], checkpoint: Path) -> None:
    """Upload a checkpoint's files, but those that the manifest there already lists."""
    folder = f"checkpoints/{checkpoint.name}"
    new, was = (checkpoint / "manifest.json").read_bytes(), b""
    if f"{folder}/manifest.json" in there:
        was = b"".join(server.chunks(f"{folder}/manifest.json", MANIFEST_BYTES))
    old: Manifest = {}
    with contextlib.suppress(*UNREADABLE):  # what is no manifest has no entries
        old = parse_manifest(was)
    entries = read_manifest(checkpoint)
    has = {name: (old.get(name), there.get(f"{folder}/{name}")) for name in entries}
    lacking = [name for name, entry in entries.items() if has[name] != (entry, entry.num_bytes)]
    if new == was and not lacking:
        return
    server.remove(f"{folder}/manifest.json")
    for name in lacking:
        server.put(f"{folder}/{name}", checkpoint / name)
    server.write(f"{folder}/manifest.json", new)


def _beside(file: Path, step: int) -> bytes:
    """Read a small file as it was at a step: whole lines, and no metrics past the step."""
    data = file.read_bytes()
    if file.suffix != ".jsonl":
        return data
    lines = data[: data.rfind(b"\n") + 1].splitlines(keepends=True)
    if file.name == "metrics.jsonl":
        while lines and _step_in(lines[-1]) > step:
            lines.pop()
    return b"".join(lines)


def _step_in(row: bytes) -> float:
    try:
        return float(json.loads(row)["step"])
    except (ValueError, TypeError, KeyError, RecursionError):  # torn
        return math.inf


# ------------------------------------------------------------------------------------------------ before training


def check(url: str) -> None:
    """Write and remove a tiny file there, within `CHECK_SECONDS`, or raise a UserError that says why that can't be."""
    scheme, flag = re.match(r"([\w+.-]{2,}):", url), f"--checkpoint.upload {without_secrets(url)}"
    if scheme and (scheme[1] not in WRITABLE or not re.match(r"://[^/]|:///.", url[scheme.end(1) :])):
        choice = ", ".join(f"{name}://" for name in WRITABLE if name != "memory")
        instead = f"give a folder's path, or the URL of one that begins with {choice}, such as s3://bucket/runs/mine"
        raise UserError(f"{flag}: not a place to write to; {instead}")
    errors: list[BaseException] = []
    asking = threading.Thread(target=_try_to_write, args=(url, errors), name="sslm-upload-check", daemon=True)
    asking.start()
    asking.join(CHECK_SECONDS)
    if asking.is_alive():
        raise UserError(f"{flag}: no answer in {CHECK_SECONDS:.0f} seconds; check the address")
    if errors:
        raise UserError(f"--checkpoint.upload: {sentence_of(errors[0]) or errors[0]}")


def _try_to_write(url: str, errors: list[BaseException]) -> None:
    file = f".sslm-{os.urandom(4).hex()}"
    try:
        with contextlib.closing(RemoteFolder(url, CHECK_PATIENCE_SECONDS)) as server:
            server.write(file, b"sslm was here to see whether it may write\n")
            server.remove(file)
    except FileNotFoundError as error:
        why = f"there is no such bucket or folder ({error}); create it, or give another one"
        errors.append(UserError(f"{without_secrets(url)}: {why}"))
    except BaseException as error:
        errors.append(error)


def check_upload(config: Config) -> None:
    """Check on the first process that `--checkpoint.upload` can be written to."""
    if config.checkpoint.upload is not None and ranks.is_first_process():
        check(config.checkpoint.upload)
