"""Jobs on worker processes, which end with the process that started them, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from mimcl.pipeline.files import DataError

_LOOK_SECONDS = 0.1  # between two looks at the workers' progress

Job = TypeVar("Job")
Work = Callable[[Job, Callable[[int], None]], None]


def run(work: Work, jobs: Iterable[Job], count: int, workers: int, on_progress: Callable[[int], None]) -> None:
    """`work(job, advance)` for each of `count` jobs, in that many processes, in this one where one is enough.

    `work` is a function of a module; it calls `advance(n)` now and then, and `on_progress(n)` is called here with what
    all of them have advanced. After an error or an interrupt no job goes on: `advance` raises. Raises what `work`
    raises, and DataError when a worker was killed. A script that calls this does so under `if __name__ == "__main__"`,
    as Python's multiprocessing demands.
    """
    workers = min(workers, count)
    if workers <= 1:
        for job in jobs:
            work(job, on_progress)
        return
    context = multiprocessing.get_context("spawn")  # forking a process that has threads is not safe
    advanced, stopped = context.Value("q", 0), context.RawValue("b", 0)
    pool = ProcessPoolExecutor(workers, context, _start, (advanced, stopped))
    told, pending, waiting = 0, set(), iter(jobs)
    try:
        while True:
            pending |= {pool.submit(_work, work, job) for job in islice(waiting, 2 * workers - len(pending))}
            if not pending:
                break
            finished, pending = wait(pending, _LOOK_SECONDS, FIRST_COMPLETED)
            for future in finished:
                future.result()
            now = advanced.get_obj().value  # not through the lock, which a killed worker may hold for ever
            if now > told:
                on_progress(now - told)
                told = now
    except BrokenProcessPool:
        raise DataError(
            "a worker process was ended from outside, perhaps for want of memory; the same command goes on where it "
            "was, with fewer --workers in less memory"
        ) from None
    finally:  # nothing is left to stop then, unless something failed
        stopped.value = 1
        pool.shutdown(cancel_futures=True)


class _Stopped(Exception):
    """Another job failed."""


# Of a worker process: set once, when it starts.
_advance: Callable[[int], None]


def _start(advanced: Any, stopped: Any) -> None:
    global _advance

    def advance(items: int) -> None:
        if stopped.value:
            raise _Stopped
        with advanced.get_lock():
            advanced.value += items

    _advance = advance
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a terminal sends to all; the first process stops the others
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(work: Work, job: Any) -> None:
    work(job, _advance)
