"""What gpu_check measures on: generated images, packed, and the program's own parts put together over them."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.curriculum.sampler import Plan
from mimcl.model.mae import ModelConfig, build
from mimcl.model.optim import OptimConfig
from mimcl.model.trainer import Trainer, TrainerConfig
from mimcl.pipeline.augment import hash64, random_crops
from mimcl.pipeline.decode import Decoder, Encoded, make_decoder
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.store import ShardStore
from mimcl.pipeline.stream import Stream

WIDTH, HEIGHT, SIZE = 500, 375, 224


@dataclass(frozen=True)
class Scale:
    """How large a measurement is, and on what."""

    device: str
    decoder: str
    model: ModelConfig
    images: int  # in the data set
    batch: int  # images; a step has one micro-batch
    batches: int  # in a measurement
    steps: int  # in a measurement


GPU = Scale("cuda", "dali-gpu", ModelConfig(), images=2048, batch=256, batches=40, steps=60)
REHEARSAL = Scale(
    "cpu",
    "dali-cpu",
    ModelConfig("vit_tiny", decoder_width=64, decoder_depth=1),
    images=64,
    batch=16,
    batches=4,
    steps=20,
)


class Bench:
    """A packed data set of generated images, and what is built on it."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.scale, self.threads = scale, os.cpu_count() or 1
        write_images(folder / "images", scale.images, self.threads)
        out = folder / "shards"
        pack(image_folder(folder / "images"), out, PackConfig(), overwrite=False, on_progress=lambda count: None)
        self.index = ShardIndex.load(out)
        self.store = ShardStore(self.index)

    def ids(self, seed: int) -> list[np.ndarray]:
        """Random samples, a measurement's batches of them."""
        draws = np.arange(self.scale.batch * self.scale.batches)
        ids = (hash64(seed, draws, 99) % np.uint64(self.index.samples)).astype(np.int64)
        return np.split(ids, self.scale.batches)

    def encoded(self, seed: int) -> list[Encoded]:
        """Random images with training's boxes."""
        transform, batches = random_crops(seed), []
        for number, ids in enumerate(self.ids(seed)):
            draws = np.arange(len(ids)) + number * len(ids)
            boxes, flips = transform(draws, self.index.width[ids], self.index.height[ids])
            batches.append(Encoded(self.store.read(ids), boxes, flips))
        return batches

    def decoder(self) -> Decoder:
        return make_decoder(self.scale.decoder, SIZE, self.scale.batch, self.threads, self.index.largest)[0]

    def stream(self, steps: int) -> Stream:
        """The path of `mimcl train --curriculum proto`, over random distances."""
        batch = self.scale.batch
        distances = np.random.default_rng(0).random(self.index.samples, np.float32)
        plan = Plan(
            CurriculumConfig("proto"),
            samples=self.index.samples,
            distances=distances,
            draws=steps * batch,
            batch_size=batch,
            seed=0,
            hash64=hash64,
        )
        kind = {"batch_size": batch, "micro_batch_size": batch, "prefetch": 4, "device": self.scale.device}
        return Stream(plan, self.index, self.decoder(), random_crops(0), seed=0, **kind)

    def trainer(self, steps: int, compiled: bool) -> Trainer:
        """Reports every tenth step."""
        model = build(self.scale.model, SIZE, seed=0).to(self.scale.device)
        masker = RandomMasker(model.num_patches, 0.75).to(self.scale.device)
        config = TrainerConfig(epochs=1, compile=compiled, log_every_steps=10, checkpoint_every_steps=10**9)
        # Warmed up fast, so that the loss falls within these few steps.
        rate, draws = OptimConfig(base_lr=1e-3, warmup_epochs=0.1), steps * self.scale.batch
        length = {"samples": draws, "draws": draws, "batch_size": self.scale.batch, "micro_batches": 1}
        return Trainer(model, masker, config, rate, precision="bfloat16", **length)

    def wait(self) -> None:
        if self.scale.device == "cuda":
            torch.cuda.synchronize()

    def rate(self, work: Callable[[], object], images: int) -> float:
        """Images a second of `work`."""
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return images / (time.perf_counter() - started)


def write_images(folder: Path, count: int, threads: int) -> None:
    """Noise at all scales, the coarse strongest, as in photographs."""
    folder.mkdir()

    def write(number: int) -> None:
        rng, pixels = np.random.default_rng(number), np.full((HEIGHT, WIDTH, 3), 128.0)
        for scale, strength in ((100, 45), (30, 25), (9, 14), (3, 9), (1, 6)):
            small = rng.standard_normal((HEIGHT // scale + 2, WIDTH // scale + 2, 3)) * strength + 128
            image = Image.fromarray(small.clip(0, 255).astype(np.uint8))
            pixels += np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), float) - 128
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=88)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(count)))
