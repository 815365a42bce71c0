"""Simulate what order "shard" reads of a data set of ImageNet's size, packed at random and repacked by distance.

    python tools/bench/locality.py [--quick] [--out tools/bench/locality.txt]

No image is read: plans, draw order and byte ranges are those of training, over a synthetic index:

- 1,281,167 images, sizes lognormal (sigma 0.5) with a mean of 110 KB, in tar files of 256 MB as `mimcl shard` packs.
- Distances from normalise_distances: sqrt(N) clusters with gamma distributed sizes are Gaussian clouds of 32 dimensions
  and different widths; the distance to the centre (chi distributed) is scaled to [0, 1] within its cluster. So
  distances are bell-shaped, with a single 0 and a single 1 per cluster.
- "random": distance and position in the shards are independent. "repacked": ascending by distance, shuffled within each
  of 256 bands of equally many images.

Curriculum proto, cosine from r0 0.15, batches of 4,096. For the first tenth of training and for the whole run:

- distinct samples (counted for 10 epochs, for longer runs as `mimcl plan` predicts them);
- per epoch (N draws): shards visited, summed over windows; requests; and bytes fetched, in multiples of the data set,
  without a cache, with a cache of 35% of the data set (50 GB of ImageNet, the default; least recently used samples are
  removed first, bridged gaps are not kept) and with a cache that holds everything. Random order without a cache makes
  N requests and fetches the data set once.
- amplification: bytes fetched without a cache over bytes of a window's distinct samples.

Of parts longer than 11 epochs, 4 evenly spaced windows are simulated, each after 1.5 epochs that fill the empty cache:
a longer history would fetch less.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.forecast import forecast
from mimcl.curriculum.plan import Plan
from mimcl.curriculum.prototypes import normalise_distances
from mimcl.pipeline.augment import hash64
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.read_plan import ReadPlanner, plan_reads

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.synthetic_index import bare_index

SAMPLES, BATCH, MEAN, SHARD = 1_281_167, 4096, 110_000, 256 << 20
CACHE = 0.35  # of the data set: 50 GB of ImageNet's 141
DIMENSIONS, BANDS, WINDOWS = 32, 256, 4
EPOCHS, SLICES = (10, 100, 800), (1 / 16, 1 / 4, 1.0)


def make_distances(samples: int) -> np.ndarray:
    """Return distances (N,) float32 like those of prototypes, in random order."""
    rng = np.random.default_rng(0)
    clusters = math.isqrt(samples)
    shares = rng.gamma(4.0, size=clusters)
    labels = rng.choice(clusters, samples, p=shares / shares.sum()).astype(np.int32)
    raw = np.sqrt(rng.chisquare(DIMENSIONS, samples)) * rng.uniform(0.5, 1.5, clusters)[labels]
    return normalise_distances(raw, labels, clusters)


def make_index(samples: int) -> ShardIndex:
    """Return the index of tar files with a header, an image and a label for each row."""
    nbytes = np.random.default_rng(1).lognormal(math.log(MEAN) - 0.125, 0.5, samples).astype(np.int64) + 1
    records = 512 + -(-nbytes // 512) * 512 + 1024
    ends = np.cumsum(records)
    shard, offset, begin = np.empty(samples, np.int32), np.empty(samples, np.int64), 0
    for number in range(samples):
        stop = int(np.searchsorted(ends, (ends[begin - 1] if begin else 0) + SHARD, side="right"))
        shard[begin:stop] = number
        offset[begin:stop] = ends[begin:stop] - records[begin:stop] - (ends[begin - 1] if begin else 0) + 512
        if (begin := stop) >= samples:
            return bare_index(shard, offset, nbytes)
    raise AssertionError


def repacked(distances: np.ndarray) -> np.ndarray:
    """Return the distances of the rows in ascending order, shuffled within bands."""
    bands = np.array_split(np.sort(distances), BANDS)
    rng = np.random.default_rng(2)
    return np.concatenate([rng.permutation(band) for band in bands])


class Read(NamedTuple):
    """What windows read, summed over windows."""

    draws: int = 0
    shards: int = 0
    requests: int = 0
    fetched: int = 0
    cached: int = 0  # bytes fetched with a cache of 50 GB
    needed: int = 0  # bytes of each window's distinct samples

    def plus(self, other: Read) -> Read:
        return Read(*(a + b for a, b in zip(self, other, strict=True)))


class Cache:
    """A cache of samples that evicts by stretch, least recently used first."""

    def __init__(self, nbytes: np.ndarray) -> None:
        self._nbytes, self._size, self._max_size = nbytes, 0, CACHE * nbytes.sum()
        self._stretch = np.full(len(nbytes), -1)  # the last one that used the sample; -1: not cached
        self._kept: deque[tuple[int, np.ndarray]] = deque()
        self._count = 0

    def missing(self, sample_ids: np.ndarray) -> np.ndarray:
        """Return the distinct samples of a stretch that have to be fetched, and add them to the cache."""
        missing = sample_ids[self._stretch[sample_ids] < 0]
        self._stretch[sample_ids] = self._count
        self._kept.append((self._count, sample_ids))
        self._size += int(self._nbytes[missing].sum())
        self._count += 1
        while self._size > self._max_size and len(self._kept) > 1:
            number, ids = self._kept.popleft()
            ids = ids[self._stretch[ids] == number]
            self._stretch[ids] = -1
            self._size -= int(self._nbytes[ids].sum())
        return missing


class Simulated:
    """A simulated run of `epochs` with windows of `part` of an epoch."""

    def __init__(self, index: ShardIndex, distances: np.ndarray, epochs: int, part: float) -> None:
        self.samples = len(distances)
        self.plan = Plan(
            CurriculumConfig("proto", r0=0.15, order="shard", slice=part),
            samples=self.samples,
            distances=distances,
            draws=BATCH * math.ceil(epochs * self.samples / BATCH),
            batch_size=BATCH,
            seed=0,
            hash64=hash64,
            shards=index.shard,
        )
        self._index, self._reads = index, ReadPlanner(index, partial(plan_reads, index), BatchShares(BATCH, BATCH))
        self._begin(0)

    def _begin(self, number: int) -> None:
        self._next, self._cache = number, Cache(self._index.nbytes)

    def windows(self, numbers: range, seen: np.ndarray | None) -> Read:
        """Return what these consecutive windows read, and mark their samples in `seen`."""
        if numbers.start != self._next:
            fill = math.ceil(1.5 * self.samples / self.plan.window_length)
            self._begin(max(0, numbers.start - fill))
        total = Read()
        for number in range(self._next, numbers.stop):
            window = self.plan.window(number)
            reads, figures = self._reads(window)
            missing = [plan_reads(self._index, self._cache.missing(part.sample_ids)).fetched for part in reads]
            if number >= numbers.start:
                sums = figures.shards, figures.requests, figures.fetched, sum(missing), figures.needed
                total = total.plus(Read(len(window.sample_ids), *sums))
            if seen is not None:
                seen[window.sample_ids] = True
        self._next = numbers.stop
        return total

    def part(self, stop: int, count: int) -> tuple[Read, float]:
        """Return what windows 0 ... stop - 1 read, `count` of them in long parts, and the share of samples drawn."""
        if stop * self.plan.window_length <= 11 * self.samples:
            seen = np.zeros(self.samples, bool)
            self._begin(0)
            return self.windows(range(stop), seen), float(seen.mean())
        total = Read()
        for number in range(count):
            first = round((number + 0.5) / count * (stop - 1))
            total = total.plus(self.windows(range(first, first + 1), None))
        (last,) = forecast(self.plan, [stop - 1])
        return total, last.coverage


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="use a tenth of the images and 2 windows instead of 4")
    parser.add_argument("--out", help="file to write the table to as well")
    arguments = parser.parse_args()
    samples, count = (SAMPLES // 10, 2) if arguments.quick else (SAMPLES, WINDOWS)
    began, lines = time.perf_counter(), []

    def say(line: str = "") -> None:
        print(line, flush=True)
        lines.append(line)

    distances, index = make_distances(samples), make_index(samples)
    size, shards = int(index.nbytes.sum()), int(index.shard[-1]) + 1
    quantiles = ", ".join(f"{value:.2f}" for value in np.quantile(distances, (0.01, 0.1, 0.5, 0.9, 0.99)))
    say(f"{samples:,} images, {size / 1e9:.0f} GB in {shards} shards; quantiles of distance {quantiles}\n")
    say(
        f"{'epochs':>6} {'slice':>6}  {'part':<9} {'packing':<8} {'distinct samples':>16} | {'visits':>6} "
        f"{'requests':>9} {'no cache':>9} {'35%':>6} {'all':>6} | {'ampl.':>6} | requests, repacked / random"
    )
    met: dict[str, list[str]] = {}
    for epochs in EPOCHS:
        for part in SLICES:
            runs = {
                "random": Simulated(index, distances, epochs, part),
                "repacked": Simulated(index, repacked(distances), epochs, part),
            }
            for name, share in (("first 10%", 0.1), ("whole run", 1.0)):
                requests = {}
                for packing, run in runs.items():
                    stop = max(1, round(share * run.plan.windows))
                    read, distinct = run.part(stop, count)
                    of_epochs = read.draws / samples
                    requests[packing] = read.requests / of_epochs
                    amplification = read.fetched / read.needed
                    drawn = min(stop * run.plan.window_length, run.plan.draws) / samples
                    ratio = ""
                    cell = f"{epochs} epochs, slice {part:g}, {name}"
                    if packing == "repacked":
                        fraction = requests["repacked"] / requests["random"]
                        ratio = f"{fraction:.2f}"
                        note(met, "repacked needs at most half the requests", fraction <= 0.5, f"{cell}: {ratio}")
                    note(met, "amplification at most 1.15", amplification <= 1.15, f"{cell}, {packing}")
                    if epochs == 10 and share == 0.1:
                        goal = "10 epochs: unique bytes of the first tenth at most 20%"
                        note(met, goal, distinct <= 0.2, f"slice {part:g}, {packing}: {distinct:.1%}")
                    say(
                        f"{epochs:>6} {part:>6.4g}  {name:<9} {packing:<8} "
                        f"{distinct * samples:>9,.0f} {distinct:>6.1%} | "
                        f"{read.shards / of_epochs:>6,.0f} {requests[packing]:>9,.0f} "
                        f"{read.fetched / of_epochs / size:>9.3f} {read.cached / of_epochs / size:>6.3f} "
                        f"{distinct / drawn:>6.3f} | {amplification:>6.3f} | {ratio}"
                    )
    say("(visits, requests and bytes are per epoch, bytes in multiples of the data set)")
    say()
    for goal, verdicts in met.items():
        missed = [verdict for verdict in verdicts if verdict]
        say(f"{goal}: " + (f"MISSED in {len(missed)} of {len(verdicts)}" if missed else f"met in all {len(verdicts)}"))
        for verdict in missed:
            say(f"    {verdict}")
    if any("whole run" in where for where in met["repacked needs at most half the requests"]):
        say("In whole runs: at high temperatures all images are equally likely, and no packing groups the drawn ones.")
    print(f"{time.perf_counter() - began:.0f} seconds", file=sys.stderr)
    if arguments.out:
        with open(arguments.out, "w") as file:
            file.write("\n".join(lines) + "\n")


def note(met: dict[str, list[str]], goal: str, is_met: bool, where: str) -> None:
    """Record where a goal is missed; an empty text where it is met."""
    met.setdefault(goal, []).append("" if is_met else where)


if __name__ == "__main__":
    main()
