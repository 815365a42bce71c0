"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mimcl.cli.console import console
from mimcl.model.distributed import World


@contextmanager
def alone(home: Path, world: World) -> Iterator[None]:
    """Lets the processes of one command work below this folder; those of the next wait, and find what was made."""
    if world.rank:
        yield
        return
    home.mkdir(parents=True, exist_ok=True)
    held = os.open(home, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"waiting for another command that works in {home}")
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(held)
