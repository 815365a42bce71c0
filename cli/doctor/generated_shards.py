"""Generate shards for trials, with images as large as ImageNet's in pixels and bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

WIDTH, HEIGHT, COUNT = 500, 375, 128


def generated_shards(folder: Path) -> ShardIndex:
    """Pack COUNT JPEG images of about 110 KB (noise at several scales) into folder/shards."""
    (folder / "images").mkdir()
    for number in range(COUNT):
        _picture(number).save(folder / "images" / f"{number:04d}.jpg", quality=88)
    pack(image_folder(folder / "images"), folder / "shards", PackConfig(), on_progress=lambda count: None)
    return ShardIndex.load(folder / "shards")


def _picture(number: int) -> Image.Image:
    rng, pixels = np.random.default_rng(number), np.full((HEIGHT, WIDTH, 3), 128, np.float32)
    for scale, strength in ((100, 45), (30, 25), (9, 14), (3, 9), (1, 6)):
        small = rng.standard_normal((HEIGHT // scale + 2, WIDTH // scale + 2, 3), np.float32) * strength + 128
        image = Image.fromarray(small.clip(0, 255).astype(np.uint8))
        pixels += np.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32) - 128
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
