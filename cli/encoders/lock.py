"""Lock a folder against other commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mimcl.cli.console import console
from mimcl.model.world import World
from mimcl.pipeline.files import DataError
from mimcl.pipeline.folder_lock import FolderLock


@contextmanager
def lock(folder: Path, world: World, advice: str | None = None) -> Iterator[None]:
    """Create `folder` and lock it for all processes of this command; other commands wait until it is released.

    Raises DataError if it cannot be created, with the `advice`, by default to copy the folder around it.
    """
    if world.rank:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder_lock = FolderLock(folder)
    except OSError as error:
        advice = advice or f"copy {folder.parent} to a folder of yours"
        raise DataError(f"{folder} cannot be created ({error.strerror}); {advice}") from None
    with folder_lock:
        if not folder_lock.acquire(timeout_s=0):
            console.print(f"waiting for another command that is using {folder}")
            folder_lock.acquire()
        yield
