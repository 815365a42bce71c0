"""Generated photographs as large as ImageNet's, packed by mimcl, and the encoded batches made of them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.plan import Plan
from mimcl.pipeline.augment import hash64, random_crops
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.decode import Decoder, Encoded
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.store import ShardStore
from mimcl.pipeline.stream import ReadOptions, Stream

WIDTH, HEIGHT = 500, 375
_QUALITY = 97  # 118 KB; ImageNet's images have 110 KB on average
_WINDOW = 16  # batches: long enough for the stream to run as far ahead as in a real run


@dataclass
class DataSet:
    """A packed data set; `read` and `encoded` are pure functions of the seed."""

    index: ShardIndex
    store: ShardStore

    @classmethod
    def make(cls, folder: Path, count: int, threads: int) -> DataSet:
        """Writes and packs the images, unless an earlier process has."""
        shards = folder / "shards"
        if not shards.exists():
            write_images(folder / "images", count, threads)
            unfinished = folder / "unfinished"
            pack(image_folder(folder / "images"), unfinished, PackConfig(), on_progress=lambda count: None)
            unfinished.rename(shards)
        index = ShardIndex.load(shards)
        return cls(index, ShardStore(index))

    def ids(self, seed: int, batch: int, batches: int) -> list[np.ndarray]:
        """Random samples of each batch."""
        draws = np.arange(batch * batches)
        ids = (hash64(seed, draws, 99) % np.uint64(self.index.samples)).astype(np.int64)
        return np.split(ids, batches)

    def encoded(self, seed: int, batch: int, batches: int) -> list[Encoded]:
        """Random images with training's boxes."""
        transform, found = random_crops(seed), []
        for number, ids in enumerate(self.ids(seed, batch, batches)):
            draws = np.arange(batch) + number * batch
            boxes, flips = transform(draws, self.index.width[ids], self.index.height[ids])
            found.append(Encoded(self.store.read(ids), boxes, flips))
        return found

    def stream(self, decoder: Decoder, batch: int, steps: int, device: str) -> Stream:
        """The stream of `mimcl train --curriculum proto`, with random distances."""
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


def write_images(folder: Path, count: int, threads: int) -> None:
    """JPEGs of noise at all scales, the coarse strongest, as in photographs."""
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
