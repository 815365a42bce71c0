"""The demonstration's picture: what is typical, how the difficulty rose, and what the model fills in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from mimcl.cli.gallery import cluster_ends, images_of, spread_clusters
from mimcl.cli.mae_features import restore
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.model import checkpoint
from mimcl.model.mae import normalise, patchify, unpatchify
from mimcl.pipeline.augment import STREAM_MASK, hash64, random_crops
from mimcl.pipeline.files import atomic_file
from mimcl.pipeline.index import ShardIndex

_SHOWN, _PIXELS = 10, 96  # images in a row, their side
_GREY = 0.5  # of removed patches


def draw_picture(path: Path, run: Path, train: ShardIndex, val: ShardIndex, found: PrototypeSet) -> None:
    """Writes a PNG about a finished run and the prototype set that it drew by; crops are of the val images."""
    figure = Figure(figsize=(11, 9.2), layout="constrained")
    FigureCanvasAgg(figure)
    images, curves, crops = figure.subfigures(3, 1, height_ratios=[2.5, 2.6, 3.9])
    _typicality(images, train, found)
    _difficulty(curves, run)
    _reconstructions(crops, run, val)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _typicality(figure: SubFigure, index: ShardIndex, found: PrototypeSet) -> None:
    """The nearest and the farthest image of some clusters, a column each."""
    ends = [cluster_ends(found, cluster) for cluster in spread_clusters(found, _SHOWN)]
    figure.suptitle(
        "Some clusters, a column each: the most typical image (top), which the curriculum draws first, and the least",
        fontsize=10,
    )
    rows = np.array([[near[0], far[-1]] for near, far in ends]).T
    for axes, ids in zip(figure.subplots(2, len(ends), squeeze=False), rows, strict=True):
        for axis, image in zip(axes, images_of(index, ids, _PIXELS), strict=True):
            _show(axis, image)


def _difficulty(figure: SubFigure, run: Path) -> None:
    """Temperature, effective fraction and loss over the draws, from the run's metrics."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    windows, steps = [line for line in lines if "window" in line], [line for line in lines if "step" in line]
    panels = (
        ("temperature", windows, "temperature"),
        ("effective fraction (0.632: all images alike)", windows, "effective_fraction"),
        ("reconstruction loss", steps, "loss"),
    )
    for axis, (title, rows, key) in zip(figure.subplots(1, 3), panels, strict=True):
        axis.plot([row["draw"] for row in rows], [row[key] for row in rows], color="#1f5f8b")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("draws", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)


@torch.no_grad()
def _reconstructions(figure: SubFigure, run: Path, index: ShardIndex) -> None:
    """Random crops, what the encoder saw of them, and what the decoder made of that."""
    saved = checkpoint.load(checkpoint.resolve(run))
    config = saved.meta["config"]
    side, patch, seed = config["data"]["image_size"], config["model"]["patch_size"], config["seed"]
    model = restore(config, saved.tensors)
    ids = np.linspace(0, index.samples - 1, _SHOWN).astype(np.int64)
    crops = images_of(index, ids, side, random_crops(seed))
    keys = torch.from_numpy(hash64(seed, np.arange(len(ids)), STREAM_MASK).view(np.int64))
    images = normalise(crops)
    mask = RandomMasker(model.num_patches, config["masking"]["mask_ratio"]).propose(images, keys, model, 1.0)
    pixels = patchify(crops.float(), patch)
    removed = mask.mask[:, :, None]
    seen = pixels * (1 - removed) + 255 * _GREY * removed
    filled = pixels * (1 - removed) + _as_pixels(model(images, mask).pred, images, crops, config) * removed

    figure.suptitle(
        "Crops, what the encoder sees, and what the decoder fills in (it predicts each patch's pattern; brightness and "
        "contrast are the patch's own)",
        fontsize=10,
    )
    rows = (crops, *(unpatchify(patches, patch).clamp(0, 255).to(torch.uint8) for patches in (seen, filled)))
    for axes, row in zip(figure.subplots(3, _SHOWN, squeeze=False), rows, strict=True):
        for axis, image in zip(axes, row, strict=True):
            _show(axis, image)


def _as_pixels(pred: Tensor, images: Tensor, crops: Tensor, config: dict) -> Tensor:
    """Predicted patches (B, L, P) in grey levels."""
    patch = config["model"]["patch_size"]
    pred = pred.float()
    if config["model"]["norm_pix_loss"]:
        variance, mean = torch.var_mean(patchify(images, patch), dim=-1, keepdim=True)
        pred = pred * (variance + 1e-6).sqrt() + mean
    # Back from the model's colours to grey levels: normalise is a straight line in each channel.
    zero, one = (normalise(torch.full_like(crops, value)) for value in (0, 1))
    return (pred - patchify(zero, patch)) / patchify(one - zero, patch)


def _show(axis: Axes, image: Tensor) -> None:
    axis.imshow(image.permute(1, 2, 0).numpy())
    axis.set_axis_off()
