"""Pictures of limited size for the page: reconstructions, and the prototype gallery."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mimcl.cli.evenly_spaced import evenly_spaced
from mimcl.cli.report.run_record import RunRecord
from mimcl.cli.suggest import command
from mimcl.model import checkpoint
from mimcl.model.checkpoint import CheckpointError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.pillow import open_image

if TYPE_CHECKING:
    from torch import Tensor

_CHECKPOINTS, _IMAGES, _SIDE = 4, 6, 128  # pixels
_LARGE, _OF_LARGE = 600e6, 2  # of models with more bytes of weights (ViT-L) only so many checkpoints are shown
_GALLERY_WIDTH, _MAX_PIXELS = 1200, 50_000_000


@dataclass(frozen=True)
class Picture:
    """An image as a data URI with alternative text."""

    uri: str
    width: int
    height: int
    text: str


@dataclass(frozen=True)
class Strip:
    """A row of pictures, one for each image."""

    label: str
    detail: str
    picture: Picture


def reconstructions(run: RunRecord, index: ShardIndex) -> tuple[list[Strip], list[str]]:
    """Return rows of crops, and of masked crops and reconstructions for each checkpoint; and why some are missing.

    Images are spaced evenly over the train split, checkpoints from the first to the last. The run must have
    checkpoints, of which only the weights are read. Raises DataError for an image that cannot be read, and OSError.
    """
    from mimcl.cli.encoders.reconstruction import reconstruct
    from mimcl.cli.prototypes.gallery import images_of

    side, seed = int(run.config["data.image_size"]), int(run.config["seed"])
    strips: list[Strip] = []
    missing: list[str] = []
    crops: Tensor | None = None
    wanted = _CHECKPOINTS
    if max(_file_size(path / "weights.safetensors") for path in run.checkpoints) > _LARGE:
        wanted = _OF_LARGE
        missing.append(f"at most {wanted} checkpoints for a large model; `{command('masks', run.folder)}` draws more")
    for place in evenly_spaced(len(run.checkpoints), wanted):
        try:
            saved = checkpoint.load(run.checkpoints[place], with_state=False)
        except CheckpointError as error:  # a run that is training may have deleted it meanwhile
            missing.append(str(error))
            continue
        if crops is None:
            crops = images_of(index, evenly_spaced(index.samples, _IMAGES), side)
            strips.append(Strip("images", f"{side} px crops", _strip(crops, "crops of train images")))
        found = reconstruct(saved, crops, seed, index.samples)
        step, epoch = saved.meta["step"], saved.meta["position"] / index.samples
        label = f"step {step:,}"
        detail = f"epoch {epoch:.3g}" + (f", {found.stage}" if found.stage else "")
        strips.append(Strip(label, f"masked; {detail}", _strip(found.seen, f"masked crops at {label}")))
        strips.append(Strip("", "reconstructed", _strip(found.filled, f"reconstructions at {label}")))
    return strips, missing


def _file_size(path: Path) -> int:
    """Return a file's size; 0 if a run that is training has deleted it meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def gallery(prototypes: Path, text: str) -> Picture:
    """Return a prototype set's gallery.png, shrunk, with its caption `text`.

    Raises OSError or ValueError if it cannot be read.
    """
    path = prototypes / "gallery.png"
    with open_image(path, "PNG") as image:
        if image.width * image.height > _MAX_PIXELS:
            raise ValueError(f"{path} has {image.width} x {image.height} pixels")
        picture = image.convert("RGBA")  # transparent between the images
    if picture.width > _GALLERY_WIDTH:
        picture = picture.resize((_GALLERY_WIDTH, round(picture.height * _GALLERY_WIDTH / picture.width)))
    return _encode(picture, text)


def _strip(images: Tensor, text: str) -> Picture:
    """Join images (n, 3, S, S) uint8 side by side."""
    pixels = images.permute(0, 2, 3, 1).numpy()
    tiles = [Image.fromarray(np.ascontiguousarray(tile)) for tile in pixels]
    if tiles[0].width > _SIDE:
        tiles = [tile.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS) for tile in tiles]
    side = tiles[0].width
    gap = max(1, side // 32)
    whole = Image.new("RGBA", (len(tiles) * (side + gap) - gap, side))
    for place, tile in enumerate(tiles):
        whole.paste(tile, (place * (side + gap), 0))
    return _encode(whole, text)


def _encode(image: Image.Image, text: str) -> Picture:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=85, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return Picture(uri, image.width, image.height, text)
