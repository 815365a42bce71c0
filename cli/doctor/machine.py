"""Cores, memory, limits, and the disk that the shards lie on."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from mimcl.cli.console import format_bytes as size
from mimcl.cli.doctor.findings import Finding, found_by
from mimcl.pipeline.cache_dir import cache_dir
from mimcl.pipeline.cgroup import memory_limit
from mimcl.pipeline.cores import usable_cores
from mimcl.pipeline.files import open_regular
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.remote.shard_cache import cache_limit

_DESCRIPTORS = 1024  # of which reading shards keeps 512
_BLOCK = 4 << 20  # bytes, of sequential reading
_SECONDS = 0.5  # of each kind of reading


def machine() -> list[Finding]:
    """What there is to compute with."""
    checks = {"cores": cores, "memory": memory, "shared memory": shared_memory, "limits": limits}
    return [finding for name, check in checks.items() for finding in found_by(name, check)]


def cores() -> Iterator[Finding]:
    from mimcl.cli.run.resolve import has_bfloat16

    usable, there = usable_cores(), os.sysconf("SC_NPROCESSORS_ONLN")
    text = f"{usable:g} of {there} usable, {_processor()}" if usable < there else f"{there}, {_processor()}"
    text += ", bfloat16" if has_bfloat16() else ", no bfloat16"
    yield Finding("cores", text, "warning" if usable < there else "ok", {"usable": usable, "there": there})
    load = os.getloadavg()[0]
    text = f"{load:.1f} processes in the last minute"
    busy = load > usable
    text += ": others compute here, so trials come out slower" if busy else ""
    yield Finding("load", text, "warning" if busy else "ok", {"load": load})


def memory() -> Iterator[Finding]:
    rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    known = {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows}
    total, available = known["MemTotal"], known["MemAvailable"]
    text, limit = f"{size(total)}, {size(available)} of it free", memory_limit()
    if limit is not None and limit < total:
        text += f"; this control group may use {size(limit)}"
        available = min(available, limit)
    numbers = {"total": total, "available": available, "limit": limit}
    yield Finding("memory", text, "warning" if available < 4 << 30 else "ok", numbers)


def shared_memory() -> Iterator[Finding]:
    """Processes of one machine exchange gradients through it."""
    space = shutil.disk_usage("/dev/shm")
    small = space.total < 1 << 30
    text = f"/dev/shm {size(space.total)}, {size(space.free)} of it free"
    text += "; several processes want 1 GB or more (docker run --shm-size 8g)" if small else ""
    yield Finding("shared memory", text, "warning" if small else "ok", {"total": space.total, "free": space.free})


def limits() -> Iterator[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = files != resource.RLIM_INFINITY and files < _DESCRIPTORS
    text = "no limit" if files == resource.RLIM_INFINITY else f"{files:,}"
    text += f"; raise it to {_DESCRIPTORS:,} (ulimit -n {_DESCRIPTORS})" if few else ""
    yield Finding("open files", text, "warning" if few else "ok", {"limit": files})
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space == resource.RLIM_INFINITY:
        yield Finding("address space", "no limit")
    else:
        yield Finding("address space", f"{size(space)}; CUDA reserves far more (ulimit -v unlimited)", "warning")


def disk(index: ShardIndex) -> Iterator[Finding]:
    """Free space, and how fast the shards' own bytes come, once the page cache has let go of them."""
    space = shutil.disk_usage(index.root)
    yield Finding("free on the disk", size(space.free), "warning" if space.free < 5e9 else "ok", {"free": space.free})
    speed = sequential(index)
    yield Finding("disk, in order", f"{size(speed)}/s", "ok", {"bytes_per_second": speed})
    rate, speed = scattered(index)
    text = f"{rate:,.0f} images/s, {size(speed)}/s, one after the other"
    yield Finding("disk, at random", text, "ok", {"images_per_second": rate, "bytes_per_second": speed})


def cache() -> Iterator[Finding]:
    """Where what is fetched from elsewhere is kept, and whether there is room for it."""
    folder = there = cache_dir()
    while not there.exists():
        there = there.parent
    limit, free = cache_limit(), shutil.disk_usage(there).free
    text = f"{folder}, at most {size(limit)}, {size(free)} free on its disk"
    text += "; set MIMCL_CACHE_GB lower, or MIMCL_CACHE to another folder" if free < limit else ""
    yield Finding("cache", text, "warning" if free < limit else "ok", {"limit": limit, "free": free})


def sequential(index: ShardIndex) -> float:
    """Bytes a second of one shard read from its beginning."""
    largest = max(index.shards, key=lambda shard: shard["bytes"])
    with open_regular(index.root / largest["name"]) as file:
        _forget(file.fileno())

        def blocks() -> Iterator[int]:
            for start in range(0, largest["bytes"], _BLOCK):
                yield len(os.pread(file.fileno(), _BLOCK, start))

        done, seconds = _timed(blocks())
    return sum(done) / seconds


def scattered(index: ShardIndex) -> tuple[float, float]:
    """Images and bytes a second of images far apart, each read at once."""
    rows = np.random.default_rng(0).permutation(index.samples)[:4096].tolist()
    files = {name: open_regular(index.root / shard["name"]) for name, shard in enumerate(index.shards[:256])}
    try:
        forget_shards(index)

        def images() -> Iterator[int]:
            for row in rows:
                if file := files.get(int(index.shard[row])):
                    yield len(os.pread(file.fileno(), int(index.nbytes[row]), int(index.offset[row])))

        done, seconds = _timed(images())
    finally:
        for file in files.values():
            file.close()
    return len(done) / seconds, sum(done) / seconds


def _timed(reads: Iterator[int]) -> tuple[list[int], float]:
    """What was read until time was up, and how long it took."""
    started, done = time.perf_counter(), []
    for count in reads:
        done.append(count)
        if time.perf_counter() - started > _SECONDS:
            break
    return done, max(time.perf_counter() - started, 1e-9)


def forget_shards(index: ShardIndex) -> None:
    """Has the page cache let go of the shards; of one that cannot be opened the reading will tell."""
    for shard in index.shards if index.url is None else ():
        with suppress(OSError), open_regular(index.root / shard["name"]) as file:
            _forget(file.fileno())


def _forget(descriptor: int) -> None:
    """Has the kernel drop what it keeps of a file; it need not on every file system."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
