"""Measure an index of 100 million rows: time to open, memory of training, and cost of planning.

    python tools/bench/scale.py --folder /tmp/scale
    python tools/bench/scale.py --folder /tmp/scale --rows 1000000

A synthetic index is created in --folder, which is removed afterwards: 12 GB for 100 million rows. Its shards are links
to one tar of 64 small images, so that `mimcl train` really trains on it. Goals: open in less than 1 s; less than 2 GB
of anonymous memory on the single rank (mapped files are not counted: the kernel may drop their pages); planning within
5 % of the time that a window takes at 10,000 images/s. Each measurement runs in its own process, whose anonymous memory
is sampled from outside every few milliseconds. Finally, a billion rows are estimated in proportion. Exit code 1 if a
goal is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.anonymous_memory import PeakMemory

ROWS, BILLION = 100_000_000, 1_000_000_000
RATE = 10_000  # images a second
OPEN, MEMORY, PLANNING = 1.0, 2000.0, 0.05  # goals: seconds, MB, share of the training time
BATCH, EPOCHS = 4096, 40
TRAIN = shlex.split("""train --data shards --recipe cpu_small --decoder reference --curriculum proto --order shard
    --epochs 2 --set data.image_size=32 --set model.patch_size=16 --set model.decoder_width=32
    --set model.decoder_depth=1 --set trainer.checkpoint_every_steps=100 --set trainer.log_every_steps=20
    --set data.decode_threads=1""")


def measured(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Run `function` in a new process; return its result and the peak anonymous memory of that process, in MB."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, function, *arguments))
    process.start()
    there.close()
    assert process.pid is not None
    with PeakMemory(process.pid) as memory:
        result = here.recv()
    process.join()
    return result, memory.peak


def _send(there: Any, function: Callable[..., Any], *arguments: Any) -> None:
    there.send(function(*arguments))


def open_all(root: Path) -> dict[str, float]:
    """Return the seconds to open the index and the distances, and to find the largest image and the fingerprint."""
    from mimcl.cli.config import Config, override
    from mimcl.cli.run.training_data import fingerprints, load_difficulty
    from mimcl.pipeline.index import ShardIndex

    config, times = override(Config(), {"curriculum.name": "proto"}), [time.perf_counter()]
    index = ShardIndex.load(root)
    times.append(time.perf_counter())
    distances, balance = load_difficulty(config.curriculum, index, config.seed)
    times.append(time.perf_counter())
    assert index.largest > 0
    times.append(time.perf_counter())
    fingerprints(index, distances, balance)
    times.append(time.perf_counter())
    names = ("index", "distances", "largest", "fingerprint")
    return {name: after - before for name, before, after in zip(names, times, times[1:], strict=False)}


def plan_windows(root: Path, settings: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
    """Plan windows while holding what training on one rank holds: the current window, the draw counts, and the copy of
    them that a checkpoint writes. Returns the seconds of the plan itself, of each window (elapsed and CPU), and of the
    work that the start of a window and a checkpoint add to the training thread.
    """
    import numpy as np

    from mimcl.cli.config import Config, override
    from mimcl.cli.run.training_data import load_difficulty
    from mimcl.curriculum.plan import Plan
    from mimcl.model import trainer  # noqa: F401 - counts the memory of torch
    from mimcl.pipeline.augment import hash64
    from mimcl.pipeline.draw_counts import DrawCounts
    from mimcl.pipeline.index import ShardIndex

    index = ShardIndex.load(root)
    config = override(Config(), {f"curriculum.{name}": value for name, value in settings.items()})
    began = time.perf_counter()
    plan = Plan(
        config.curriculum,
        samples=index.samples,
        distances=load_difficulty(config.curriculum, index, config.seed)[0],
        draws=BATCH * (EPOCHS * index.samples // BATCH),
        batch_size=BATCH,
        seed=0,
        hash64=hash64,
        shards=index.shard if settings.get("order") == "shard" else None,
    )
    once, times = time.perf_counter() - began, []
    counts, saved, trained, in_training = DrawCounts(np.zeros(index.samples, np.uint32)), None, None, []
    for number in numbers:
        began, began_cpu = time.perf_counter(), time.thread_time()
        window = plan.window(number)
        times.append((time.perf_counter() - began, time.thread_time() - began_cpu))
        began = time.perf_counter()
        counts.add(window.sample_ids)
        assert counts.coverage > 0
        assert counts.max_repeats > 0
        counted = time.perf_counter()
        saved = None  # the previous copy is written by now
        saved = counts.without(window.sample_ids)
        in_training.append((counted - began, time.perf_counter() - counted))
        trained = window
    assert saved is not None
    assert trained is not None
    seconds = plan.window_length / RATE
    return {"once": once, "times": times, "window": plan.window_length, "seconds": seconds, "training": in_training}


def train(folder: Path, resume: bool, stop_after: int) -> tuple[float, float]:
    """Run `mimcl train` and stop it with SIGTERM after `stop_after` steps.

    Returns the peak anonymous memory in MB and the seconds to the first logged step.
    """
    arguments = ["train", "--resume"] if resume else TRAIN
    command = [sys.executable, "-m", "mimcl.cli.main", *arguments, "--out", "run"]
    run, began, first = folder / "run", time.perf_counter(), 0.0
    log = folder / "train.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT)
    stopping = False
    with PeakMemory(process.pid) as memory:
        while process.poll() is None:
            text = log.read_text()
            steps = [int(line.split()[1].split("/")[0]) for line in text.splitlines() if line.startswith("step ")]
            if steps and not first:
                first = time.perf_counter() - began
            if steps and steps[-1] >= stop_after and not stopping:
                process.send_signal(signal.SIGTERM)
                stopping = True
            time.sleep(0.05)
    assert process.returncode == 75, log.read_text()
    assert (run / "checkpoints" / "latest").exists()
    return memory.peak, first


CURRICULA = {
    "proto, multinomial": {"name": "proto"},
    "anti, multinomial": {"name": "anti"},
    "proto, systematic": {"name": "proto", "resampling": "systematic"},
    "none, uniform passes": {"name": "none"},
    "proto, multinomial, --order shard": {"name": "proto", "order": "shard"},
}


def verdict(what: str, value: float, goal: float, unit: str) -> bool:
    met = value < goal
    print(f"{what:<58} {value:>9,.2f} {unit:<3} goal < {goal:,.2f} {unit:<3} {'met' if met else 'MISSED'}", flush=True)
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"default {ROWS}")
    parser.add_argument("--folder", type=Path, required=True, help="folder for the data set; removed afterwards")
    parser.add_argument("--keep", action="store_true", help="keep the folder, and reuse it if it exists")
    arguments = parser.parse_args()
    folder, rows = arguments.folder.resolve(), arguments.rows
    os.environ["MIMCL_CACHE"] = str(folder / "cache")
    if not (arguments.keep and folder.exists()):
        from bench.synthetic_index import make

        folder.mkdir(parents=True)
        began = time.perf_counter()
        make(folder, rows)
        print(f"created in {time.perf_counter() - began:,.0f} s")
        time.sleep(3)  # until the files are old enough for their checks to be cached
    try:
        met = measure(folder, rows)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)
    sys.exit(not met)


def measure(folder: Path, rows: int) -> bool:
    """Print the tables; return whether all goals are met."""
    root = folder / "shards"
    sizes = {
        "index": (root / "train.arrow").stat().st_size,
        "dataset.json": (root / "dataset.json").stat().st_size,
        "distances, with clusters": (root / "prototypes" / "default" / "train.arrow").stat().st_size,
        "draw counts": 4 * rows,
    }
    print(f"\n{rows:,} rows on {os.cpu_count()} cores")
    for name, size in sizes.items():
        print(f"  {name:<26} {size / 1e9:>8.3f} GB")
    (first, checked_mb), (later, _) = measured(open_all, root), measured(open_all, root)
    print("\nseconds to open             first, all checked       later")
    for name in first:
        print(f"  {name:<26} {first[name]:>12.2f} {later[name]:>18.3f}")
    print(f"  anonymous memory of the check {checked_mb:>6,.0f} MB, with torch")
    print("\nplanning                                 once  window, CPU       elapsed   of training    memory")
    shares: dict[str, float] = {}
    peaks: dict[str, float] = {}
    slowest = 0.0
    for name, settings in CURRICULA.items():
        (found, peak) = measured(plan_windows, root, settings, [0, 1, 2])
        clock, busy = (sum(column) / len(column) for column in zip(*found["times"], strict=True))
        shares[name], peaks[name] = busy / found["seconds"], peak
        slowest = max(slowest, *map(sum, found["training"]))
        print(f"  {name:<36} {found['once']:>6.1f} s {busy:>8.2f} s {clock:>12.2f} s {shares[name]:>13.2%} ", end="")
        print(f"{peak:>6,.0f} MB", flush=True)
    print(f"means of three windows of {found['window']:,} draws, {found['seconds']:,.0f} s at {RATE:,} images/s;")
    print('"of training" is the CPU time as a share of that; memory is the peak, with torch, the current window,')
    print(f"draw counts and a checkpoint's copy; counting and copying delayed training by {slowest:.2f} s at most")
    trained, start = train(folder, False, 250)
    resumed, restart = train(folder, True, 450)
    print(
        f"mimcl train --order shard: {trained:,.0f} MB, first step after {start:.0f} s; resumed: {resumed:,.0f} MB, "
        f"{restart:.0f} s\n"
    )
    memory = max(*peaks.values(), trained, resumed)
    results = [
        verdict("open", later["index"], OPEN, "s"),
        verdict("open, with prototypes", later["index"] + later["distances"], OPEN, "s"),
        verdict("anonymous memory on one rank", memory, MEMORY, "MB"),
        verdict("planning, of the training time, at most", 100 * max(shares.values()), 100 * PLANNING, "%"),
    ]
    peak, curriculum = max((peak, name) for name, peak in peaks.items())
    extrapolate(rows, sizes, first, later, curriculum, peak, max(shares.values()))
    return all(results)


def extrapolate(rows: int, sizes: dict, first: dict, later: dict, curriculum: str, peak: float, share: float) -> None:
    """Estimate a billion rows: everything grows in proportion except the memory of torch."""
    times, base = BILLION / rows, measured(only_torch)[1]
    memory = base + (peak - base) * times
    print(f"\nestimate for {BILLION:,} rows, in proportion")
    for name, size in sizes.items():
        print(f"  {name:<40} {size * times / 1e9:>9.1f} GB")
    print(f"  {'anonymous memory, ' + curriculum:<40} {memory / 1e3:>9.1f} GB, {base / 1e3:.1f} of it torch")
    print(f"  {'open, all checked, from memory':<40} {sum(first.values()) * times:>9.0f} s")
    print(f"  {'open later':<40} {(later['index'] + later['distances']) * times:>9.2f} s")
    print(f"  {'planning a window of 1/16 epoch':<40} {share * BILLION / 16 / RATE:>9.0f} s, {share:.2%} of training")


def only_torch() -> None:
    from mimcl.model import trainer  # noqa: F401

    time.sleep(0.1)


if __name__ == "__main__":
    main()
