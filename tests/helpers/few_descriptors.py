"""Limits on open files: of this process for a moment, and of commands that it starts."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WORDS = "Too many open files"


@contextmanager
def no_descriptors() -> Iterator[None]:
    """In the block this process cannot open any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def descriptors_of(folder: Path) -> int:
    """Count this process's descriptors of files below `folder`."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith(f"{folder}{os.sep}")
        except FileNotFoundError:  # that of the listing itself
            continue
    return count


def mimcl(*arguments: str | Path, cwd: Path, soft: int, hard: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command under limits of open files; `hard` None means as `soft`."""
    return subprocess.run(
        [sys.executable, "-m", "mimcl.cli.main", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard or soft)),
    )
