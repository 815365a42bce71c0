"""Time the three commands of the README on a folder of images, in an otherwise empty folder.

    python tools/bench/three_commands.py IMAGES
    python tools/bench/three_commands.py cifar10/ --train "--recipe cifar_tiny --epochs 1"

Goal: 500 full-size ImageNet images take under 10 minutes in total on 2 cores. `mimcl --help`, goal 0.5 s, comes first.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MIMCL = str(Path(sys.executable).with_name("mimcl"))


def timed(folder: Path, arguments: list[str]) -> float:
    print("$ mimcl", *arguments, flush=True)
    started = time.perf_counter()
    subprocess.run([MIMCL, *arguments], cwd=folder, check=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of images, as for `mimcl shard`")
    default = "--curriculum proto --temp-schedule cosine"
    parser.add_argument("--train", default=default, help=f"arguments of `mimcl train` (default: {default})")
    options = parser.parse_args()

    starts = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([MIMCL, "--help"], check=True, stdout=subprocess.DEVNULL)
        starts.append(time.perf_counter() - started)

    commands = (["shard", f"{options.images.name}/"], ["prototypes", "build"], ["train", *shlex.split(options.train)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / options.images.name).symlink_to(options.images.resolve(), target_is_directory=True)
        times = [timed(folder, command) for command in commands]

    print(f"\n{os.cpu_count()} cores")
    print(f"{'mimcl --help, median of 5':40} {statistics.median(starts):8.2f} s   goal < 0.50 s")
    for command, seconds in zip(commands, times, strict=True):
        print(f"{'mimcl ' + command[0]:40} {seconds:8.1f} s")
    print(f"{'total':40} {sum(times):8.1f} s   goal < 600 s for 500 ImageNet images")


if __name__ == "__main__":
    main()
