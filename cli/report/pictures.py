"""Pictures of bounded size for a page: what checkpoints fill in, and the prototype gallery."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from mimcl.cli.encoders.reconstruction import reconstruct
from mimcl.cli.evenly_spaced import evenly_spaced
from mimcl.cli.prototypes.gallery import images_of
from mimcl.cli.report.read import RunRecord
from mimcl.model import checkpoint
from mimcl.model.checkpoint import CheckpointError
from mimcl.pipeline.index import ShardIndex

_CHECKPOINTS, _IMAGES, _SIDE = 4, 6, 128  # pixels
_LARGE, _OF_LARGE = 600e6, 2  # bytes of weights above which so many checkpoints have to do: a ViT-L takes its time
_GALLERY_WIDTH, _MOST_PIXELS = 1200, 50_000_000


@dataclass(frozen=True)
class Picture:
    """An image as a data URI, with what it shows for those who cannot see it."""

    uri: str
    width: int
    height: int
    text: str


@dataclass(frozen=True)
class Strip:
    """A row of pictures side by side, one for each image."""

    label: str
    detail: str
    picture: Picture


def reconstructions(run: RunRecord, index: ShardIndex) -> tuple[list[Strip], list[str]]:
    """Rows of crops, then of each checkpoint what its mask leaves and what it fills in; and why some are missing.

    Images are spread evenly over the train split, checkpoints from the first that was kept to the last. Weights alone
    are read. For a run with checkpoints; raises DataError for an image that cannot be read, and OSError.
    """
    side, seed = int(run.config["data.image_size"]), int(run.config["seed"])
    strips: list[Strip] = []
    missing: list[str] = []
    crops: Tensor | None = None
    wanted = _CHECKPOINTS
    if max(_bytes(path / "weights.safetensors") for path in run.checkpoints) > _LARGE:
        wanted = _OF_LARGE
        missing.append(f"at most {wanted} checkpoints, since the model is large; mimcl masks {run.folder} draws more")
    for place in evenly_spaced(len(run.checkpoints), wanted):
        try:
            saved = checkpoint.load(run.checkpoints[place], with_state=False)
        except CheckpointError as error:  # of a run that goes on it may have been thinned out meanwhile
            missing.append(str(error))
            continue
        if crops is None:
            crops = images_of(index, evenly_spaced(index.samples, _IMAGES), side)
            strips.append(Strip("images", f"{side} px crops", _strip(crops, "crops of train images")))
        found = reconstruct(saved, crops, seed, index.samples)
        step, epoch = saved.meta["step"], saved.meta["position"] / index.samples
        label = f"step {step:,}"
        detail = f"epoch {epoch:.3g}" + (f", {found.stage}" if found.stage else "")
        strips.append(Strip(label, f"what is seen; {detail}", _strip(found.seen, f"masked crops at {label}")))
        strips.append(Strip("", "filled in", _strip(found.filled, f"reconstructions at {label}")))
    return strips, missing


def _bytes(path: Path) -> int:
    """0 where it has been thinned out meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def gallery(prototypes: Path) -> Picture:
    """A prototype set's gallery.png, smaller. Raises OSError, ValueError where there is none that can be read."""
    path = prototypes / "gallery.png"
    with Image.open(path, formats=["PNG"]) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise ValueError(f"{path} has {image.width} x {image.height} pixels")
        picture = image.convert("RGB")
    if picture.width > _GALLERY_WIDTH:
        picture = picture.resize((_GALLERY_WIDTH, round(picture.height * _GALLERY_WIDTH / picture.width)))
    return _encoded(picture, "clusters of train images, a row each: nearest to the prototype left, farthest right")


def _strip(images: Tensor, text: str) -> Picture:
    """Side by side, (n, 3, S, S) uint8."""
    pixels = images.permute(0, 2, 3, 1).numpy()
    tiles = [Image.fromarray(np.ascontiguousarray(tile)) for tile in pixels]
    if tiles[0].width > _SIDE:
        tiles = [tile.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS) for tile in tiles]
    side = tiles[0].width
    gap = max(1, side // 32)
    whole = Image.new("RGBA", (len(tiles) * (side + gap) - gap, side))
    for place, tile in enumerate(tiles):
        whole.paste(tile, (place * (side + gap), 0))
    return _encoded(whole, text)


def _encoded(image: Image.Image, text: str) -> Picture:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=85, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(uri, image.width, image.height, text)
