"""A pool of daemon threads: unlike those of `concurrent.futures`, they never delay the exit of the program."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable


class WorkerPool:
    """Up to `max_threads` threads that run queued tasks in order and end when the queue is empty.

    Tasks must not raise.
    """

    def __init__(self, name: str, max_threads: int) -> None:
        self._name, self._max_threads = name, max_threads
        self._guard, self._tasks, self._threads = threading.Lock(), deque[Callable[[], None]](), 0

    def add(self, tasks: Iterable[Callable[[], None]], first: bool = False) -> None:
        """Queue tasks behind those that wait, or before them with `first`."""
        tasks = list(tasks)
        with self._guard:
            if first:
                self._tasks.extendleft(reversed(tasks))
            else:
                self._tasks.extend(tasks)
            wanted = min(self._max_threads, self._threads + len(tasks))
            started, self._threads = wanted - self._threads, wanted
        for _ in range(started):
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def clear(self) -> None:
        """Remove the queued tasks; running tasks continue."""
        with self._guard:
            self._tasks.clear()

    def _work(self) -> None:
        while True:
            with self._guard:
                if not self._tasks:
                    self._threads -= 1
                    return
                task = self._tasks.popleft()
            task()
