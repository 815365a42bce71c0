"""A background thread that makes items ahead of their use, and can be stopped at any point."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from mimcl.pipeline.window_prefetch import Ended

T = TypeVar("T")


class Producer(Generic[T]):
    """Runs an iterator in a thread; at most `ahead` items are begun and not yet taken.

    `make(free, ended)` returns the iterator, which acquires `free` before it begins an item and returns when `ended`
    is done. The thread is a daemon: an iterator that hangs cannot hold the program.
    """

    def __init__(self, make: Callable[[threading.Semaphore, Ended], Iterator[T]], ahead: int) -> None:
        self._free, self._ended = threading.Semaphore(ahead), Ended()
        self._results: queue.SimpleQueue[T | Exception | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(make,), name="stream", daemon=True)
        self._thread.start()

    def _run(self, make: Callable[[threading.Semaphore, Ended], Iterator[T]]) -> None:
        try:
            for item in make(self._free, self._ended):
                self._results.put(item)
            self._results.put(None)
        except Exception as error:
            self._results.put(error)

    def take(self, timeout: float) -> T | None:
        """The next item, None at the end; raises what the iterator raised, and queue.Empty after `timeout` seconds."""
        item = self._results.get(timeout=timeout)
        if isinstance(item, Exception):
            raise item
        self._free.release()
        return item

    def stop(self, timeout: float) -> bool:
        """End the thread and drop what was made; returns whether the thread has ended within `timeout` seconds."""
        self._ended.set()
        self._free.release()
        self._thread.join(timeout)
        return not self._thread.is_alive()
