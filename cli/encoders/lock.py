"""Lock a folder against other commands."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mimcl.cli.console import console
from mimcl.model.distributed import World


@contextmanager
def lock(folder: Path, world: World) -> Iterator[None]:
    """Lock `folder` for all processes of this command; other commands wait until it is released."""
    if world.rank:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"waiting for another command that is using {folder}")
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError:  # the file system has no locks
            pass
        yield
    finally:
        os.close(held)
