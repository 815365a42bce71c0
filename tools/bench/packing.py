"""Compare packing large JPEGs without re-encoding with tar over the same files, and time packing CIFAR-10.

    python tools/bench/packing.py [--data FOLDER] [--mb 5000] [--rounds 5] [--workers 2] [--cifar FOLDER]

Goals: at least 0.7 times the speed of `tar cf` (inside: listing and packing, without starting Python); CIFAR-10 as
60,000 files in under 30 s in total. Files of FOLDER (default: 128 generated JPEGs of about 110 KB) are copied under new
names until they have --mb MB. In each round tar runs first, then mimcl; both find the files in the page cache and no
pending writes. The first round is not counted. tar leaves its output to the page cache, while packing flushes it to the
disk, as "tar, flushed" does: with data that are small beside the memory, tar alone writes nothing while it runs.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOAL_RATIO, GOAL_CIFAR_SECONDS = 0.7, 30.0
PACK = """
import sys, time
from pathlib import Path
from mimcl.api import shard
if __name__ == "__main__":
    began = time.perf_counter()
    shard(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]))
    print(f"\\ninside {time.perf_counter() - began}")
"""


def prepare(data: Path | None, folder: Path, megabytes: int) -> tuple[int, int]:
    """Copy files into class folders of `folder` until they have `megabytes`; return the number of files and bytes."""
    if data is None:
        from mimcl.cli.doctor.generated_shards import generated_shards

        (folder.parent / "made").mkdir()
        generated_shards(folder.parent / "made")
        data = folder.parent / "made" / "images"
    originals = [path for path in sorted(data.rglob("*")) if path.is_file()]
    files = total = 0
    while total < megabytes * 1e6:
        path = originals[files % len(originals)]
        target = folder / f"{files % 100:03d}" / f"{files:07d}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        files, total = files + 1, total + target.stat().st_size
    return files, total


def warm(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()
    os.sync()


def tar(source: Path, out: Path) -> tuple[float, float]:
    """Return the seconds until tar ends, and until its output is on the disk."""
    warm(source)
    began = time.perf_counter()
    subprocess.run(["tar", "cf", out, "-C", source, "."], check=True)
    ended = time.perf_counter()
    with open(out, "rb") as file:
        os.fsync(file.fileno())
    flushed = time.perf_counter()
    out.unlink()
    return ended - began, flushed - began


def mimcl(source: Path, out: Path, workers: int, script: Path) -> tuple[float, float]:
    """Return the seconds of the whole process, and of listing and packing in it."""
    warm(source)
    began = time.perf_counter()
    command = [sys.executable, str(script), str(source), str(out), str(workers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    ended = time.perf_counter()
    shutil.rmtree(out)
    return ended - began, float(done.stdout.rpartition("inside ")[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with images of any depth")
    parser.add_argument("--mb", type=int, default=5000, help="default 5000")
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    parser.add_argument("--cifar", type=Path, help="folder with train/ and val/ of CIFAR-10's 60,000 images")
    options = parser.parse_args()
    missed = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        script = root / "pack.py"
        script.write_text(PACK)
        files, total = prepare(options.data, root / "src", options.mb)
        machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        print(f"{files:,} JPEGs, {total / 1e6:,.0f} MB; {options.workers} workers, {machine}")
        print("round   tar MB/s   tar, flushed   mimcl inside   whole process   inside / tar   inside / flushed")
        ratios = []
        for number in range(options.rounds + 1):
            plain, flushed = tar(root / "src", root / "x.tar")
            whole, inside = mimcl(root / "src", root / "out", options.workers, script)
            speeds = [total / 1e6 / seconds for seconds in (plain, flushed, inside, whole)]
            if number:
                ratios.append((plain / inside, flushed / inside))
            print(
                f"{number or 'warm':>5} {speeds[0]:10.0f} {speeds[1]:14.0f} {speeds[2]:14.0f} {speeds[3]:15.0f} "
                f"{plain / inside:14.2f} {flushed / inside:18.2f}",
                flush=True,
            )
        median, flushed = (statistics.median(found) for found in zip(*ratios, strict=True))
        print(f"median of inside / tar: {median:.2f}, goal >= {GOAL_RATIO}; of inside / tar, flushed: {flushed:.2f}")
        if median < GOAL_RATIO:
            missed.append("speed")
        if options.cifar:
            whole, inside = mimcl(options.cifar, root / "cifar", options.workers, script)
            goal = f"goal < {GOAL_CIFAR_SECONDS:.0f} s"
            print(f"CIFAR-10: {whole:.1f} s, of which listing and packing {inside:.1f} s; {goal}")
            if whole >= GOAL_CIFAR_SECONDS:
                missed.append("CIFAR-10")
    print("missed: " + ", ".join(missed) if missed else "all goals met")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
