"""Exclusive locks on folders, between processes and threads."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from mimcl.pipeline.files import open_descriptor

_POLL_S = 0.05


class FolderLock:
    """An exclusive lock on a folder that exists; as a context manager it is released when the block ends.

    The system releases the lock of a process that is killed. On a file system without locks, `acquire` succeeds and
    `held` stays False. Raises OSError if the folder cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.held = False
        self._descriptor = open_descriptor(folder, os.O_RDONLY)

    def acquire(self, timeout_s: float | None = None) -> bool:
        """Wait up to `timeout_s` seconds (None: without a limit); returns False if another process still has it."""
        with suppress(OSError):  # a file system without locks
            if timeout_s is None:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
                self.held = True
            deadline = time.monotonic() + (timeout_s or 0)
            while not self.held:
                try:
                    fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self.held = True
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        return False
                    time.sleep(_POLL_S)
        return True

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
