"""Check cores, memory, limits and disk space."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import suppress

import torch

from mimcl.cli.console import format_bytes
from mimcl.cli.doctor.findings import Finding, found_by
from mimcl.pipeline.cache_dir import cache_dir
from mimcl.pipeline.cgroup import free_memory, memory_limit, total_memory
from mimcl.pipeline.cores import usable_cores
from mimcl.pipeline.files import DataError, open_regular
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.kept_pixels import pixel_bytes, require_room
from mimcl.pipeline.open_shards import open_shards_limit
from mimcl.pipeline.remote.shard_cache import cache_limit
from mimcl.pipeline.sources.names import to_fs

_MIN_OPEN_FILES = 1024
_MIN_MEMORY = 4 << 30
_MIN_SHARED_MEMORY = 1 << 30
_MIN_DISK = 5 * 10**9
CAN_FORGET = hasattr(os, "posix_fadvise")  # not on macOS


def machine() -> list[Finding]:
    """Check what limits training on this machine."""
    checks = {"cores": cores, "memory": memory, "shared memory": shared_memory, "open files": open_files}
    return [finding for name, check in checks.items() for finding in found_by(name, check)]


def cores() -> Iterator[Finding]:
    usable, total = usable_cores(), os.sysconf("SC_NPROCESSORS_ONLN")
    numbers = {"usable": usable, "there": total}
    text = f"{usable:g} of {total} usable" if usable < total else f"{total}"
    yield Finding("cores", text, "warning" if usable < total else "ok", numbers)
    load = os.getloadavg()[0]
    if load > usable:
        text = f"{load:.1f} in the last minute: other processes slow down the trials below"
        yield Finding("load", text, "warning", {"load": load})


def memory() -> Iterator[Finding]:
    total, available, limit = total_memory(), free_memory(), memory_limit()
    text = f"{format_bytes(total)}, {format_bytes(available)} available"
    if limit is not None and limit < total:
        text += f"; limited to {format_bytes(limit)} by the control group"
        available = min(available, limit)
    numbers = {"total": total, "available": available, "limit": limit}
    yield Finding("memory", text, "warning" if available < _MIN_MEMORY else "ok", numbers)


def shared_memory() -> Iterator[Finding]:
    if not os.path.isdir("/dev/shm"):  # as on macOS, which shares memory in another way
        return
    space = shutil.disk_usage("/dev/shm")
    small = space.total < _MIN_SHARED_MEMORY
    text = f"/dev/shm {format_bytes(space.total)}, {format_bytes(space.free)} free"
    text += "; several processes need 1 GB or more: docker run --shm-size 8g" if small else ""
    yield Finding("shared memory", text, "warning" if small else "ok", {"total": space.total, "free": space.free})


def open_files() -> Iterator[Finding]:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = limit != resource.RLIM_INFINITY and limit < _MIN_OPEN_FILES
    text = "no limit" if limit == resource.RLIM_INFINITY else f"limit {limit:,}"
    if few:
        text += f", so at most {open_shards_limit()} shards are open at once, which is slow on a file server: "
        text += f"ulimit -n {_MIN_OPEN_FILES}"
    yield Finding("open files", text, "warning" if few else "ok", {"limit": limit})


def disk(index: ShardIndex) -> Iterator[Finding]:
    """Check the free space where the shards are."""
    free = shutil.disk_usage(index.root).free
    yield Finding("disk", f"{format_bytes(free)} free", "warning" if free < _MIN_DISK else "ok", {"free": free})


def cache() -> Iterator[Finding]:
    """Check the free space for the cache of remote shards."""
    folder = existing = cache_dir()
    while not existing.exists():
        existing = existing.parent
    limit, free = cache_limit(), shutil.disk_usage(existing).free
    text = f"{folder}, at most {format_bytes(limit)}, {format_bytes(free)} free on its disk"
    text += "; set MIMCL_CACHE_GB lower, or MIMCL_CACHE to another folder" if free < limit else ""
    yield Finding("cache", text, "warning" if free < limit else "ok", {"limit": limit, "free": free})


def decoded(index: ShardIndex) -> Iterator[Finding]:
    """Say what the decoded images take, and whether `data.keep_decoded` fits into memory, or into a GPU's."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    nbytes, where = pixel_bytes(index), "the GPU's memory" if device.type == "cuda" else "memory"
    try:
        require_room(index, device)
        fits = f"fits into {where} with --set data.keep_decoded=true"
    except DataError:
        fits = f"too large to keep in {where}"
    yield Finding("decoded images", f"{format_bytes(nbytes)}, {fits}", "info", {"bytes": nbytes})


def forget_shards(index: ShardIndex) -> None:
    """Drop local shards from the page cache, on Linux; shards that cannot be opened are skipped."""
    if not CAN_FORGET:
        return
    for shard in index.shards if index.url is None else ():
        with suppress(OSError), open_regular(index.root / to_fs(shard["name"])) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
