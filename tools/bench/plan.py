"""Measure time and memory of planning one window, on one core, and compare them with the goals.

    python tools/bench/plan.py

ImageNet's size: 65,536 draws of 1,281,167 images in under 100 ms and 100 MB, including the search for the temperature.
N/16 draws of 100 million images in under 10 s; `--images` adds other sizes. The distances themselves are not counted;
work done once per run (checks, histogram) is shown as "once". The first window of a systematic block also orders the
block's images; the next one reuses that order. "by shard" is multinomial in the order of shards of 2,333 images. Memory
is the peak of numpy's allocations (tracemalloc), including the order kept for the block.
"""

import argparse
import math
import os
import time
import tracemalloc

import numpy as np

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.plan import Plan
from mimcl.pipeline.augment import hash64

IMAGENET, HUGE = 1_281_167, 100_000_000


def prototype_distances(n: int) -> np.ndarray:
    """Return bell-shaped distances in [0, 1], sqrt(n) of them exact zeros and ones, (n,) float32."""
    rng = np.random.default_rng(0)
    d = rng.random(n, np.float32)
    d += rng.random(n, np.float32)
    d /= 2
    ends = math.isqrt(n)
    d[:ends], d[-ends:] = 0, 1
    return d


def row(config: CurriculumConfig, kind: str, distances: np.ndarray, repeats: int, goal: str) -> None:
    n, window = len(distances), config.window or 0
    shards = (np.arange(n) // 2333).astype(np.int32)

    def make_plan() -> Plan:
        return Plan(
            config,
            samples=n,
            distances=distances,
            draws=640 * window,  # about 40 epochs, with all windows of a block in the run
            batch_size=window,  # does not matter here
            seed=0,
            hash64=hash64,
            shards=shards,
        )

    seconds: list[np.ndarray] = []  # of "once", a block's first window and its second, for each repeat
    for repeat in range(repeats):
        times = [time.perf_counter()]
        plan = make_plan()
        times.append(time.perf_counter())
        block = 2 * repeat * math.ceil(n / window)
        for number in (block, block + 1):
            plan.window(number)
            times.append(time.perf_counter())
        seconds.append(np.diff(times))

    plan = make_plan()
    tracemalloc.start()
    plan.window(0)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    once, first, later = 1e3 * np.median(seconds, axis=0)
    print(
        f"{n:>11,} {window:>9,}  {kind:<11} {once:>8,.0f} ms {first:>8,.0f} ms {later:>8,.0f} ms "
        f"{peak:>7,.0f} MB   {goal}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="*", default=[], help="other data set sizes, with N/16 draws each")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"{'images':>11} {'draws':>9}  {'drawn':<11} {'once':>11} {'window':>11} {'next':>11} {'peak':>10}   goal")
    sizes = [(IMAGENET, 65_536, 5, "< 100 ms, < 100 MB"), (HUGE, HUGE // 16, 1, "< 10,000 ms")]
    for n, window, repeats, goal in sizes + [(n, math.ceil(n / 16), 3, "-") for n in arguments.images]:
        distances = prototype_distances(n)
        row(CurriculumConfig("proto", window=window), "multinomial", distances, repeats, goal)
        row(CurriculumConfig("proto", window=window, resampling="systematic"), "systematic", distances, repeats, goal)
        row(CurriculumConfig("proto", window=window, order="shard"), "by shard", distances, repeats, goal)


if __name__ == "__main__":
    main()
