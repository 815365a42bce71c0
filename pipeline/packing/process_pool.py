"""Run jobs in worker processes, which exit when their parent process does, even if it is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from mimcl.pipeline.files import DataError

_POLL_S = 0.1  # between two looks at the workers' progress

Job = TypeVar("Job")
Work = Callable[[Job, Callable[[int], None]], None]


def run(work: Work, jobs: Iterable[Job], count: int, workers: int, on_progress: Callable[[int], None]) -> None:
    """Call `work(job, advance)` for each of `count` jobs in worker processes, or in this process if one suffices.

    `work` must be a module-level function. It calls `advance(n)` regularly, and `on_progress` is called here with the
    sums. After an error or an interrupt `advance` raises, which stops the other jobs. Raises what `work` raises, and
    DataError if a worker was killed. Scripts must call this under `if __name__ == "__main__"`, as multiprocessing
    requires.
    """
    workers = min(workers, count)
    if workers <= 1:
        for job in jobs:
            work(job, on_progress)
        return
    context = multiprocessing.get_context("spawn")  # forking a process that has threads is not safe
    advanced, stopped = context.Value("q", 0), context.RawValue("b", 0)
    pool = ProcessPoolExecutor(workers, context, _start, (advanced, stopped))
    pending: set[Future[None]] = set()
    reported, waiting = 0, iter(jobs)
    try:
        while True:
            pending |= {pool.submit(_work, work, job) for job in islice(waiting, 2 * workers - len(pending))}
            if not pending:
                break
            finished, pending = wait(pending, _POLL_S, FIRST_COMPLETED)
            for future in finished:
                future.result()
            now = advanced.get_obj().value  # without the lock, which a killed worker may hold for ever
            if now > reported:
                on_progress(now - reported)
                reported = now
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed (out of memory?); run the same command again to resume, with fewer --workers "
            "if memory is short"
        ) from None
    finally:  # stops the other jobs after an error
        stopped.value = 1
        pool.shutdown(cancel_futures=True)


class _Stopped(Exception):
    """Raised in a worker after another job has failed."""


# Set in each worker process when it starts.
_advance: Callable[[int], None]


def _start(advanced: Any, stopped: Any) -> None:
    global _advance

    def advance(items: int) -> None:
        if stopped.value:
            raise _Stopped
        with advanced.get_lock():
            advanced.value += items

    _advance = advance
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the parent stops the workers
    threading.Thread(target=_exit_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _exit_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(work: Work, job: Any) -> None:
    work(job, _advance)
