"""Limits that Linux control groups (versions 1 and 2) set on this process, as in containers and batch systems."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_MEMINFO = Path("/proc/meminfo")
_UNLIMITED_BYTES = 1 << 60  # version 1 writes a number above this for "no limit"


def cpu_quota() -> float | None:
    """Processor time that this process and its group may use, in cores; None if there is no limit."""
    return min((quota for folder in _groups("cpu") if (quota := _quota(folder)) is not None), default=None)


def memory_limit() -> int | None:
    """Bytes of memory that this process and its group may use; None if there is no limit."""
    return min((limit for folder in _groups("memory") if (limit := _memory(folder)) is not None), default=None)


def total_memory() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def free_memory() -> int:
    """Bytes of memory that this process can still get: of the machine, less what a limit of its group leaves.

    File pages that the kernel can drop count as free. macOS does not say what is free: half of the machine's memory.
    """
    rows = (line.split() for line in _text(_MEMINFO).splitlines())
    available = next((1024 * int(row[1]) for row in rows if row[0] == "MemAvailable:"), total_memory() // 2)
    return max(0, min([available, *(left for folder in _groups("memory") if (left := _left(folder)) is not None)]))


def _left(folder: Path) -> int | None:
    limit, used = _memory(folder), _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
    if limit is None or not used:
        return limit
    counts = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
    pages = ("active_file", "inactive_file")  # version 1 counts them with the groups inside as total_...
    droppable = sum(int(counts.get(f"total_{name}", counts.get(name, 0))) for name in pages)
    return limit - int(used) + droppable


def _quota(folder: Path) -> float | None:
    if text := _text(folder / "cpu.max"):
        quota, period = text.split()
    else:
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    if not quota or not period or quota in ("max", "-1"):
        return None
    return int(quota) / int(period)


def _memory(folder: Path) -> int | None:
    text = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
    return None if text in ("", "max") or int(text) > _UNLIMITED_BYTES else int(text)


def _groups(controller: str) -> Iterator[Path]:
    """This process's group and all its parents, each of which may set a limit.

    In a container whose own group appears as the root, the path in the membership file does not exist, and only the
    root is found.
    """
    for line in _text(_MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            root = _ROOT / controller if controllers else _ROOT
            own = root / path.strip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8").strip()
    except OSError:
        return ""
