"""A packing that kills itself with SIGKILL at every place where it writes, renames or removes, one after another.

Run as a script: `python killed_packing.py SRC FOLDER OVER FIRST`. FOLDER/unbroken is a packing that nothing disturbed;
OVER is the folder that was packed before in the same place, or "-". Prints a line of JSON for every place: the number
of the place, whether the process died there, and whether going on came to the same bytes. Begins with place FIRST and
ends with one that is not reached.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.sources.item import FileItem, Source

CONFIG = PackConfig(shard_mb=1, workers=1, dedup=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Large(FileItem):
    """A small file that is said to be so large that two fill a shard."""

    exact = False


def packed(folder: Path, out: Path, overwrite: bool = False) -> None:
    source = image_folder(folder)
    splits = {
        split: [Large(item.name, item.label, 450_000, item.file) for item in items]
        for split, items in source.splits.items()
    }
    source = Source(splits, source.classes, modified=source.modified)
    pack(source, out, CONFIG, overwrite=overwrite, on_progress=lambda count: None)


def arm(place: int) -> None:
    left = [place]

    def counted(write):
        def dying(*arguments, **named):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(*arguments, **named)

        return dying

    for name in ("fsync", "replace", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))


def in_a_process(work) -> int:
    """How it ended: 0, or minus the signal."""
    pid = os.fork()  # this process has a single thread
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(source: Path, folder: Path, over: str, first: int) -> None:
    in_a_process(lambda: packed(source, folder / "unbroken"))
    expected, place, died = contents(folder / "unbroken"), first - 1, True
    if over != "-":
        in_a_process(lambda: packed(Path(over), folder / "before"))
    while died:
        place += 1
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        if over != "-":
            shutil.copytree(folder / "before", out)

        def killed(out: Path = out, place: int = place) -> None:
            arm(place)
            packed(source, out, overwrite=over != "-")

        died = in_a_process(killed) == -signal.SIGKILL
        again = in_a_process(lambda out=out, died=died: packed(source, out, overwrite=over != "-" and died))
        print(json.dumps([place, died, again == 0 and contents(out) == expected]), flush=True)


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # which would take most of the time, and matters only where the machine fails
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
