"""Files that were checked once, and are known by their state: a thorough look at gigabytes need not be taken twice.

A file's device, inode, size, modification and change times are remembered in the cache folder, beside what was checked.
Who writes a data set can choose its modification times, but not its change times, which the kernel sets on every
write, renaming or setting of times: a file that was changed, copied or unpacked after the check is in another state.
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
from mimcl.pipeline.files import open_regular, write_json

_SETTLED = 2.0  # seconds, the coarsest clock of a file system: within them a write may leave the times as they were
_MAX_NOTE = 1 << 16  # bytes of what is remembered


def check_once(files: Sequence[BinaryIO], claim: str, check: Callable[[], None], kind: str = "") -> None:
    """Calls `check`, unless these open files passed it under the same claim and are as they were then.

    Of several kinds of checks of the same files each is remembered by itself, under the latest claim.
    `claim` is all that `check` depends on besides the files: its version, and what others say about them. What is read
    has to be read from these very files, mapped or not, so that none can be exchanged in between. Raises what `check`
    raises. Where the cache folder cannot be used nothing is remembered, and no error is made of it.
    """
    before = _states(files)
    wanted = {"files": before, "claim": hashlib.sha256(claim.encode()).hexdigest()}
    note = _note(files, kind)
    if _remembered(note) == wanted:
        return
    began = time.time()
    check()
    youngest = max(max(state[3:]) for state in before) / 1e9
    if _states(files) == before and youngest < began - _SETTLED:
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            write_json(note, wanted)
        except OSError:  # a full disk, a folder of another user, a home that cannot be written
            return


def _states(files: Sequence[BinaryIO]) -> list[list[int]]:
    found = (os.fstat(file.fileno()) for file in files)
    return [[stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for stat in found]


def _note(files: Sequence[BinaryIO], kind: str) -> Path:
    """Where the state of these files is remembered, one note for each place whatever lies there."""
    places = "\0".join([kind, *(os.path.realpath(file.name) for file in files)])
    return cache_dir() / "checked" / f"{hashlib.sha256(places.encode()).hexdigest()[:32]}.json"


def _remembered(note: Path) -> object:
    """What the note says; None where there is none, or one that another user may have written."""
    try:
        with open_regular(note) as file:
            if os.fstat(file.fileno()).st_uid != os.geteuid():
                return None
            return json.loads(file.read(_MAX_NOTE))
    except (OSError, ValueError, RecursionError):
        return None
