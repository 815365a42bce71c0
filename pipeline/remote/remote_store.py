"""Bytes of samples of a remote data set: from the cache, else fetched, ahead of their use where that is known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.read_plan import Reads
from mimcl.pipeline.read_pool import ReadPool
from mimcl.pipeline.remote.range_plan import plan_requests
from mimcl.pipeline.remote.remote_folder import ARRIVALS, RemoteFolder, Stat
from mimcl.pipeline.remote.retry import PATIENCE
from mimcl.pipeline.remote.shard_cache import CachedShard, ShardCache
from mimcl.pipeline.remote.worker_pool import Crew
from mimcl.pipeline.store import Defect, defect_of

_NOW, _AHEAD = 16, 8  # threads that fetch what is waited for, and what will be needed
_AHEAD_SHARE = 4  # what is fetched ahead of one stretch is at most this part of the cache

_PATIENT = 5.0  # seconds that fetching ahead waits for who fetches the same

Found = dict[int, NDArray[np.uint8] | str]  # by sample_id: its bytes, or why it is bad
Look = Callable[[CachedShard, "_Shard", NDArray[np.int64]], tuple[Found, NDArray[np.int64]]]  # found, and missing


class _Shard(NamedTuple):
    number: int
    name: str
    stat: Stat
    key: str  # in the cache
    first: int  # its samples are the rows [first, last)
    last: int


class RemoteStore:
    """Reads samples of one split, in one thread at a time; `expect` may be called from another."""

    wants_reads = True

    def __init__(self, index: ShardIndex) -> None:
        self._index = index
        self._remote, self._cache = RemoteFolder(index.url), ShardCache()
        self._shards: dict[int, _Shard] = {}
        self._bad: dict[int, str] = {}  # so that a bad sample is not fetched at each of its draws
        self._now, self._ahead = Crew("fetch", _NOW), Crew("fetch ahead", _AHEAD)
        self._cache_readers = ReadPool()
        self._ranges: bool | None = None  # whether the server knows them; None until it was asked
        self._one_at_a_time = threading.Lock()  # while it is not known to: each answer may be a whole shard
        self._words = "starting"

    def read(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.uint8] | Defect]:
        """The image bytes of each sample, or why it is bad: what lies there does not match the index.

        Raises DataError for a shard that cannot be had, or is not the one it was, and for a cache without room.
        """
        distinct = np.unique(sample_ids)
        found: Found = {row: self._bad[row] for row in distinct.tolist() if row in self._bad}
        shards = np.unique(self._index.shard[distinct]).tolist()
        self._together([partial(self._opened, shard) for shard in shards if shard not in self._shards])
        rows = np.array([row for row in distinct.tolist() if row not in found], np.int64)
        for part in self._cache_readers.run(len(rows), lambda start, stop: self._cached(rows[start:stop])):
            found |= part
        missing = np.array([row for row in distinct.tolist() if row not in found], np.int64)
        if len(missing):
            requests = plan_requests(self._index, missing)
            tasks = zip(requests.shard.tolist(), _requested(requests), strict=True)
            for part in self._together([partial(self._fetched, *task) for task in tasks]):
                found |= part
        return [self.defect(row, data) if isinstance(data := found[row], str) else data for row in sample_ids.tolist()]

    def plan(self, sample_ids: NDArray[np.int64]) -> Reads:
        """Each shard as is cheaper: whole, if the cache has much more room, or by ranges."""
        return plan_requests(self._index, sample_ids, self._cache.limit // _AHEAD_SHARE)

    def expect(self, reads: Reads) -> None:
        """Fetches what of it is not here, in the background.

        What is beyond a share of the cache is left to `read`, lest it drive out what is needed before it.
        """
        ahead = np.count_nonzero(np.cumsum(reads.stop - reads.start) <= self._cache.limit // _AHEAD_SHARE)
        of_shards = {}
        for shard, rows in zip(reads.shard[:ahead].tolist(), _requested(reads), strict=False):
            of_shards.setdefault(shard, []).append(rows)
        self._ahead.add(
            partial(self._quietly, partial(self._line_up, shard, ranges)) for shard, ranges in of_shards.items()
        )

    def defect(self, sample_id: int, reason: str) -> Defect:
        """`reason` with the sample's key and shard."""
        return defect_of(self._index, sample_id, reason)

    def reading(self) -> str:
        """What is being fetched, or was last."""
        return self._words

    def close(self) -> None:
        """Nothing more is fetched ahead; what has begun ends by itself. The store may be used again."""
        self._ahead.drop()
        self._cache_readers.close()

    def _opened(self, number: int) -> _Shard:
        """The shard as it was found when it was first asked for."""
        if known := self._shards.get(number):
            return known
        index = self._index
        if not 0 <= number < len(index.shards):
            raise DataError(f"the index of {index.shown} is damaged: there is no shard {number}; pack again")
        name, size = index.shards[number]["name"], index.shards[number]["bytes"]
        self._words = f"fetching {name}"
        stat = self._remote.stat(name)
        if stat.size != size:
            stat = self._remote.stat(name, anew=True)  # once more: an answer may have been cut short
        if stat.size != size:
            raise DataError(
                f"shard {self._remote.at(name)} has {stat.size:,} bytes, the index says {size:,}; upload it again or "
                "pack again"
            )
        first, last = np.searchsorted(index.shard, [number, number + 1]).tolist()
        # Another thread may have been faster; all take the first answer.
        return self._shards.setdefault(
            number, _Shard(number, name, stat, self._cache.key(self._remote.at(name), stat), first, last)
        )

    def _cached(self, rows: NDArray[np.int64]) -> Found:
        """Those of the samples, ascending, that are here."""
        found: Found = {}
        for number, of_shard in self._by_shard(rows):
            shard = self._opened(number)
            self._cache.need(shard.key)
            file = self._cache.find(shard.key, shard.stat.size, shard.last - shard.first)
            if file is not None:
                found |= self._held(file, shard, of_shard)
        return found

    def _held(self, file: CachedShard, shard: _Shard, rows: NDArray[np.int64]) -> Found:
        index, found = self._index, {}
        for row in rows[self._have(file, shard)[rows - shard.first]].tolist():
            data = file.read(int(index.offset[row]), int(index.nbytes[row]), int(index.xxh64[row]))
            if data is not None:
                found[row] = data
        return found

    def _have(self, file: CachedShard, shard: _Shard) -> NDArray[np.bool_]:
        return file.have(0, shard.last - shard.first)

    def _by_shard(self, rows: NDArray[np.int64]) -> Iterable[tuple[int, NDArray[np.int64]]]:
        shards, starts = np.unique(self._index.shard[rows], return_index=True)
        return zip(shards.tolist(), np.split(rows, starts[1:]), strict=False)  # of no rows there is one empty part

    def _line_up(self, number: int, ranges: list[NDArray[np.int64]]) -> None:
        """Queues what is missing of the samples that are expected of a shard, a request for each of these ranges."""
        shard = self._opened(number)
        self._cache.need(shard.key)
        file = self._cache.find(shard.key, shard.stat.size, shard.last - shard.first)
        here = np.zeros(shard.last - shard.first, bool) if file is None else self._have(file, shard)
        del file
        tasks: list[NDArray[np.int64]] = []
        for rows in ranges:
            missing = rows[~here[rows - shard.first]]
            tasks += [rows] if len(missing) == len(rows) else _requested(plan_requests(self._index, missing))
        self._ahead.add(
            (partial(self._quietly, partial(self._fetch_ahead, number, rows)) for rows in tasks), first=True
        )

    def _fetch_ahead(self, number: int, rows: NDArray[np.int64], patience: float = 0.0) -> None:
        if self._fetch(self._opened(number), rows, patience, self._absent) is None and not patience:
            # Somebody is at it, perhaps at a part of it: the others first.
            self._ahead.add([partial(self._quietly, partial(self._fetch_ahead, number, rows, _PATIENT))])

    def _absent(self, file: CachedShard, shard: _Shard, rows: NDArray[np.int64]) -> tuple[Found, NDArray[np.int64]]:
        missing = rows[~self._have(file, shard)[rows - shard.first]]
        return {}, np.array([row for row in missing.tolist() if row not in self._bad], np.int64)

    def _fetched(self, number: int, rows: NDArray[np.int64]) -> Found:
        """The samples, ascending and near one another; from the cache, if somebody else has fetched them meanwhile."""

        def rest(file: CachedShard, shard: _Shard, rows: NDArray[np.int64]) -> tuple[Found, NDArray[np.int64]]:
            found = self._held(file, shard, rows)
            return found, np.array([row for row in rows.tolist() if row not in found], np.int64)

        return self._fetch(self._opened(number), rows, PATIENCE.total, rest)

    def _fetch(self, shard: _Shard, rows: NDArray[np.int64], patience: float, look: Look) -> Found | None:
        """Fetches what `look` does not find; None while others fetch some of it, after waiting `patience` seconds."""
        file = self._cache.open(shard.key, shard.stat.size, shard.last - shard.first)
        start, stop = int(self._index.offset[rows[0]]), int(self._index.offset[rows[-1]] + self._index.nbytes[rows[-1]])
        if self._ranges is False:
            start, stop = 0, shard.stat.size
        alone = nullcontext() if self._ranges else self._one_at_a_time
        with alone, file.locked(start, stop, patience) as mine:
            if not mine and patience < PATIENCE.total:
                return None
            found, missing = look(file, shard, rows)
            for attempt in range(ARRIVALS):
                if not len(missing):
                    return found
                if attempt:
                    self._require_unchanged(shard)
                    time.sleep(PATIENCE.wait(f"{self._remote.url} {shard.name} {missing[0]}", attempt - 1))
                arrived = self._arrive(file, shard, missing)
                found |= {row: arrived[row] for row in missing.tolist() if row in arrived}
                missing = np.array([row for row in missing.tolist() if row not in arrived], np.int64)
            self._require_unchanged(shard)
            self._bad |= dict.fromkeys(missing.tolist(), "its bytes do not match the index")
            return found | {row: self._bad[row] for row in missing.tolist()}

    def _arrive(self, file: CachedShard, shard: _Shard, wanted: NDArray[np.int64]) -> dict[int, NDArray[np.uint8]]:
        """Fetches the samples from the first to the last of those wanted, with all between; keeps the sound ones."""
        index, first, last = self._index, int(wanted[0]), int(wanted[-1]) + 1
        start, stop = int(index.offset[first]), int(index.offset[last - 1] + index.nbytes[last - 1])
        self._words = f"fetching {shard.name}"
        begin, data = self._bytes(shard, start, stop)
        if begin != start:  # all of the shard has come
            first, last = shard.first, shard.last
        view, sound = memoryview(data), {}
        offsets, sizes = index.offset[first:last].tolist(), index.nbytes[first:last].tolist()
        for row, offset, nbytes, expected in zip(
            range(first, last), offsets, sizes, index.xxh64[first:last].tolist(), strict=True
        ):
            part = view[offset - begin : offset - begin + nbytes]
            if xxhash.xxh64_intdigest(part) == expected:
                sound[row] = offset, part

        def write() -> None:
            for row, (offset, part) in sound.items():
                file.write(row - shard.first, offset, part)

        self._cache.keep(sum(len(part) for _, part in sound.values()), write)
        # Copies, lest a sample hold all that came with it.
        return {row: np.frombuffer(bytes(sound[row][1]), np.uint8) for row in wanted.tolist() if row in sound}

    def _bytes(self, shard: _Shard, start: int, stop: int) -> tuple[int, bytes]:
        begin, data = self._remote.fetch(shard.name, start, stop, shard.stat.size)
        self._ranges = len(data) == stop - start
        return begin, data

    def _require_unchanged(self, shard: _Shard) -> None:
        """Raises DataError if the object is another than when it was opened."""
        if (now := self._remote.stat(shard.name, anew=True)) != shard.stat:
            before, since = (f"{stat.size:,} bytes and etag {stat.etag or 'none'}" for stat in (shard.stat, now))
            raise DataError(
                f"shard {self._remote.at(shard.name)} changed while it was in use: it had {before}, now {since}; put "
                "back the one that was packed, or pack again"
            )

    def _together(self, tasks: list[Callable[[], object]]) -> list:
        """What the tasks return, each done by a thread; raises the first of their errors."""
        futures: list[Future] = [Future() for _ in tasks]

        def done(task: Callable[[], object], future: Future) -> None:
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)

        self._now.add(partial(done, task, future) for task, future in zip(tasks, futures, strict=True))
        return [future.result() for future in futures]

    def _quietly(self, task: Callable[[], None]) -> None:
        """What fails ahead of its use is tried once more when it is needed, and complained of then."""
        try:
            task()
        except Exception:
            self._ahead.drop()


def _requested(reads: Reads) -> list[NDArray[np.int64]]:
    """The samples of each range."""
    return [reads.sample_ids[first:last] for first, last in pairwise(reads.first.tolist())]
