"""A background thread that makes items ahead of their use and can be stopped at any point."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from mimcl.pipeline.window_prefetch import StopEvent

T = TypeVar("T")


class Producer(Generic[T]):
    """Runs an iterator in a thread; at most `ahead` items are started and not yet taken.

    `make(free, stop)` returns the iterator, which acquires `free` before it begins an item and returns once `stop` is
    done. The thread is a daemon: an iterator that hangs cannot keep the program alive.
    """

    def __init__(self, make: Callable[[threading.Semaphore, StopEvent], Iterator[T]], ahead: int) -> None:
        self._free, self._stop = threading.Semaphore(ahead), StopEvent()
        self._results: queue.SimpleQueue[T | Exception | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(make,), name="stream", daemon=True)
        self._thread.start()

    def _run(self, make: Callable[[threading.Semaphore, StopEvent], Iterator[T]]) -> None:
        try:
            for item in make(self._free, self._stop):
                self._results.put(item)
            self._results.put(None)
        except Exception as error:
            self._results.put(error)

    def take(self, timeout_s: float) -> T | None:
        """The next item, None at the end. Raises the iterator's error, and queue.Empty after `timeout_s` seconds."""
        item = self._results.get(timeout=timeout_s)
        if isinstance(item, Exception):
            raise item
        self._free.release()
        return item

    def stop(self, timeout_s: float) -> bool:
        """End the thread and drop its items; returns whether the thread has ended within `timeout_s` seconds."""
        self._stop.set()
        self._free.release()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()
