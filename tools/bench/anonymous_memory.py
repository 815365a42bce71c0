"""Anonymous memory: resident memory of a process that is not backed by a file."""

from __future__ import annotations

import threading
from pathlib import Path


def anonymous_mb(pid: int | str = "self") -> float:
    """Return the anonymous memory of a process, in MB; 0 once it has ended. Raises OSError if it does not exist."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024 / 1e6


class PeakMemory:
    """Samples the anonymous memory of a process during the block; `peak` is its maximum in MB."""

    def __init__(self, pid: int | str = "self") -> None:
        self._pid, self._ended = pid, threading.Event()
        self.peak = 0.0
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(0.003):
            try:
                self.peak = max(self.peak, anonymous_mb(self._pid))
            except OSError:
                return
