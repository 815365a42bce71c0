"""Compare the weighted stream with torchvision's loader and DALI's own sequential reader, in images per second.

    python tools/bench/loader.py shards imagenet/train

The folder of class folders and the shards hold the same images. Every engine decodes on the CPU with one thread or
worker per core, takes random resized crops (area 0.2 to 1, aspect 3/4 to 4/3), resizes them to 224 pixels with
antialiased bicubic interpolation, flips half of them and yields uint8 batches. Runs alternate; each starts and ends
with empty queues; the first run of each engine is not counted. A ratio is the median of the ratios within a round. The
cost of the checksums is reported in CPU time, which is less sensitive to other load, and directly: the time to hash an
image over the CPU time that the stream spends on one.

Before each run the shards are read into the page cache, or dropped from it for "cold" (verified with mincore; a copy of
them, because the kernel keeps pages that DALI's reader has mapped). Cold runs draw uniformly, each image at most once,
so that the cache serves no read. In "one at a time" runs the store reads one sample after another. A stream decodes
while it reads, so these runs differ only when reading is the bottleneck; with few cores decoding is. "reading alone"
shows the store by itself: every sample in random order, checked but not decoded, in this script's and in training's
default micro-batches. The host of a virtual machine may cache its disk.

"Loader" is mimcl.api's in a plain loop, "torchdata" the StatefulDataLoader of torchdata (pip install torchdata) with a
WeightedRandomSampler over ImageFolder. Both are also timed from their constructor, with the state of the middle of an
epoch, to the first batch ("resume").

"32 px" are ours with that target size, and "32 px, scaled" the same with data.scaled_decode.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import xxhash

from mimcl.api import Loader
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.plan import Plan
from mimcl.pipeline import open_shards, store
from mimcl.pipeline.augment import hash64, random_crops
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.data_config import DataConfig
from mimcl.pipeline.decoder_choice import make_decoder
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.stream import Stream

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.loader_peers import SIZE, dali_reader, stateful_loader, torchvision_loader
from bench.reading import cool, one_at_a_time, ratio, report, warm

GOALS = {  # least ratio of the first to the second
    ("ours", "torchvision"): 1.8,
    ("ours", "dali"): 0.87,
    ("Loader", "ours"): 0.97,
    ("Loader", "torchdata"): 1.0,
    ("ours", "one at a time"): 1.0,
    ("cold", "cold, one at a time"): 1.5,
    ("32 px, scaled", "32 px"): 1.3,
}
READING_GOALS = {"cold": 1.5, "warm": 1.0}


def stream(
    index: ShardIndex,
    config: CurriculumConfig,
    draws: int,
    batch: int,
    cores: int,
    size: int = SIZE,
    scaled: bool = False,
) -> Callable[[], int]:
    """Return a run of mimcl's stream; a curriculum gets random distances."""
    decoder, _ = make_decoder("dali-cpu", size, batch, cores, index.largest, scaled)
    distances = np.random.default_rng(0).random(index.samples, np.float32)

    def run() -> int:
        plan = Plan(
            config,
            samples=index.samples,
            distances=None if config.name == "none" else distances,
            draws=draws,
            batch_size=batch,
            seed=0,
            hash64=hash64,
        )
        stream = Stream(plan, index, decoder, random_crops(0), BatchShares(batch, batch), seed=0)
        return sum(len(item.images) for item in stream)

    return run


def unchecked(run: Callable[[], int]) -> Callable[[], int]:
    """Return the same run without hashing the images."""
    no_hash = SimpleNamespace(xxh64_intdigest=lambda _: mock.ANY)  # equals every checksum

    def run_unchecked() -> int:
        with mock.patch.object(open_shards, "xxhash", no_hash):
            return run()

    return run_unchecked


def own_loop(root: Path, draws: int, batch: int) -> tuple[Callable[[], int], Callable[[], float]]:
    """Return a run of a plain loop over mimcl.api.Loader, and the seconds to resume one in the middle of an epoch."""
    samples = ShardIndex.load(root).samples
    scores = np.random.default_rng(0).random(samples, np.float32)  # as in `stream`

    def made() -> Loader:
        epochs = draws / samples
        return Loader(
            root,
            batch_size=batch,
            image_size=SIZE,
            epochs=epochs,
            scores=scores,
            decoder="dali-cpu",
            order="random",
        )

    loader = made()
    start = loader.state_dict()

    def run() -> int:
        loader.load_state_dict(start)
        return sum(len(item.images) for item in loader)

    def resume() -> float:
        begun = made()
        for _, _ in zip(range(draws // batch // 2), begun, strict=False):
            pass
        state = begun.state_dict()
        since = time.perf_counter()
        resumed = made()
        resumed.load_state_dict(state)
        next(iter(resumed))
        return time.perf_counter() - since

    return run, resume


def hash_seconds(index: ShardIndex) -> float:
    """Return the CPU seconds to hash an image."""
    views = [view for view in store.ShardStore(index).read(np.arange(index.samples)) if isinstance(view, np.ndarray)]
    start = time.process_time()
    for view in views:
        xxhash.xxh64_intdigest(view.data)
    return (time.process_time() - start) / len(views)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="packed data set")
    parser.add_argument("images", type=Path, help="folder of class folders with the same images")
    parser.add_argument("--draws", type=int, default=2048, help="images a run (default 2048)")
    parser.add_argument("--batch", type=int, default=64, help="images a batch (default 64)")
    parser.add_argument("--engines", nargs="*", help="only these, by name")
    parser.add_argument("--rounds", type=int, default=5, help="alternating runs (default 5)")
    arguments = parser.parse_args()
    draws = arguments.draws // arguments.batch * arguments.batch
    with tempfile.TemporaryDirectory(dir=arguments.shards.parent) as name:
        copy = shutil.copytree(arguments.shards, Path(name) / "shards")
        compare(arguments, ShardIndex.load(arguments.shards), ShardIndex.load(copy), draws)


def compare(arguments: argparse.Namespace, index: ShardIndex, copy: ShardIndex, draws: int) -> None:
    """Measure all engines in alternating runs and print the results; `copy` is read cold."""
    batch, cores = arguments.batch, len(os.sched_getaffinity(0))
    ours = stream(index, CurriculumConfig("proto"), draws, batch, cores)
    cold = stream(copy, CurriculumConfig("none"), draws, batch, cores)
    (api, api_resume), (torchdata, torchdata_resume) = (
        own_loop(arguments.shards, draws, batch),
        stateful_loader(arguments.images, draws, batch, cores),
    )
    engines = {
        "ours": ours,
        "Loader": api,
        "torchdata": torchdata,
        "one at a time": one_at_a_time(ours),
        "unchecked": unchecked(ours),
        "cold": cold,
        "cold, one at a time": one_at_a_time(cold),
        "32 px": stream(index, CurriculumConfig("proto"), draws, batch, cores, 32),
        "32 px, scaled": stream(index, CurriculumConfig("proto"), draws, batch, cores, 32, scaled=True),
        "torchvision": torchvision_loader(arguments.images, draws, batch, cores),
        "dali": dali_reader(arguments.shards, index, draws, batch, cores),
    }
    engines = {name: engine for name, engine in engines.items() if name in (arguments.engines or engines)}
    if draws > index.samples:
        raise SystemExit(
            f"--draws must be at most the number of images ({draws} > {index.samples}): cold runs read each image once"
        )
    os.sync()  # dirty pages cannot be dropped from the page cache
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(-1, arguments.rounds):
        names = list(engines) if number % 2 else list(reversed(engines))
        for name in names:
            if name.startswith("cold"):
                cool(copy)
            else:
                warm(index)
            start, used = time.perf_counter(), time.process_time()
            images = engines[name]()
            if number >= 0:
                speeds[name].append(images / (time.perf_counter() - start))
                cpu_seconds[name].append((time.process_time() - used) / images)
        if number >= 0:
            print(f"round {number}: " + ", ".join(f"{name} {speeds[name][-1]:.0f}" for name in engines), flush=True)

    print(f"\n{cores} cores, {draws} draws a run, batches of {batch}, load average {os.getloadavg()[0]:.1f}")
    for name, values in speeds.items():
        print(f"{name:<16} {statistics.median(values):>7.0f} images/s")

    for (name, other), goal in GOALS.items():
        if not {name, other} <= engines.keys():
            continue
        print(f"{name} / {other:<16} {ratio(speeds[name], speeds[other])}, goal {goal}")
    for name, resume in (("Loader", api_resume), ("torchdata", torchdata_resume)):
        times = [resume() for _ in range(3)]
        print(f"resume, {name:<16} {statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})")
    if "unchecked" not in engines:
        return
    checked, unhashed = (statistics.median(cpu_seconds[name]) for name in ("ours", "unchecked"))
    shares = f"{1 - unhashed / checked:.1%} of the CPU time by runs, {hash_seconds(index) / checked:.2%} directly"
    print(f"checksums: {shares} (goal < 2%)")
    report(copy, (batch, DataConfig.micro_batch_size), arguments.rounds, READING_GOALS)


if __name__ == "__main__":
    main()
