"""Run jobs in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from mimcl.pipeline.files import DataError
from mimcl.pipeline.packing.worker_process import Advanced, Work, WorkerProcess


def run(work: Work, jobs: Iterable[Any], count: int, workers: int, on_progress: Callable[[int], None]) -> None:
    """Call `work(job, advance)` for each of `count` jobs in worker processes, or in this process if one suffices.

    `work` must be a function, and jobs must be objects, of modules that can be imported. `work` calls `advance(n)`
    regularly, and `on_progress(n)` is then called here. After an error or an interrupt `advance` raises, which stops
    the other jobs. Raises what `work` raises, and DataError if a worker was killed. Works in scripts without
    `if __name__ == "__main__"`, in notebooks, and beside threads.
    """
    workers = min(workers, count)
    if workers <= 1:
        for job in jobs:
            work(job, on_progress)
        return
    pool: dict[Connection, WorkerProcess] = {}
    try:
        for _ in range(workers):
            worker = WorkerProcess()
            pool[worker.connection] = worker
        _distribute(work, iter(jobs), pool, on_progress)
    finally:  # stops the other jobs after an error
        for worker in pool.values():
            worker.stop()
        for worker in pool.values():
            worker.join()


def _distribute(
    work: Work, jobs: Iterator[Any], pool: dict[Connection, WorkerProcess], on_progress: Callable[[int], None]
) -> None:
    """Give each idle worker the next job until all are done."""
    busy: set[Connection] = set()
    for connection, job in zip(pool, jobs, strict=False):
        pool[connection].start(work, job)
        busy.add(connection)
    while busy:
        for connection in busy.intersection(wait(list(busy))):
            try:
                message = connection.recv()
            except (EOFError, ConnectionResetError):
                raise DataError(_death(pool.pop(connection).join())) from None
            if isinstance(message, Advanced):
                on_progress(message.items)
                continue
            busy.remove(connection)
            if message.error:
                raise message.error
            for job in jobs:
                pool[connection].start(work, job)
                busy.add(connection)
                break


def _death(code: int) -> str:
    """Say why a worker ended and what to do, from its exit code."""
    again = "run the same command again to resume"
    if code < 0:
        return f"a worker process was killed (out of memory?); {again}, with fewer --workers if memory is short"
    return f"a worker process ended with exit code {code}; {again}"
