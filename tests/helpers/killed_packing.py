"""Kill packing with SIGKILL at every fsync, rename and removal, one after another, and resume it each time.

Run as a script: `python killed_packing.py SRC FOLDER OVER FIRST`. FOLDER/unbroken is a packing that was not killed;
OVER is the source packed before to the same place, or "-". Prints a line of JSON for every point: its number, whether
the process died there, and whether resuming led to the same bytes. Starts at point FIRST and ends with the first one
that is not reached.
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
    """A small file that claims to be so large that two fill a shard."""

    exact = False


def packed(folder: Path, out: Path, overwrite: bool = False) -> None:
    source = image_folder(folder)
    splits = {
        split: [Large(item.name, item.label, 450_000, item.file) for item in items]
        for split, items in source.splits.items()
    }
    source = Source(splits, source.classes, modified=source.modified)
    pack(source, out, CONFIG, overwrite=overwrite, on_progress=lambda count: None)


def arm(point: int) -> None:
    left = [point]

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
    """Run `work` in a forked process; return its exit code, or minus the signal."""
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
    expected, point, died = contents(folder / "unbroken"), first - 1, True
    if over != "-":
        in_a_process(lambda: packed(Path(over), folder / "before"))
    while died:
        point += 1
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        if over != "-":
            shutil.copytree(folder / "before", out)

        def killed(out: Path = out, point: int = point) -> None:
            arm(point)
            packed(source, out, overwrite=over != "-")

        died = in_a_process(killed) == -signal.SIGKILL
        again = in_a_process(lambda out=out, died=died: packed(source, out, overwrite=over != "-" and died))
        print(json.dumps([point, died, again == 0 and contents(out) == expected]), flush=True)


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # it would take most of the time, and matters only when the machine fails
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
