"""Time reading and checking samples without decoding them, from the page cache and from the disk; for loader.py."""

import mmap
import os
import statistics
import time
from collections.abc import Callable
from ctypes import CDLL, c_size_t, c_void_p, get_errno
from unittest import mock

import numpy as np

from mimcl.cli.doctor.machine import forget_shards
from mimcl.pipeline import open_shards, read_pool
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.store import ShardStore

_MAX_CACHED = 0.01  # share of the shards' pages that may still be cached after they were dropped


def cool(index: ShardIndex) -> None:
    """Drop the shards from the page cache; exit where the kernel keeps them, as on tmpfs."""
    forget_shards(index)
    if (share := cached(index)) > _MAX_CACHED:
        raise SystemExit(f"{share:.0%} of the shards are still in the page cache after POSIX_FADV_DONTNEED")


def warm(index: ShardIndex) -> None:
    """Read the shards into the page cache."""
    for shard in index.shards:
        with open(index.root / shard["name"], "rb") as file:
            while file.read(1 << 24):
                pass


def cached(index: ShardIndex) -> float:
    """Return the share of the shards' pages that are in the page cache."""
    mincore, resident, pages = CDLL(None, use_errno=True).mincore, 0, 0
    for shard in index.shards:
        with (
            open(index.root / shard["name"], "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping,
        ):
            view = np.frombuffer(mapping, np.uint8)
            found = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
            if mincore(c_void_p(view.ctypes.data), c_size_t(len(view)), c_void_p(found.ctypes.data)):
                raise OSError(get_errno(), "mincore failed")
            resident, pages = resident + int((found & 1).sum()), pages + len(found)
            del view  # a mapping that is still in use cannot be closed
    return resident / pages


def _not_cached(*_: object) -> None:
    """Stand in for `read_cached`, faster than a mock."""


def one_at_a_time(run: Callable[[], int]) -> Callable[[], int]:
    """Return the same run with samples read one after another, without asking the page cache first."""

    def run_one_at_a_time() -> int:
        one_thread = mock.patch.object(read_pool, "READ_THREADS", 1)
        with one_thread, mock.patch.object(open_shards.OpenShard, "read_cached", _not_cached):
            return run()

    return run_one_at_a_time


def reads(index: ShardIndex, batch: int) -> Callable[[], int]:
    """Return a run that reads every sample once, in a new random order each time, a micro-batch at a time."""
    store, random = ShardStore(index), np.random.default_rng(0)

    def run() -> int:
        ids = random.permutation(index.samples)
        done = sum(len(store.read(ids[start : start + batch])) for start in range(0, len(ids), batch))
        store.close()
        return done

    return run


def compare(index: ShardIndex, batch: int, rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return samples/s of each round, by threads and one at a time, for "cold" and "warm"."""
    run = reads(index, batch)
    found: dict[str, tuple[list[float], list[float]]] = {"cold": ([], []), "warm": ([], [])}
    kinds = (run, one_at_a_time(run))
    for number in range(-1, rounds):  # the first is not counted
        for cache, prepare in (("cold", cool), ("warm", warm)):
            for kind in (0, 1) if number % 2 else (1, 0):
                prepare(index)
                started = time.perf_counter()
                samples = kinds[kind]()
                if number >= 0:
                    found[cache][kind].append(samples / (time.perf_counter() - started))
    return found


def ratio(ours: list[float], other: list[float]) -> str:
    """Return the median of the ratios within a round, with the smallest and the largest, as text."""
    found = [a / b for a, b in zip(ours, other, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def report(index: ShardIndex, batches: tuple[int, ...], rounds: int, goals: dict[str, float]) -> None:
    """Print the result of `compare` for each size of micro-batch."""
    os.sync()  # dirty pages cannot be dropped
    print(f"\nreading alone, {index.samples:,} samples a run, {read_pool.READ_THREADS} threads and one at a time")
    for batch in batches:
        for cache, (threads, one) in compare(index, batch, rounds).items():
            speeds = " and ".join(f"{statistics.median(speed):,.0f}" for speed in (threads, one))
            found = ratio(threads, one)
            print(f"{cache}, micro-batches of {batch:<4} {speeds} samples/s: {found}, goal {goals[cache]}", flush=True)
