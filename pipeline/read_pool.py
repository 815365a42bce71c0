"""Threads that read a micro-batch's samples in parallel and never keep the process from exiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import pairwise
from queue import SimpleQueue
from typing import TypeVar

# Each thread waits for one read, so this is how many requests the device has at once. pread releases the GIL, and so
# does hashing (large images, recent xxhash). On 2 cores, 8 threads read uncached micro-batches faster than 4, 6 or 16
# (tools/bench/loader.py).
READ_THREADS = 8
_MIN_SAMPLES = 4  # per thread: passing a chunk to a thread costs about as much as reading one cached sample
CLOSE_TIMEOUT_S = 5.0

Result = TypeVar("Result")
Tasks = SimpleQueue[Callable[[], None] | None]  # None ends one thread


class ReadPool:
    """Reads chunks of samples in the calling thread and in READ_THREADS - 1 others, for one caller at a time.

    The threads are daemons. The interpreter joins those of an executor at exit, so that one that hangs in a read from a
    dead file server would keep the process alive. They start when first needed, since starting them for every read
    costs more than reading cached samples, and end with `close` or with the pool.
    """

    def __init__(self) -> None:
        self._tasks: Tasks = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def __del__(self) -> None:
        self._end_threads()

    def run(self, samples: int, read: Callable[[int, int], Result]) -> list[Result]:
        """Call read(start, stop) for contiguous chunks of range(samples); return the results in order.

        Raises the first error in that order, without waiting for later chunks.
        """
        chunks = max(1, min(READ_THREADS, samples // _MIN_SAMPLES))
        (start, stop), *others = pairwise(samples * chunk // chunks for chunk in range(chunks + 1))
        if others:
            self._start_threads()
        futures = [Future[Result]() for _ in others]
        for future, chunk in zip(futures, others, strict=True):
            self._tasks.put(partial(_complete, future, read, *chunk))
        return [read(start, stop), *(future.result() for future in futures)]

    def close(self) -> None:
        """End the threads, leaving behind one that hangs for CLOSE_TIMEOUT_S. The pool may be used again."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in self._end_threads():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _end_threads(self) -> list[threading.Thread]:
        """Tell each thread to end when it is idle; returns the threads."""
        ending = self._threads
        for _ in ending:
            self._tasks.put(None)
        self._tasks, self._threads = SimpleQueue(), []
        return ending

    def _start_threads(self) -> None:
        if not all(thread.is_alive() for thread in self._threads):  # in a forked process, none are
            self._end_threads()
        while len(self._threads) < READ_THREADS - 1:
            # No reference to the pool, so that the pool is collected with its owner, and then ends the threads.
            thread = threading.Thread(target=_work, args=(self._tasks,), name="read", daemon=True)
            thread.start()
            self._threads.append(thread)


def _work(tasks: Tasks) -> None:
    while (task := tasks.get()) is not None:
        task()
        del task  # it holds the samples that it read


def _complete(future: Future[Result], read: Callable[[int, int], Result], start: int, stop: int) -> None:
    try:
        future.set_result(read(start, stop))
    except BaseException as error:
        future.set_exception(error)
