"""The demo's picture: typical and atypical images, curves of both runs, and their reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mimcl.cli.demo.demo_curves import draw_curves
from mimcl.cli.encoders.reconstruction import reconstruct
from mimcl.cli.prototypes.gallery import cluster_ends, images_of, spread_clusters
from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.model import checkpoint
from mimcl.model.checkpoint import Checkpoint
from mimcl.model.checkpoint_path import resolve
from mimcl.pipeline.augment import random_crops
from mimcl.pipeline.files import atomic_file
from mimcl.pipeline.index import ShardIndex

# In pixels of the picture, which a page shows about 900 wide: a font of 9 points is 12.5 pixels high there.
_WIDTH, _DPI = 1350, 150
_COLUMNS, _TILE, _GAP, _LABELS = 9, 128, 7, 134  # images in a row, their side, between them, and left of them
_TITLE, _CURVES, _SPACE = 46, 330, 14  # heights: of a title, of the curves with their labels, below rows and curves
_PANELS = 4
_PIXELS = 64  # of a typical image: half of a tile's, as of the recipe's crops, so that the file is small
_COLOURS = 256


def draw_picture(path: Path, runs: Mapping[str, Path], train: ShardIndex, val: ShardIndex, found: PrototypeSet) -> None:
    """Write a PNG about finished runs by name and the prototype set; the masked crops are of val images."""
    saved = {name: checkpoint.load(resolve(run), with_state=False) for name, run in runs.items()}
    typical, masked = _typicality(train, found), _reconstructions(saved, val)
    rows = len(typical) + len(masked)
    height = 2 * _TITLE + _SPACE + _CURVES + rows * (_TILE + _GAP)
    figure = Figure(figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI)
    canvas = FigureCanvasAgg(figure)
    clusters = "Clusters of the train images, one a column: proto begins with the typical ones and ends with all"
    bottom = _draw_rows(figure, height, clusters, typical)
    draw_curves(_panels(figure, bottom), runs, train)
    crops = (
        "Masked val images: the decoders' predictions (with each patch's own mean and contrast) beside what is visible"
    )
    _draw_rows(figure, bottom - _SPACE - _CURVES, crops, masked)
    canvas.draw()
    # Few colours make the file a third as large.
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    with atomic_file(path) as file:
        picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)


def _typicality(index: ShardIndex, found: PrototypeSet) -> dict[str, Tensor]:
    """Return the nearest and the farthest image of some clusters."""
    ends = [cluster_ends(found, cluster) for cluster in spread_clusters(found, _COLUMNS)]
    nearest = images_of(index, np.array([near[0] for near, _ in ends]), _PIXELS)
    farthest = images_of(index, np.array([far[-1] for _, far in ends]), _PIXELS)
    return {"most\ntypical": nearest, "least\ntypical": farthest}


def _reconstructions(saved: Mapping[str, Checkpoint], index: ShardIndex) -> dict[str, Tensor]:
    """Return random crops, their visible patches, and with each run's predictions pasted in."""
    config = next(iter(saved.values())).meta["config"]
    ids = np.linspace(0, index.samples - 1, _COLUMNS).astype(np.int64)
    crops = images_of(index, ids, config["data"]["image_size"], random_crops(config["seed"]))
    found = {name: reconstruct(of, crops, config["seed"]) for name, of in saved.items()}
    seen = next(iter(found.values())).seen
    return {"crop": crops, "visible": seen} | {f"{name}\nfills in": of.filled for name, of in found.items()}


def _draw_rows(figure: Figure, top: int, title: str, rows: Mapping[str, Tensor]) -> int:
    """Draw labelled rows of images below a title, from `top` pixels above the bottom; return where they end."""
    width, height = figure.get_size_inches() * _DPI
    figure.text(_GAP / width, (top - _TITLE / 2) / height, title, fontsize=10, va="center")
    for place, (label, images) in enumerate(rows.items(), 1):
        y = top - _TITLE - place * (_TILE + _GAP) + _GAP
        figure.text(_GAP / width, (y + _TILE / 2) / height, label, fontsize=10, va="center")
        for column, image in enumerate(images):
            figure.figimage(_tile(image), _LABELS + column * (_TILE + _GAP), y)
    return top - _TITLE - len(rows) * (_TILE + _GAP)


def _panels(figure: Figure, top: float) -> list[Axes]:
    """Add axes side by side, with room for their titles and labels, from `top` pixels above the bottom."""
    width, height = figure.get_size_inches() * _DPI
    each, room = width / _PANELS, 62  # at the left of each
    bottom, inner = top - _CURVES + 66, _CURVES - 66 - 40
    boxes = [(place * each + room, bottom, each - room - 2 * _GAP, inner) for place in range(_PANELS)]
    return [figure.add_axes((x / width, y / height, w / width, h / height)) for x, y, w, h in boxes]


def _tile(image: Tensor) -> NDArray[np.uint8]:
    pixels = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    return np.asarray(pixels.resize((_TILE, _TILE), Image.Resampling.NEAREST))
