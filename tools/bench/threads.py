"""Compare how threads of OpenMP may wait, by images per second of `mimcl train --recipe cpu_small`, quiet and busy.

    python tools/bench/threads.py shards --rounds 5

Runs alternate. "default" is what OpenMP and torch do by themselves, "chosen" what `mimcl` sets. Beside a busy machine a
loop for each core runs with the same priority, from the first step on. The rate is that of the steps after the first
four. A ratio is the median of the ratios to "default" within a round.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ENGINES: dict[str, tuple[dict[str, str], list[str]]] = {  # environment variables, settings
    "default": ({"GOMP_SPINCOUNT": "300000"}, []),
    "chosen": ({}, []),
    "spins 1,000": ({"GOMP_SPINCOUNT": "1000"}, []),
    "sleeps at once": ({"OMP_WAIT_POLICY": "passive"}, []),
    "one thread": ({"OMP_NUM_THREADS": "1"}, []),
    "chosen, one decodes": ({}, ["data.decode_threads=1"]),
}
GOALS = {False: 0.97, True: 2.0}  # of "chosen" to "default", by whether the machine is busy
_EVERY, _WARM = 2, 4  # steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--load", nargs="*", default=["quiet", "busy"], choices=["quiet", "busy"])
    given = parser.parse_args()
    for load in given.load:
        with tempfile.TemporaryDirectory() as folder:
            compare(given, load == "busy", Path(folder))


def compare(given: argparse.Namespace, busy: bool, folder: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores if busy else 0)]
    try:
        send(loops, signal.SIGSTOP)
        rates: dict[str, list[float]] = {name: [] for name in given.engines}
        for number in range(given.rounds):
            for name in given.engines:
                rates[name].append(rate(given, name, loops, folder / f"{name}-{number}"))
    finally:
        for loop in loops:
            loop.kill()
    print(f"beside a busy loop on each of {cores} cores" if busy else f"quiet, {cores} cores")
    for name, found in rates.items():
        line = f"  {name:22}{statistics.median(found):7.1f} images/s  ({min(found):.1f} to {max(found):.1f})"
        if name != "default" and "default" in rates:
            ratio = statistics.median(one / other for one, other in zip(found, rates["default"], strict=True))
            goal = GOALS[busy]
            line += f"  {ratio:.2f} x default"
            line += f"  (goal {goal}: {'met' if ratio >= goal else 'missed'})" if name == "chosen" else ""
        print(line, flush=True)


def rate(given: argparse.Namespace, name: str, loops: list[subprocess.Popen[bytes]], run: Path) -> float:
    """Images per second of one run."""
    variables, settings = ENGINES[name]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    values = [*settings, f"trainer.log_every_steps={_EVERY}", "report=false"]
    words = ["--data", given.shards, "--epochs", str(given.epochs), "--out", run]
    words += [word for value in values for word in ("--set", value)]
    command = [sys.executable, "-m", "mimcl.cli.main", "train", "--recipe", "cpu_small", *words]
    process = subprocess.Popen(command, env=clean | variables, stdout=subprocess.DEVNULL)
    while process.poll() is None and not reports(run):
        time.sleep(0.05)
    send(loops, signal.SIGCONT)
    code = process.wait()
    send(loops, signal.SIGSTOP)
    if code:
        sys.exit(f"{' '.join(map(str, command))} ended with exit code {code}")
    rows = [row for row in reports(run) if row["step"] > _WARM]
    return len(rows) / sum(1 / row["images_per_second"] for row in rows)


def reports(run: Path) -> list[dict[str, float]]:
    try:
        lines = (run / "metrics.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [row for row in map(json.loads, lines) if "images_per_second" in row]


def send(processes: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for process in processes:
        process.send_signal(number)


if __name__ == "__main__":
    main()
