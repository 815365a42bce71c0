"""Pictures of limited size for the page, each with a tooltip that says which image it shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mimcl.cli.report.run_prototypes import RunPrototypes
from mimcl.pipeline.index import ShardIndex

SIDE = 128  # pixels, at most


@dataclass(frozen=True)
class Picture:
    """An image as a data URI with alternative text, a tooltip, and a caption, which may be empty."""

    uri: str
    side: int
    text: str
    tip: str
    caption: str = ""


@dataclass(frozen=True)
class Row:
    """A row of pictures, one for each image; `more` stand apart from them."""

    label: str
    detail: str
    pictures: list[Picture]
    more: Sequence[Picture] = ()


def tooltip(index: ShardIndex, sample_id: int, prototypes: RunPrototypes | None) -> str:
    """Return a train image's path, key, class and distance, as far as there are any."""
    label = int(index.label[sample_id])
    words = [index.path(sample_id), f"key {index.key(sample_id)}"]
    if label >= 0:
        words.append(f"class {index.classes[label]}")
    if prototypes:
        what = "score" if prototypes.scores else "distance"
        words.append(f"{what} {prototypes.found.distance[sample_id]:.3f}")
    return " · ".join(words)


def pictures(images: NDArray[np.uint8], what: str, tips: Sequence[str], side: int = SIDE) -> list[Picture]:
    """Encode images (n, S, S, 3), shrunk to `side` pixels; the alternative texts begin with `what`."""
    found = []
    for pixels, tip in zip(images, tips, strict=True):
        image = Image.fromarray(np.ascontiguousarray(pixels))
        if image.width > side:
            image = image.resize((side, side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, "WEBP", quality=85, method=4)
        uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
        found.append(Picture(uri, image.width, f"{what} {tip}", tip))
    return found
