"""Which windows may be planned, where what they depend on becomes known during training."""

from __future__ import annotations

import threading
from concurrent.futures import Future


class WindowGate:
    """Windows up to a number are open, that is, all they depend on is known; the number only rises. Thread-safe.

    A window is planned ahead of its use, in the background. What is learned in window w therefore takes effect in
    window w + 2, and window w + 2 opens when the last step of window w is done: then the stream, which is at most half
    a window ahead of training, has not yet reached it, and nothing waits.
    """

    def __init__(self, last: int) -> None:
        """Windows up to `last` are open."""
        self._last = last
        self._lock = threading.Lock()
        self._awaited: dict[int, Future[None]] = {}

    def open(self, last: int) -> None:
        """Open all windows up to `last`."""
        with self._lock:
            self._last = max(self._last, last)
            opened = [self._awaited.pop(window) for window in sorted(self._awaited) if window <= self._last]
        for future in opened:
            future.set_result(None)

    def when_open(self, window: int) -> Future[None] | None:
        """Return a future that is done once `window` is open; None if it is."""
        with self._lock:
            return None if window <= self._last else self._awaited.setdefault(window, Future())
