"""Threads that do what is queued for them, and end when nothing is left: none of them can hold the program."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable


class Crew:
    """At most `most` threads for tasks, which are taken in order and must not raise."""

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most = name, most
        self._guard, self._tasks, self._threads = threading.Lock(), deque[Callable[[], None]](), 0

    def add(self, tasks: Iterable[Callable[[], None]], first: bool = False) -> None:
        """Queues tasks, behind those that wait or, with `first`, before them."""
        tasks = list(tasks)
        with self._guard:
            if first:
                self._tasks.extendleft(reversed(tasks))
            else:
                self._tasks.extend(tasks)
            wanted = min(self._most, self._threads + len(tasks))
            started, self._threads = wanted - self._threads, wanted
        for _ in range(started):
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def drop(self) -> None:
        """Forgets the tasks that nobody has begun."""
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
