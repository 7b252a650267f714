"""A teacher's probabilities made beforehand: the k likeliest classes of each scored place, keyed by stream position.

    DIR/manifest.json              what they are of: teacher, temperature, k, and all that decides every batch
    DIR/part-FIRST-END.safetensors the examples at positions FIRST … END − 1, in order:
        values   [n, places, k] fp32   log-probabilities at the temperature, the likeliest first
        ids      [n, places, k] int32  their classes
        rest     [n, places] fp32      log-probability of all other classes together
        digests  [n] int64             of each example's inputs and targets
        sums     [n] int64             CRC-32 of each example's arrays, begun with that of what the cache is of

What is beyond the k likeliest counts as one event more, in the teacher and in the student alike: so nothing is made up,
and with k as large as the vocabulary nothing is lost. A part is whole or not there; the places are the scored ones in
their order, as the network has them.
"""

import functools
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from sslm.data.fingerprints import changes
from sslm.data.module import DataModule
from sslm.data.stream.batches import BESIDE, row_digests
from sslm.data.stream.recipe import Arrays, Ints
from sslm.models.divergence import FLOOR, logits_of
from sslm.models.linear_cross_entropy import tokens_at_a_time
from sslm.models.outputs import Outputs
from sslm.system.errors import UserError
from sslm.system.files import fsync, write_atomically

FORMAT = 2
NAMES = ("values", "ids", "rest")
SUMMED = (*NAMES, "digests")
KNOWN = {"teacher": str, "temperature": float, "k": int, "made_of": dict}
"""What a manifest has beside its format."""
BESIDE_CACHE = " top "
"""What follows the teacher's fingerprint in that of its cache, before k."""
MAKE = "make one by sslm distill-cache with this run's flags"


class TopK(NamedTuple):
    """What a cache has of a batch's places."""

    values: Tensor
    """[rows, places, k] log-probabilities at the temperature; of a model that says one number, that number."""
    ids: Tensor
    """[rows, places, k] classes."""
    rest: Tensor
    """[rows, places] log-probability of all others."""

    def beside(self, logits: Tensor, here: slice, temperature: float) -> tuple[Tensor, Tensor]:
        values, ids = (some.flatten(0, 1)[here] for some in (self.values.to(logits.dtype), self.ids))
        if (num_classes := logits.shape[-1]) == 1:
            return values, logits
        student = (logits / temperature).log_softmax(-1).clamp(min=FLOOR)
        student = F.pad(student, (0, 1), value=FLOOR)  # of classes that the teacher alone has: padding
        ids = ids.clamp(0, num_classes)
        others = student.scatter(1, ids, FLOOR).logsumexp(-1, keepdim=True)
        rest = self.rest.to(logits.dtype).flatten()[here][:, None]
        return torch.cat([values, rest], 1), torch.cat([student.gather(1, ids), others], 1)


@torch.no_grad()
def top_k(outputs: Outputs, temperature: float, k: int) -> TopK:
    """Take the k likeliest classes of each place, or all if there are fewer; some places at a time."""
    rows, places = outputs.targets.shape
    size = tokens_at_a_time(rows * places, outputs.num_classes, outputs.states.device.type)
    parts = []
    for start in range(0, rows * places, size):
        logits = logits_of(outputs, slice(start, start + size))
        if logits.shape[-1] == 1:
            parts.append((logits, torch.zeros_like(logits, dtype=torch.long), logits.new_full(logits.shape[:1], FLOOR)))
            continue
        known = (logits / temperature).log_softmax(-1).clamp(min=FLOOR)
        values, ids = known.topk(min(k, known.shape[-1]))
        parts.append((values, ids, known.scatter(1, ids, FLOOR).logsumexp(-1)))
    values, ids, rest = (torch.cat(some) for some in zip(*parts, strict=True))
    return TopK(values.view(rows, places, -1), ids.view(rows, places, -1), rest.view(rows, places))


def made_of(data: DataModule) -> dict[str, Any]:
    """All that decides what stands at each position: text, order, noise, tokenizer and objective."""
    recipe = {"objective": type(data.recipe).__name__, **asdict(data.recipe)}
    made: dict[str, Any] = json.loads(json.dumps({"recipe": recipe, "seq_len": data.seq_len, **data.fingerprint()}))
    return made


class Part(NamedTuple):
    """A file of consecutive examples."""

    first: int
    end: int
    file: Path


class TeacherCache:
    """A folder of `sslm distill-cache`, read by position; loader processes have it too.

    Args:
        folder: as given.

    Raises:
        UserError: it is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
            is_known = self.manifest["format"] == FORMAT and all(
                type(self.manifest[name]) is kind for name, kind in KNOWN.items()
            )
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            is_known = False
        if not is_known:
            raise UserError(f"--distill.cache {folder}: has no manifest of a cache of this version; {MAKE}")
        self.parts = parts_in(folder)

    @property
    def end(self) -> int:
        """Number of examples from the run's first on."""
        return self.parts[-1].end if self.parts else 0

    @property
    def fingerprint(self) -> str:
        """What a run's checkpoint keeps."""
        return f"{self.manifest['teacher']}{BESIDE_CACHE}{self.manifest['k']}"

    def check(self, data: DataModule, temperature: float, num_examples: int, teacher: str | None) -> None:
        """Refuse to train beside it if it is of something else: a UserError.

        Args:
            data: of the run.
            temperature: of the run's divergence.
            num_examples: that the run takes.
            teacher: fingerprint of the teacher that it is said to be of; None if none was named.
        """
        flag, known = f"--distill.cache {self.folder}", self.manifest
        if changed := changes(known["made_of"], made_of(data)):
            raise UserError(f"{flag}: is of another stream ({changed[0]}); {MAKE}")
        if (was := known["temperature"]) != temperature:
            raise UserError(f"{flag}: is of temperature {was:g}; give --distill.temperature {was:g}, or {MAKE}")
        if teacher is not None and teacher != known["teacher"]:
            raise UserError(f"{flag}: is of another teacher; leave --distill.teacher out, or {MAKE}")
        if len(data.lengths.stages) > 1:
            raise UserError(f"{flag}: not with --seq_len {data.lengths.setting}; give {data.seq_len} alone")
        if self.end < num_examples:
            what = f"has {self.end:,} examples, and this run takes {num_examples:,}"
            raise UserError(f"{flag}: {what}; run its sslm distill-cache again with this run's --max_steps")
        for part in self.parts:  # what was cut short is found before the first step
            self._read_part(part, part.first, part.first + 1)

    def __call__(self, positions: Ints, arrays: Arrays) -> Arrays:
        """Read what the teacher said of the examples at these positions, by name.

        Args:
            positions: as they would be if none had been skipped.
            arrays: the examples, as the recipe made them.

        Raises:
            UserError: other examples stood there when the cache was made.
        """
        found = [self._read(int(first), int(end)) for first, end in stretches(positions)]
        joined = {name: np.concatenate([some[name] for some in found]) for name in (*NAMES, "digests")}
        wrong = np.flatnonzero(joined.pop("digests") != row_digests(arrays).astype(np.int64))
        if len(wrong):
            what = f"another example stood at position {positions[wrong[0]]:,} when it was made"
            why = "a bad shard was replaced, or examples were skipped and noise is by position"
            raise UserError(f"--distill.cache {self.folder}: {what} ({why}); give its --distill.teacher instead")
        return {f"{BESIDE}{name}": array for name, array in joined.items()}

    def _read(self, first: int, end: int) -> dict[str, NDArray[Any]]:
        """Read positions first … end − 1 of all parts that have some."""
        found = [
            self._read_part(part, max(first, part.first), min(end, part.end))
            for part in self.parts
            if part.first < end and first < part.end
        ]
        if sum(len(some["rest"]) for some in found) != end - first:
            what = f"has {self.end:,} examples, and this run takes those up to {end:,}, as some were skipped"
            raise UserError(f"--distill.cache {self.folder}: {what}; run its sslm distill-cache with more --max_steps")
        return {name: np.concatenate([some[name] for some in found]) for name in SUMMED}

    def _read_part(self, part: Part, first: int, end: int) -> dict[str, NDArray[Any]]:
        """Read positions first … end − 1 of a part that has them; UserError if they are not what was written."""
        here = slice(first - part.first, end - part.first)
        try:
            with safe_open(part.file, "np") as file:
                found = {name: file.get_slice(name)[here] for name in (*SUMMED, "sums")}
            if not np.array_equal(found["sums"], self._sums(found)):
                raise ValueError("it is not what its checksums are of")
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"{part.file}: is damaged ({error}); remove it, and {MAKE}") from None
        return found

    def _sums(self, arrays: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
        """Compute each example's checksum: other bytes, and those of another teacher, have another one."""
        of = zlib.crc32(json.dumps([self.manifest[name] for name in ("teacher", "temperature", "k")]).encode())
        rows = zip(*(arrays[name] for name in SUMMED), strict=True)
        return np.array([functools.reduce(lambda sum, row: zlib.crc32(row, sum), each, of) for each in rows], np.int64)

    def add(self, said: list[TopK], digests: list[NDArray[np.int64]]) -> None:
        """Write the next part, whole or not at all."""
        values, ids, rest = (torch.cat(some).cpu() for some in zip(*said, strict=True))
        arrays = {"values": values.float().numpy(), "ids": ids.int().numpy(), "rest": rest.float().numpy()}
        arrays["digests"] = np.concatenate(digests)
        first, end = self.end, self.end + len(rest)
        new = self.folder / f".part-{first}.new"
        new.write_bytes(save(arrays | {"sums": self._sums(arrays)}))
        fsync(new)
        self.parts.append(Part(first, end, new.replace(self.folder / f"part-{first:012}-{end:012}.safetensors")))


def stretches(positions: Ints) -> Iterator[tuple[int, int]]:
    """Cut rising positions into consecutive ones: first and end of each.

    >>> list(stretches(np.array([4, 5, 9])))
    [(4, 6), (9, 10)]
    """
    for some in np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1):
        yield int(some[0]), int(some[-1]) + 1


def parts_in(folder: Path) -> list[Part]:
    """List the parts from position 0 on, without a gap."""
    found = (re.fullmatch(r"part-(\d{1,18})-(\d{1,18})\.safetensors", file.name) for file in folder.iterdir())
    every = sorted(Part(int(name[1]), int(name[2]), folder / name[0]) for name in found if name)
    parts: list[Part] = []
    for part in every:
        if part.first == (parts[-1].end if parts else 0) and part.end > part.first:
            parts.append(part)
    return parts


def begin(folder: Path, teacher: str, temperature: float, k: int, data: DataModule) -> TeacherCache:
    """Begin a cache, or go on with one.

    Raises:
        UserError: the folder has something else, or a cache of something else.
    """
    manifest = {"format": FORMAT, "teacher": teacher, "temperature": temperature, "k": k, "made_of": made_of(data)}
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "manifest.json").is_file():
            raise UserError(f"--out {folder}: has files that are no cache's; choose another folder")
        there = TeacherCache(folder)
        if changed := changes(there.manifest, manifest):
            raise UserError(f"--out {folder}: is a cache of something else ({changed[0]}); choose another folder")
        for unfinished in folder.glob(".part-*.new"):  # of a command that was killed
            unfinished.unlink()
        return there
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    return TeacherCache(folder)
