"""A tracker on a thread of its own, so that training neither waits for it nor ends with it."""

import queue
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from sslm.runs.trackers.tracker import Row, Tracker
from sslm.system.errors import one_line
from sslm.system.terminal import say

SECONDS_TO_FINISH = 20.0
"""How long the end of a run waits for a tracker; a job's last half minute is kept free for its end."""


class Feed:
    """Gives a tracker the rows that hold.

    A tracker that can take rows back has them at once; another one those that a checkpoint is past of, since the run
    may go back to the newest checkpoint, and come by these steps again. A tracker that raises is left alone from then
    on, which is said once.

    Args:
        later: the command that gives the tracker its rows later.
    """

    def __init__(self, name: str, tracker: Tracker, later: str) -> None:
        self.name, self.tracker, self.later = name, tracker, later
        self.failed = False
        self._held: deque[Row] = deque()
        self._lock = threading.Lock()  # `hold` is called in the thread that writes checkpoints
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, rows: list[Row]) -> None:
        """Have these rows, which hold."""
        with self._lock:
            self._held.clear()
            self._do(lambda: self.tracker.begin(rows))

    def write(self, row: Row) -> None:
        """Add a row that may yet turn out not to hold."""
        if self.tracker.takes_back:
            self._do(lambda: self.tracker.write(row))
        else:
            with self._lock:
                self._held.append(row)

    def hold(self, step: int) -> None:
        """Give away the rows up to this step: a checkpoint of it is on the disk."""
        with self._lock:
            while self._held and self._held[0]["step"] <= step:
                self._give(self._held.popleft())

    def _give(self, row: Row) -> None:
        self._do(lambda: self.tracker.write(row))

    def send_model(self, folder: Path) -> None:
        """Add the model that the run has made."""
        self._do(lambda: self.tracker.send_model(folder))

    def end(self, failed: bool = False) -> None:
        """Begin to finish; `wait` waits for it."""
        if self._thread is not None:
            self._jobs.put(lambda: self.tracker.close(failed))
            self._jobs.put(None)

    def wait(self, seconds: float = SECONDS_TO_FINISH) -> None:
        """Return when the tracker has finished, or give it up when the time is over; may be called again."""
        if self._thread is None:
            return
        self._thread.join(max(seconds, 0))
        if self._thread.is_alive():
            self._give_up("has not taken all rows in time")
        self._thread = None

    def _do(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=f"tracker {self.name}", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self.failed:
                try:
                    job()
                except Exception as error:  # whatever it is, the run goes on
                    self._give_up(one_line(error) or type(error).__name__)

    def _give_up(self, why: str) -> None:
        if not self.failed:
            self.failed = True
            say(f"Warning: {self.name}: {why}; it is left alone. To send the rows later: {self.later}", to_copy=True)
