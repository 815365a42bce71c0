"""Read samples of a remote data set: from the cache, else by requests, prefetched where the next reads are known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.read_plan import ReadPlan
from mimcl.pipeline.read_pool import ReadPool
from mimcl.pipeline.remote.pause import paused_until
from mimcl.pipeline.remote.range_plan import plan_requests
from mimcl.pipeline.remote.remote_folder import CHECKSUM_ATTEMPTS, RemoteFolder
from mimcl.pipeline.remote.remote_shards import RemoteShard, RemoteShards
from mimcl.pipeline.remote.retry import RETRY_POLICY
from mimcl.pipeline.remote.shard_cache import CachedShard, ShardCache
from mimcl.pipeline.remote.worker_pool import WorkerPool
from mimcl.pipeline.store import Defect, defect_of

_READ_THREADS, _PREFETCH_THREADS = 16, 8
_PREFETCH_SHARE = 4  # prefetching fills at most a quarter of the cache at once
_PREFETCH_LOCK_TIMEOUT_S = 5.0  # wait this long for another process that fetches the same range

Found = dict[int, NDArray[np.uint8] | str]  # by sample_id: its bytes, or why it is bad
T = TypeVar("T")


class RemoteStore:
    """Read samples of one split, from one thread at a time; `prefetch` may be called from another."""

    wants_read_plans = True

    def __init__(self, index: ShardIndex, whole_shards: bool = False) -> None:
        """With `whole_shards`, plans have all of each shard that is needed; the cache must have room for all shards."""
        self._index, self._whole_shards = index, whole_shards
        if index.url is None:
            raise ValueError("RemoteStore needs an index loaded from a URL")
        self._remote, self._cache = RemoteFolder(index.url), ShardCache()
        self._shards = RemoteShards(index, self._remote)
        self._most_ahead = self._cache.limit // (1 if whole_shards else _PREFETCH_SHARE)  # bytes prefetched at once
        self._bad: dict[int, str] = {}  # reasons, kept so that a bad sample is fetched only once
        self._read_pool, self._prefetch_pool = (
            WorkerPool("fetch", _READ_THREADS),
            WorkerPool("prefetch", _PREFETCH_THREADS),
        )
        self._cache_pool = ReadPool()
        self._ranges: bool | None = None  # whether the server supports them; None: not known yet
        self._one_at_a_time = threading.Lock()  # until ranges are known to work: an answer may be a whole shard

    def read(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.uint8] | Defect]:
        """Return the image bytes of each sample, or a Defect if they do not match the index.

        Raises DataError if a shard cannot be fetched or has changed, or if the cache cannot be written.
        """
        distinct = np.unique(sample_ids)
        found: Found = {row: self._bad[row] for row in distinct.tolist() if row in self._bad}
        shards = np.unique(self._index.shard[distinct]).tolist()
        self._run_all([partial(self._shards.open, shard) for shard in shards if shard not in self._shards])
        rows = np.array([row for row in distinct.tolist() if row not in found], np.int64)
        for part in self._cache_pool.run(len(rows), lambda start, stop: self._read_cached(rows[start:stop])):
            found |= part
        missing = np.array([row for row in distinct.tolist() if row not in found], np.int64)
        if len(missing):
            requests = plan_requests(self._index, missing)
            tasks = zip(requests.shard.tolist(), _requested(requests), strict=True)
            for part in self._run_all([partial(self._read_remote, *task) for task in tasks]):
                found |= part
        return [
            defect_of(self._index, row, data) if isinstance(data := found[row], str) else data
            for row in sample_ids.tolist()
        ]

    def plan_reads(self, sample_ids: NDArray[np.int64]) -> ReadPlan:
        """Plan whole shards or ranges, whichever is cheaper; whole only if the shard is small beside the cache."""
        return plan_requests(self._index, sample_ids, self._most_ahead, self._whole_shards)

    def prefetch(self, reads: ReadPlan) -> None:
        """Prefetch in the background what is not cached, but not so much that it evicts samples needed earlier."""
        ahead = np.count_nonzero(np.cumsum(reads.stop - reads.start) <= self._most_ahead)
        ranges_of: dict[int, list[NDArray[np.int64]]] = {}
        for shard, rows in zip(reads.shard[:ahead].tolist(), _requested(reads), strict=False):
            ranges_of.setdefault(shard, []).append(rows)
        self._prefetch_pool.add(
            partial(self._quietly, partial(self._queue_missing, shard, ranges)) for shard, ranges in ranges_of.items()
        )

    def activity(self) -> str:
        """Return what is being fetched, or was fetched last."""
        return self._remote.activity

    def paused_until(self) -> float:
        """When the last pause that a server asked for ends or ended: time.monotonic(), -inf without one."""
        return paused_until()

    def close(self) -> None:
        """Cancel queued prefetches; running requests finish. The store can be used again."""
        self._prefetch_pool.clear()
        self._cache_pool.close()

    def _read_cached(self, rows: NDArray[np.int64]) -> Found:
        """Return those of the samples (ascending) that are cached."""
        found: Found = {}
        for number, of_shard in self._by_shard(rows):
            shard = self._shards.open(number)
            self._cache.touch(shard.key)
            file = self._cache.find(shard.key, shard.stat.size, shard.last - shard.first)
            if file is not None:
                found |= self._read_file(file, shard, of_shard)
        return found

    def _read_file(self, file: CachedShard, shard: RemoteShard, rows: NDArray[np.int64]) -> Found:
        index = self._index
        found: Found = {}
        for row in rows[self._is_cached(file, shard)[rows - shard.first]].tolist():
            data = file.read(int(index.offset[row]), int(index.nbytes[row]), int(index.xxh64[row]))
            if data is not None:
                found[row] = data
        return found

    def _is_cached(self, file: CachedShard, shard: RemoteShard) -> NDArray[np.bool_]:
        return file.is_cached(0, shard.last - shard.first)

    def _by_shard(self, rows: NDArray[np.int64]) -> Iterable[tuple[int, NDArray[np.int64]]]:
        shards, starts = np.unique(self._index.shard[rows], return_index=True)
        # Not strict: np.split of no rows gives one empty part.
        return zip(shards.tolist(), np.split(rows, starts[1:]), strict=False)

    def _queue_missing(self, number: int, ranges: list[NDArray[np.int64]]) -> None:
        """Queue requests for the samples in these ranges of a shard that are not cached."""
        shard = self._shards.open(number)
        self._cache.touch(shard.key)
        file = self._cache.find(shard.key, shard.stat.size, shard.last - shard.first)
        cached = np.zeros(shard.last - shard.first, bool) if file is None else self._is_cached(file, shard)
        del file  # which closes it
        tasks: list[NDArray[np.int64]] = []
        for rows in ranges:
            missing = rows[~cached[rows - shard.first]]
            tasks += [rows] if len(missing) == len(rows) else _requested(plan_requests(self._index, missing))
        self._prefetch_pool.add(
            (partial(self._quietly, partial(self._prefetch, number, rows)) for rows in tasks), first=True
        )

    def _prefetch(self, number: int, rows: NDArray[np.int64], lock_timeout: float = 0.0) -> None:
        shard = self._shards.open(number)
        with self._locked(shard, rows, lock_timeout) as (file, acquired):
            if acquired:
                missing = rows[~self._is_cached(file, shard)[rows - shard.first]].tolist()
                self._fetch(file, shard, [row for row in missing if row not in self._bad])
        if not acquired and not lock_timeout:  # another process fetches some of it: try again after the other requests
            self._prefetch_pool.add(
                [partial(self._quietly, partial(self._prefetch, number, rows, _PREFETCH_LOCK_TIMEOUT_S))]
            )

    def _read_remote(self, number: int, rows: NDArray[np.int64]) -> Found:
        """Fetch samples (ascending, near one another), except those that another process has cached meanwhile."""
        shard = self._shards.open(number)
        with self._locked(shard, rows, RETRY_POLICY.total_timeout) as (file, _):
            found = self._read_file(file, shard, rows)
            return found | self._fetch(file, shard, [row for row in rows.tolist() if row not in found])

    @contextmanager
    def _locked(
        self, shard: RemoteShard, rows: NDArray[np.int64], timeout: float
    ) -> Iterator[tuple[CachedShard, bool]]:
        """Lock the bytes from the first to the last of the samples; yield the cache file and whether that worked."""
        file = self._cache.open(shard.key, shard.stat.size, shard.last - shard.first)
        start, stop = int(self._index.offset[rows[0]]), int(self._index.offset[rows[-1]] + self._index.nbytes[rows[-1]])
        if self._ranges is False:
            start, stop = 0, shard.stat.size
        with nullcontext() if self._ranges else self._one_at_a_time, file.locked(start, stop, timeout) as acquired:
            yield file, acquired

    def _fetch(self, file: CachedShard, shard: RemoteShard, missing: list[int]) -> Found:
        """Fetch and cache samples; those that do not match the index after several attempts are bad."""
        found: Found = {}
        for attempt in range(CHECKSUM_ATTEMPTS):
            if not missing:
                break
            if attempt:
                self._shards.require_unchanged(shard)
                time.sleep(RETRY_POLICY.wait(f"{self._remote.url} {shard.name} {missing[0]}", attempt - 1))
            found |= self._request(file, shard, missing)
            missing = [row for row in missing if row not in found]
        if missing:
            self._shards.require_unchanged(shard)
            self._bad |= dict.fromkeys(missing, "its bytes do not match the index")
        return found | {row: self._bad[row] for row in missing}

    def _request(self, file: CachedShard, shard: RemoteShard, wanted: list[int]) -> dict[int, NDArray[np.uint8]]:
        """Fetch from the first to the last wanted sample in one request and cache every sample that is intact."""
        index, first, last = self._index, wanted[0], wanted[-1] + 1
        start, stop = int(index.offset[first]), int(index.offset[last - 1] + index.nbytes[last - 1])
        begin, data = self._remote.fetch(shard.name, start, stop, shard.stat)
        self._ranges = len(data) == stop - start
        if begin != start:  # the server sent the whole shard
            first, last = shard.first, shard.last
        view = memoryview(data)
        intact: dict[int, tuple[int, memoryview]] = {}  # offset and bytes
        offsets, sizes = index.offset[first:last].tolist(), index.nbytes[first:last].tolist()
        for row, offset, nbytes, expected in zip(
            range(first, last), offsets, sizes, index.xxh64[first:last].tolist(), strict=True
        ):
            part = view[offset - begin : offset - begin + nbytes]
            if xxhash.xxh64_intdigest(part) == expected:
                intact[row] = offset, part

        def write() -> None:
            for row, (offset, part) in intact.items():
                file.write(row - shard.first, offset, part)

        self._cache.store(sum(len(part) for _, part in intact.values()), write)
        # Copies, so that a sample does not keep the whole response in memory.
        return {row: np.frombuffer(bytes(intact[row][1]), np.uint8) for row in wanted if row in intact}

    def _run_all(self, tasks: list[Callable[[], T]]) -> list[T]:
        """Run the tasks in threads and return their results; raises the first error."""
        futures: list[Future[T]] = [Future() for _ in tasks]

        def run(task: Callable[[], T], future: Future[T]) -> None:
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)

        self._read_pool.add(partial(run, task, future) for task, future in zip(tasks, futures, strict=True))
        return [future.result() for future in futures]

    def _quietly(self, task: Callable[[], None]) -> None:
        """Run a prefetch and cancel the queued ones if it fails: `read` tries again and reports the error."""
        try:
            task()
        except Exception:
            self._prefetch_pool.clear()


def _requested(reads: ReadPlan) -> list[NDArray[np.int64]]:
    """Return the sample ids of each range."""
    return [reads.sample_ids[first:last] for first, last in pairwise(reads.first.tolist())]
