"""The cores that this process may use, and the number of threads and worker processes to start on them."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

from mimcl.pipeline.cgroup import cpu_quota

_RESERVED_CORES = 2  # for the thread that launches the model's work and the one that reads shards
_SMALL_MACHINE = 4  # cores, up to which none are reserved


def usable_cores() -> float:
    """Cores in this process's affinity mask, or fewer if its control group limits the processor time."""
    return min(len(_affinity()), cpu_quota() or math.inf)


def worker_count(local_size: int = 1) -> int:
    """One worker for each core of this process, one of `local_size` on the machine; at least 1.

    A launcher may bind each process to its own cores, or let all of them share its cores. So a process uses an equal
    part of the launcher's cores, and never more than its own mask has.
    """
    return max(1, int(min(_share_of_cores(local_size), (cpu_quota() or math.inf) / local_size)))


def arithmetic_threads(local_size: int = 1) -> int:
    """Threads for arithmetic in each of `local_size` processes: as `worker_count`, but at most one a physical core."""
    own = _affinity()
    physical = len({_siblings(core) for core in own})
    return max(1, min(worker_count(local_size), int(_share_of_cores(local_size) * physical / len(own))))


def decode_threads(local_size: int = 1, configured: int | None = None) -> int:
    """Threads that decode images in each of `local_size` training processes on the machine.

    `configured` is their number in all processes together; None: one per core, minus the cores for other threads.
    """
    if configured is not None:
        return max(1, configured // local_size)
    workers = worker_count(local_size)
    return workers - _RESERVED_CORES if workers > _SMALL_MACHINE else workers


def _share_of_cores(local_size: int) -> float:
    own = len(_affinity())
    return min(own, _launcher_cores() / local_size) if local_size > 1 else own


def _affinity(pid: int = 0) -> set[int]:
    """Cores on which a process may run, by default this one. macOS has no such masks: all cores. Raises OSError."""
    return (
        os.sched_getaffinity(pid) if hasattr(os, "sched_getaffinity") else set(range(os.sysconf("SC_NPROCESSORS_ONLN")))
    )


def _siblings(core: int) -> str:
    """Name the physical core that has this one: it lists its hardware threads."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text("utf-8")
    except OSError:
        return str(core)


def _launcher_cores() -> int:
    """Cores of the process that launched all local processes: torchrun, or SLURM's daemon.

    Shells between SLURM's daemon and a task are bound to the task's cores, and skipped.
    """
    own = cores = len(_affinity())
    is_slurm_task = "SLURM_PROCID" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    pid = os.getppid()
    with suppress(OSError):  # it has ended, or cannot be seen from within a container
        cores = len(_affinity(pid))
        while is_slurm_task and cores == own and pid > 1:
            pid = _parent(pid)
            cores = len(_affinity(pid))
    return cores


def _parent(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines())
    return int(fields["PPid"])
