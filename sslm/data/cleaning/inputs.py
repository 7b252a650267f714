"""What `sslm clean` is given: files, folders, patterns, datasets, URLs of files, one after the other."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sslm.data.cleaning.blocks import Block, Reading, blocks_of, blocks_of_dataset
from sslm.data.corpus.embedded import EMBEDDED
from sslm.data.corpus.files import FORMATS_IN_WORDS, Found, find_text, is_text
from sslm.data.corpus.remote import is_remote
from sslm.data.corpus.text_rows import is_saved_dataset, load_dataset
from sslm.system.errors import UserError, one_line, without_secrets
from sslm.system.files import sha256_of
from sslm.system.remote_folder import RemoteFolder

LARGEST_FILE = 1 << 42
"""Bytes of a file at a URL."""


@dataclass(frozen=True)
class Input:
    """A file, here or at a URL, or a dataset."""

    place: str
    """Path, URL or name of the dataset."""
    name: str
    """What its documents' origin says."""
    num_bytes: int | None
    kind: str = "file"
    """file, url or dataset."""

    @contextlib.contextmanager
    def opened(self, reading: Reading, folder: Path) -> Iterator["Opened"]:
        """Open it; a file at a URL is downloaded into the folder, and removed at the end.

        Raises:
            UserError: it can't be read.
        """
        if self.kind == "dataset":
            fingerprint = load_dataset(self.place, reading.text_field)._fingerprint
            yield Opened(self, f"fingerprint {fingerprint}", blocks_of_dataset(self.place, reading))
            return
        here = contextlib.nullcontext(Path(self.place)) if self.kind == "file" else _downloaded(self.place, folder)
        with here as file:
            yield Opened(self, sha256_of(file), _told(self.name, blocks_of(file, reading)))

    def blocks(self, reading: Reading, folder: Path) -> Iterator[Block]:
        """Read its blocks; UserError as `opened`."""
        with self.opened(reading, folder) as opened:
            yield from opened.blocks


@dataclass(frozen=True)
class Opened:
    """An input that can be read."""

    input: Input
    sha256: str
    """Of its bytes as they are stored, or a dataset's fingerprint."""
    blocks: Iterator[Block]


def _told(name: str, blocks: Iterator[Block]) -> Iterator[Block]:
    """Say of a file that is cut off or damaged that it is."""
    try:
        yield from blocks
    except (OSError, EOFError) as error:
        if getattr(error, "errno", None):
            raise
        raise UserError(f"{name}: can't be read, the file may be damaged ({one_line(error)})") from None


def find_inputs(given: Sequence[str]) -> tuple[list[Input], list[str]]:
    """Find what was given, in order, and remarks on what was left out.

    Raises:
        UserError: there is no such thing, or the same file twice.
    """
    inputs: list[Input] = []
    remarks: list[str] = []
    for path in given:
        found, remark = _found(path)
        inputs += found
        remarks += [f"{path}: {remark}"] if remark else []
    places = [input.place for input in inputs]
    twice = next((place for place in places if places.count(place) > 1), None) if len(places) < 10_000 else None
    if twice is not None:
        raise UserError(f"{without_secrets(twice)}: was given twice; give each file once")
    return inputs, remarks


def _found(path: str) -> tuple[list[Input], str | None]:
    if path == EMBEDDED:
        raise UserError(f"{EMBEDDED}: is clean already; give a file, a folder, a pattern, a dataset or a URL")
    if is_remote(path):
        return _found_remote(path)
    found: Found | None = None if is_saved_dataset(Path(path)) else find_text(path)
    if found is None:
        return [Input(path, path, None, "dataset")], None
    root = Path(path) if Path(path).is_dir() else None
    named = [(file, str(file.relative_to(root)) if root else file.name) for file in found.files]
    return [Input(str(file), name, file.stat().st_size) for file, name in named], found.remark()


def _found_remote(url: str) -> tuple[list[Input], str | None]:
    """List the file of text at a URL, or those of the folder."""
    url = url.rstrip("/")
    last = PurePosixPath(url).name.partition("?")[0]
    if is_text(Path(last)):
        return [Input(url, last, None, "url")], None
    with contextlib.closing(RemoteFolder(url)) as server:
        files = server.files("")
    wanted = sorted(name for name in files if is_text(Path(name)) and files[name])
    if not wanted:
        raise UserError(f"{without_secrets(url)}: no text there; expected files ending in {FORMATS_IN_WORDS}")
    left_out = len(files) - len(wanted)
    inputs = [Input(f"{url}/{name.lstrip('/')}", name.lstrip("/"), files[name], "url") for name in wanted]
    return inputs, f"{left_out} files left out" if left_out else None


@contextlib.contextmanager
def _downloaded(url: str, folder: Path) -> Iterator[Path]:
    """Download a file, and remove it at the end."""
    parent, _, last = url.rpartition("/")
    file = folder / last.partition("?")[0]
    try:
        with contextlib.closing(RemoteFolder(parent)) as server, open(file, "wb") as stream:
            try:
                for chunk in server.chunks(last, LARGEST_FILE):
                    stream.write(chunk)
            except FileNotFoundError:
                raise UserError(f"{without_secrets(url)}: there is no such file") from None
        yield file
    finally:
        file.unlink(missing_ok=True)
