"""The demo's picture: typical and atypical images, the curriculum, and reconstructions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from mimcl.cli.encoders.reconstruction import reconstruct
from mimcl.cli.prototypes.gallery import cluster_ends, images_of, spread_clusters
from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.model import checkpoint
from mimcl.model.checkpoint_path import resolve
from mimcl.pipeline.augment import random_crops
from mimcl.pipeline.files import atomic_file
from mimcl.pipeline.index import ShardIndex

_IMAGES, _PIXELS = 10, 96  # images in a row, their side


def draw_picture(path: Path, run: Path, train: ShardIndex, val: ShardIndex, found: PrototypeSet) -> None:
    """Write a PNG about a finished run and its prototype set; the crops are of val images."""
    figure = Figure(figsize=(11, 9.2), layout="constrained")
    FigureCanvasAgg(figure)
    images, curves, crops = np.asarray(figure.subfigures(3, 1, height_ratios=[2.5, 2.6, 3.9]))
    _typicality(images, train, found)
    _difficulty(curves, run)
    _reconstructions(crops, run, val)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _typicality(figure: SubFigure, index: ShardIndex, found: PrototypeSet) -> None:
    """Draw the nearest and the farthest image of some clusters, one per column."""
    ends = [cluster_ends(found, cluster) for cluster in spread_clusters(found, _IMAGES)]
    figure.suptitle(
        "Some clusters, one per column: the most typical image (top), which the curriculum draws first, and the least",
        fontsize=10,
    )
    rows = np.array([[near[0], far[-1]] for near, far in ends]).T
    for axes, ids in zip(figure.subplots(2, len(ends), squeeze=False), rows, strict=True):
        for axis, image in zip(axes, images_of(index, ids, _PIXELS), strict=True):
            _show(axis, image)


def _difficulty(figure: SubFigure, run: Path) -> None:
    """Draw temperature, effective fraction and loss over the draws, from the run's metrics."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    windows, steps = [line for line in lines if "window" in line], [line for line in lines if "step" in line]
    panels = (
        ("temperature", windows, "temperature"),
        ("effective fraction (0.632: uniform)", windows, "effective_fraction"),
        ("reconstruction loss", steps, "loss"),
    )
    for axis, (title, rows, key) in zip(figure.subplots(1, 3), panels, strict=True):
        axis.plot([row["draw"] for row in rows], [row[key] for row in rows], color="#1f5f8b")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("draws", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)


def _reconstructions(figure: SubFigure, run: Path, index: ShardIndex) -> None:
    """Draw random crops, the patches that the encoder sees, and the decoder's reconstructions."""
    saved = checkpoint.load(resolve(run))
    config = saved.meta["config"]
    ids = np.linspace(0, index.samples - 1, _IMAGES).astype(np.int64)
    crops = images_of(index, ids, config["data"]["image_size"], random_crops(config["seed"]))
    found = reconstruct(saved, crops, config["seed"])
    figure.suptitle(
        "Crops, what the encoder sees, and what the decoder predicts (the pattern of each patch; brightness and "
        "contrast are the patch's own)",
        fontsize=10,
    )
    rows = (crops, found.seen, found.filled)
    for axes, row in zip(figure.subplots(3, _IMAGES, squeeze=False), rows, strict=True):
        for axis, image in zip(axes, row, strict=True):
            _show(axis, image)


def _show(axis: Axes, image: Tensor) -> None:
    axis.imshow(image.permute(1, 2, 0).numpy())
    axis.set_axis_off()
