"""Measure how long a run takes to its first step, and how soon a wrong command is refused.

    python tools/bench/startup.py IMAGES
    python tools/bench/startup.py IMAGES --rounds 5

Core time is user + system time of the process with all its threads: other programs hardly change it. That of a run
is read when metrics.jsonl has its first step, so it includes opening the data, building the model and the trial steps.
Goals: 5 s of core time to the first step of cpu_small, and refusals within 1 s.
"""

import argparse
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MIMCL = [sys.executable, "-m", "mimcl.cli.main"]
POLL_S = 0.01
REFUSALS = (
    "train --curriculum prot",
    "train --recipe nope",
    "train --data nope",
    "train --curriculum proto",  # no prototypes
    "train --out run",  # it exists
    "train --set nope=1",
    "plan --data nope",
    "compare --recipe cpu_small --arms epochs,proto --data nope",
    "prototypes build --data nope",
    "eval knn nope",
    "eval finetune nope",
    "export nope --out out",
    "masks nope",
    "report images",
    "inspect images",
    "doctor --data nope",
    "verify --data nope",
)


def core_seconds(process: int) -> float:
    """Return user and system time of a process and its threads so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def first_step(folder: Path, name: str) -> tuple[float, float]:
    """Train until the first step is logged; return wall and core seconds."""
    started = time.perf_counter()
    command = [*MIMCL, "train", "--recipe", "cpu_small", "--out", name]
    metrics = folder / name / "metrics.jsonl"
    with (
        open(folder / f"{name}.log", "wb") as log,
        subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process,
    ):
        while not (metrics.exists() and b'"step"' in metrics.read_bytes()):
            if process.poll() is not None:
                sys.exit((folder / f"{name}.log").read_text())
            time.sleep(POLL_S)
        found = time.perf_counter() - started, core_seconds(process.pid)
        process.terminate()
    return found


def refusal(folder: Path, command: str) -> tuple[float, float, str]:
    """Run a command that fails; return wall and core seconds, and its last line."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([*MIMCL, *shlex.split(command)], cwd=folder, capture_output=True, text=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode, f"mimcl {command} did not fail"
    cores = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cores, done.stderr.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of images, as for `mimcl shard`")
    parser.add_argument("--rounds", type=int, default=3, help="runs; the median is printed (default: 3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").symlink_to(options.images.resolve(), target_is_directory=True)
        subprocess.run([*MIMCL, "shard", "images"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        print(f"{os.process_cpu_count() if hasattr(os, 'process_cpu_count') else os.cpu_count()} cores")
        print(f"{'':62}{'wall':>8}{'core':>8}   goal")
        steps = [first_step(folder, f"run-{number}" if number else "run") for number in range(options.rounds)]
        wall, core = (statistics.median(column) for column in zip(*steps, strict=True))
        print(f"{'first step of cpu_small':62}{wall:6.2f} s{core:6.2f} s   < 5 s of core time", flush=True)
        for command in REFUSALS:
            wall, core, line = refusal(folder, command)
            print(f"{'mimcl ' + command:62}{wall:6.2f} s{core:6.2f} s   < 1 s   {line}", flush=True)


if __name__ == "__main__":
    main()
