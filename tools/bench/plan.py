"""Time and memory of planning one window, on one core, against the goals.

    python tools/bench/plan.py

ImageNet's size: 65,536 draws of 1,281,167 images in under 100 ms and 100 MB, the temperature's search included.
N/16 draws of 100 million images in under 10 s; `--images` adds other sizes. Excluded are the distances themselves, and
what is done once a run (checks, histogram), which is shown as "once". The first window of a systematic block also
orders the block's images; the next one reuses that. "by shard" is multinomial in the order of shards of 2,333 images.
Memory is the peak of numpy's allocations (tracemalloc), the order kept for the block included.
"""

import argparse
import math
import os
import statistics
import time
import tracemalloc

import numpy as np

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.plan import Plan
from mimcl.pipeline.augment import hash64

IMAGENET, HUGE = 1_281_167, 100_000_000


def distances_like_prototypes(n: int) -> np.ndarray:
    """Bell-shaped in [0, 1], with sqrt(n) exact zeros and ones, shape (n,) float32."""
    rng = np.random.default_rng(0)
    d = rng.random(n, np.float32)
    d += rng.random(n, np.float32)
    d /= 2
    ends = math.isqrt(n)
    d[:ends], d[-ends:] = 0, 1
    return d


def row(n: int, window: int, kind: str, distances: np.ndarray, repeats: int, goal: str) -> None:
    chosen = {"order": "shard"} if kind == "by shard" else {"resampling": kind}
    config = CurriculumConfig("proto", window=window, **chosen)
    shards = (np.arange(n) // 2333).astype(np.int32)

    def plan() -> Plan:
        # 40 epochs or so, all windows of a block within the run; the batch size plays no part in the work.
        sizes = {"samples": n, "draws": 640 * window, "batch_size": window}
        return Plan(config, distances=distances, seed=0, hash64=hash64, shards=shards, **sizes)

    once, first, later = [], [], []
    for repeat in range(repeats):
        times = [time.perf_counter()]
        fresh = plan()
        times.append(time.perf_counter())
        block = 2 * repeat * math.ceil(n / window)
        for number in (block, block + 1):
            fresh.window(number)
            times.append(time.perf_counter())
        for kept, seconds in zip((once, first, later), np.diff(times), strict=True):
            kept.append(seconds)

    fresh = plan()
    tracemalloc.start()
    fresh.window(0)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    once, first, later = (1e3 * statistics.median(seconds) for seconds in (once, first, later))
    print(
        f"{n:>11,} {window:>9,}  {kind:<11} {once:>8,.0f} ms {first:>8,.0f} ms {later:>8,.0f} ms "
        f"{peak:>7,.0f} MB   {goal}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="*", default=[], help="other sizes to measure, N/16 draws each")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"{'images':>11} {'draws':>9}  {'drawn':<11} {'once':>11} {'window':>11} {'next':>11} {'peak':>10}   goal")
    sizes = [(IMAGENET, 65_536, 5, "< 100 ms, < 100 MB"), (HUGE, HUGE // 16, 1, "< 10,000 ms")]
    for n, window, repeats, goal in sizes + [(n, math.ceil(n / 16), 3, "-") for n in arguments.images]:
        distances = distances_like_prototypes(n)
        for kind in ("multinomial", "systematic", "by shard"):
            row(n, window, kind, distances, repeats, goal)


if __name__ == "__main__":
    main()
