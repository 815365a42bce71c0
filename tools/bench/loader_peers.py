"""What users write without mimcl: torchvision's loader, torchdata's stateful one, and DALI's own reader."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from nvidia.dali.data_node import DataNode
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from mimcl.pipeline.index import ShardIndex

SIZE = 224  # pixels


def image_folder(folder: Path) -> ImageFolder:
    crop = v2.RandomResizedCrop(SIZE, scale=(0.2, 1), interpolation=InterpolationMode.BICUBIC, antialias=True)
    return ImageFolder(folder, v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()]))


def torchvision_loader(folder: Path, draws: int, batch: int, cores: int) -> Callable[[], int]:
    images = image_folder(folder)
    sampler = RandomSampler(images, replacement=True, num_samples=draws)
    loader = DataLoader(images, batch, sampler=sampler, num_workers=cores, persistent_workers=True)
    torch.set_num_threads(cores)

    def run() -> int:
        return sum(len(pixels) for pixels, _ in loader)

    return run


def stateful_loader(folder: Path, draws: int, batch: int, cores: int) -> tuple[Callable[[], int], Callable[[], float]]:
    """Return a run over weighted draws, and the seconds to resume one in the middle of an epoch."""
    images = image_folder(folder)
    weights = np.exp(-np.random.default_rng(0).random(len(images)) / 0.2)

    def made(workers_stay: bool) -> StatefulDataLoader:
        generator = torch.Generator().manual_seed(0)
        sampler = WeightedRandomSampler(weights.tolist(), draws, generator=generator)
        return StatefulDataLoader(images, batch, sampler=sampler, num_workers=cores, persistent_workers=workers_stay)

    loader = made(workers_stay=True)

    def run() -> int:
        return sum(len(pixels) for pixels, _ in loader)

    def resume() -> float:
        begun = made(workers_stay=False)
        for _, _ in zip(range(draws // batch // 2), begun, strict=False):
            pass
        state = begun.state_dict()
        since = time.perf_counter()
        resumed = made(workers_stay=False)
        resumed.load_state_dict(state)
        next(iter(resumed))
        return time.perf_counter() - since

    return run, resume


def dali_reader(root: Path, index: ShardIndex, draws: int, batch: int, cores: int) -> Callable[[], int]:
    """Return a run of DALI's own reader: shards from front to back, with DALI's random crops."""
    shards = [root / shard["name"] for shard in index.shards]
    pipeline = Pipeline(batch, cores, None, seed=0, prefetch_queue_depth=3)
    with pipeline:
        outputs = fn.readers.webdataset(
            paths=[str(path) for path in shards],
            index_paths=[str(path.with_suffix(".idx")) for path in shards],
            ext=["jpg;png;webp", "cls"],
            missing_component_behavior="empty",
        )
        assert isinstance(outputs, list)
        data, label = outputs
        images = fn.decoders.image_random_crop(
            data, random_area=[0.2, 1.0], random_aspect_ratio=[3 / 4, 4 / 3], adjust_orientation=False
        )
        cubic = types.DALIInterpType.INTERP_CUBIC
        resized = fn.resize(images, size=[SIZE, SIZE], interp_type=cubic, antialias=True)
        assert isinstance(resized, DataNode)
        pipeline.set_outputs(fn.flip(resized, horizontal=fn.random.coin_flip()), label)

    def run() -> int:
        scheduled, seen = 0, 0
        while seen < draws:
            while scheduled < math.ceil(draws / batch) and scheduled - seen // batch < 3:
                pipeline._run_once()  # schedule_run would run ahead beyond the measured batches on its first call
                scheduled += 1
            images, _ = pipeline.share_outputs()
            seen += len(torch.from_dlpack(images.as_tensor()))
            pipeline.release_outputs()
        return seen

    return run
