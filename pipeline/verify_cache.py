"""A cache of passed checks, so that gigabytes need not be checked again as long as the files have not changed.

The cache folder keeps each file's device, inode, size, modification time and change time, and what was checked. The
author of a data set can choose modification times, but not change times, which the kernel sets whenever a file is
written, renamed or touched. So a file that was changed, copied or unpacked after the check counts as changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from mimcl.pipeline.cache_dir import cache_dir
from mimcl.pipeline.files import DataError, open_regular, write_json

_CLOCK_RESOLUTION_S = 2.0  # of the coarsest file system: a write so soon after another may not change the times
_MAX_BYTES = 1 << 16  # of a cache entry


def check_once(files: Sequence[BinaryIO], claim: str, check: Callable[[], None], kind: str = "") -> None:
    """Call `check`, unless these open files passed it with the same claim and have not changed since.

    `claim` is everything that `check` depends on besides the files: its version, and what they are compared with. Each
    `kind` of check of the same files has its own cache entry, with the latest claim. The caller must read these very
    file objects, mapped or not, so that they cannot be replaced in between. Raises the errors of `check`. If the cache
    folder cannot be used, nothing is stored and no error is raised.
    """
    before = _states(files)
    wanted = {"files": before, "claim": hashlib.sha256(claim.encode()).hexdigest()}
    entry = _entry_path(files, kind)
    if _read_entry(entry) == wanted:
        return
    began = time.time()
    check()
    youngest = max(max(state[3:]) for state in before) / 1e9
    if _states(files) == before and youngest < began - _CLOCK_RESOLUTION_S:
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_json(entry, wanted)
        except OSError:  # a full disk, another user's folder, a read-only home
            return


def _states(files: Sequence[BinaryIO]) -> list[list[int]]:
    found = (os.fstat(file.fileno()) for file in files)
    return [[stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for stat in found]


def _entry_path(files: Sequence[BinaryIO], kind: str) -> Path:
    """The cache entry of these files, by their paths, whatever their content."""
    paths = "\0".join([kind, *(os.path.realpath(file.name) for file in files)])
    return cache_dir() / "checked" / f"{hashlib.sha256(os.fsencode(paths)).hexdigest()[:32]}.json"


def _read_entry(entry: Path) -> object:
    """The content of a cache entry; None if there is none, or if another user may have written it."""
    try:
        with open_regular(entry) as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            return json.loads(file.read(_MAX_BYTES))
    except (OSError, DataError, ValueError, RecursionError):
        return None
