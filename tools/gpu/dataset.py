"""Generated images of the size of ImageNet's, packed by mimcl, and encoded batches of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.plan import Plan
from mimcl.pipeline.augment import hash64, random_crops
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.decode import Decoder, Encoded
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.store import Defect, ShardStore
from mimcl.pipeline.stream import ReadOptions, Stream

WIDTH, HEIGHT = 500, 375
_QUALITY = 97  # 118 KB; ImageNet's images have 110 KB on average
_WINDOW = 16  # batches: long enough for the stream to prefetch as in a real run


@dataclass
class DataSet:
    """A packed data set; `read` and `encoded` are pure functions of the seed."""

    index: ShardIndex
    store: ShardStore

    @classmethod
    def make(cls, folder: Path, count: int, threads: int) -> DataSet:
        """Write and pack the images, unless an earlier process has done so."""
        shards = folder / "shards"
        if not shards.exists():
            write_images(folder / "images", count, threads)
            unfinished = folder / "unfinished"
            pack(image_folder(folder / "images"), unfinished, PackConfig(), on_progress=lambda count: None)
            unfinished.rename(shards)
        index = ShardIndex.load(shards)
        return cls(index, ShardStore(index))

    def ids(self, seed: int, batch: int, batches: int) -> list[np.ndarray]:
        """Return the sample ids of random batches."""
        draws = np.arange(batch * batches)
        ids = (hash64(seed, draws, 99) % np.uint64(self.index.samples)).astype(np.int64)
        return np.split(ids, batches)

    def encoded(self, seed: int, batch: int, batches: int) -> list[Encoded]:
        """Return batches of random images with the crop boxes of training."""
        transform, found = random_crops(seed), []
        for number, ids in enumerate(self.ids(seed, batch, batches)):
            draws = np.arange(batch) + number * batch
            boxes, flips = transform(draws, self.index.width[ids], self.index.height[ids])
            found.append(Encoded([_require(data) for data in self.store.read(ids)], boxes, flips))
        return found

    def stream(self, decoder: Decoder, batch: int, steps: int, device: str) -> Stream:
        """Return the stream of `mimcl train --curriculum proto`, with random distances."""
        plan = Plan(
            CurriculumConfig("proto", window=_WINDOW * batch),
            samples=self.index.samples,
            distances=np.random.default_rng(0).random(self.index.samples, np.float32),
            draws=steps * batch,
            batch_size=batch,
            seed=0,
            hash64=hash64,
        )
        return Stream(
            plan,
            self.index,
            decoder,
            random_crops(0),
            BatchShares(batch, batch),
            ReadOptions(stall_timeout=60),
            seed=0,
            device=device,
        )


def _require(data: NDArray[np.uint8] | Defect) -> NDArray[np.uint8]:
    if isinstance(data, Defect):
        raise RuntimeError(f"sample {data.key} of {data.shard}: {data.reason}")
    return data


def write_images(folder: Path, count: int, threads: int) -> None:
    """Write JPEGs of noise at all scales, the coarse strongest as in photographs."""
    folder.mkdir(exist_ok=True)

    def write(number: int) -> None:
        rng, pixels = np.random.default_rng(number), np.full((HEIGHT, WIDTH, 3), 128.0)
        for scale, strength in ((100, 45), (30, 25), (9, 14), (3, 9), (1, 6)):
            small = rng.standard_normal((HEIGHT // scale + 2, WIDTH // scale + 2, 3)) * strength + 128
            image = Image.fromarray(small.clip(0, 255).astype(np.uint8))
            pixels += np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), float) - 128
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=_QUALITY)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(count)))
