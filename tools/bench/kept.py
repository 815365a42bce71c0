"""Measure the stream with and without `data.keep_decoded`, the difference of pixels, and training of cifar_tiny.

    python tools/bench/kept.py stream SHARDS --size 32     images per second, with the fastest decoder, Pillow, and kept
    python tools/bench/kept.py pixels SHARDS --size 32     differences of kept crops from those of the decoders
    python tools/bench/kept.py train CIFAR_SHARDS          images per second of `mimcl train --recipe cifar_tiny`

Streams draw uniformly, in batches of 256, on every core; the shards are in the page cache. Runs alternate, and the
first of each is not counted. A rate is the median, a ratio the median of the ratios within a round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from mimcl.cli.threads import choose_threads

choose_threads()  # as in `mimcl train`, before torch is imported

import numpy as np  # noqa: E402
import torch  # noqa: E402

from mimcl.cli.run.malloc import keep_freed_memory  # noqa: E402
from mimcl.curriculum.config import CurriculumConfig  # noqa: E402
from mimcl.curriculum.plan import Plan  # noqa: E402
from mimcl.pipeline.augment import hash64, random_crops  # noqa: E402
from mimcl.pipeline.batch_shares import BatchShares  # noqa: E402
from mimcl.pipeline.cores import decode_threads  # noqa: E402
from mimcl.pipeline.decode import Decoder, Encoded  # noqa: E402
from mimcl.pipeline.decoder_choice import make_decoder  # noqa: E402
from mimcl.pipeline.index import ShardIndex  # noqa: E402
from mimcl.pipeline.kept_pixels import KeptPixels, pixel_bytes  # noqa: E402
from mimcl.pipeline.store import ShardStore  # noqa: E402
from mimcl.pipeline.stream import Stream  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.reading import ratio, warm  # noqa: E402

_BATCH = 256
_DECODERS = ("dali-cpu", "reference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["stream", "pixels", "train"])
    parser.add_argument("shards", type=Path)
    parser.add_argument("--size", type=int, default=32, help="side of the crops (default 32)")
    parser.add_argument("--draws", type=int, default=8192, help="images a run (default 8192)")
    parser.add_argument("--rounds", type=int, default=5, help="alternating runs (default 5)")
    given = parser.parse_args()
    keep_freed_memory()
    {"stream": streams, "pixels": pixels, "train": train}[given.what](given)


def decoders(index: ShardIndex, size: int) -> Iterator[tuple[str, Decoder]]:
    threads = decode_threads()
    for name in _DECODERS:
        yield name, make_decoder(name, size, _BATCH, threads, index.largest)[0]
    started = time.perf_counter()
    kept = KeptPixels(index, size, threads)
    seconds = time.perf_counter() - started
    print(f"kept: {index.samples:,} images, {pixel_bytes(index) / 1e6:.1f} MB, decoded in {seconds:.1f} s", flush=True)
    yield "kept", kept


def streams(given: argparse.Namespace) -> None:
    index = ShardIndex.load(given.shards)
    warm(index)
    draws = given.draws // _BATCH * _BATCH

    def run(decoder: Decoder) -> float:
        plan = Plan(
            CurriculumConfig("none"),
            samples=index.samples,
            distances=None,
            draws=draws,
            batch_size=_BATCH,
            seed=0,
            hash64=hash64,
        )
        started = time.perf_counter()
        count = sum(
            len(batch.draws)
            for batch in Stream(plan, index, decoder, random_crops(0), BatchShares(_BATCH, _BATCH), seed=0)
        )
        return count / (time.perf_counter() - started)

    runs = {name: partial(run, decoder) for name, decoder in decoders(index, given.size)}
    compare(f"stream of {given.shards.name}, {given.size} px, {draws:,} draws a run", runs, given.rounds)


def pixels(given: argparse.Namespace) -> None:
    index = ShardIndex.load(given.shards)
    ids = np.random.default_rng(0).permutation(index.samples)[:4096]
    boxes, flips = random_crops(0)(np.arange(len(ids)), index.width[ids], index.height[ids])
    crops = {}
    for name, decoder in decoders(index, given.size):
        store = decoder.store or ShardStore(index)
        cuts = [slice(first, first + _BATCH) for first in range(0, len(ids), _BATCH)]
        encoded = (Encoded(store.read(ids[cut]), boxes[cut], flips[cut]) for cut in cuts)  # type: ignore[arg-type]
        crops[name] = torch.cat([decoded.images for decoded in decoder(encoded)])
    for name in _DECODERS:
        apart = (crops["kept"].int() - crops[name].int()).abs()
        each = apart.reshape(len(ids), -1).float().mean(dim=1)
        print(
            f"{given.shards.name}, {given.size} px, {len(ids):,} crops, kept and {name}: mean {each.mean():.4f} of 255,"
            f" worst crop {each.max():.3f}, largest {apart.max()}, equal crops {(each == 0).float().mean():.1%}"
        )


def train(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(1000))

        def run(keep: bool) -> float:
            out = Path(folder) / str(next(numbers))
            words = ["train", "--recipe", "cifar_tiny", "--data", str(given.shards.resolve()), "--out", str(out)]
            settings = [f"data.keep_decoded={keep}".lower(), "report=false", "trainer.log_every_steps=2"]
            words += ["--epochs", "0.07", *(word for setting in settings for word in ("--set", setting))]
            command = [sys.executable, "-m", "mimcl.cli.main", *words]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            return statistics.median(
                line["images_per_second"] for line in lines if line.get("step", 0) > 5 and "loss" in line
            )

        runs = {"decoded": partial(run, False), "kept": partial(run, True)}
        compare("mimcl train --recipe cifar_tiny, steps after the fifth", runs, given.rounds)


def compare(title: str, runs: Mapping[str, Callable[[], float]], rounds: int) -> None:
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1, rounds):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            rate = runs[name]()
            if number >= 0:
                rates[name].append(rate)
    print(f"{title}; {len(os.sched_getaffinity(0))} cores")
    for name, found in rates.items():
        line = f"  {name:10} {statistics.median(found):9,.0f} images/s ({min(found):,.0f} to {max(found):,.0f})"
        print(line if name == "kept" else f"{line}; kept / {name} {ratio(rates['kept'], found)}")


if __name__ == "__main__":
    main()
