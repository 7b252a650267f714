"""Records sorted outside memory: spread over files by their keys, so that each file can be sorted in memory."""

import shutil
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

Records = NDArray[np.uint64]
"""[records, columns]: where a record stands in the corpus, its key, and what else must be equal."""
RECORDS = 1 << 22
"""Of a file: with two columns 64 MB, and 300 MB to sort them."""
MOST_FILES = 512
"""That are open at a time: from 2^31 records on, files get longer."""


class Partitions:
    """Files of records in a folder, which goes when this is left."""

    def __init__(self, folder: Path, num: int, columns: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
        folder.mkdir(parents=True)
        self._folder, self._columns = folder, columns
        self._files = [folder / f"{number}.bin" for number in range(num)]
        self._streams = [open(file, "wb") for file in self._files]  # noqa: SIM115

    @staticmethod
    def num_for(records: int) -> int:
        """How many files so many records need."""
        return min(max(-(-records // RECORDS), 1), MOST_FILES)

    def __enter__(self) -> "Partitions":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for stream in self._streams:
            stream.close()
        shutil.rmtree(self._folder)

    def __len__(self) -> int:
        return len(self._files)

    def add(self, records: Records, which: NDArray[np.integer]) -> None:
        """Append records, each to the file that `which` names: [records]."""
        if len(self) == 1:
            self._streams[0].write(np.ascontiguousarray(records).data)
            return
        order = np.argsort(which.astype(np.uint16), kind="stable")
        ends = np.cumsum(np.bincount(which.astype(np.int64), minlength=len(self)))
        for stream, some in zip(self._streams, np.split(records[order], ends[:-1]), strict=True):
            stream.write(some.data)

    def add_by_key(self, records: Records) -> None:
        """Append records, those of one key to one file."""
        self.add(records, records[:, 1] % np.uint64(len(self)))

    def read(self, number: int) -> Records:
        """Read a file's records, in the order in which they were added."""
        self._streams[number].flush()
        return np.fromfile(self._files[number], np.uint64).reshape(-1, self._columns)
