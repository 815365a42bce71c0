"""Rows of pictures of a run: reconstructions, features of patches, and the ends of its clusters."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mimcl.cli.evenly_spaced import evenly_spaced
from mimcl.cli.report.pictures import Row, pictures, tooltip
from mimcl.cli.report.run_prototypes import RunPrototypes
from mimcl.cli.report.run_record import RunRecord
from mimcl.cli.suggest import command
from mimcl.model import checkpoint
from mimcl.model.checkpoint import CheckpointError
from mimcl.pipeline.index import ShardIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_CHECKPOINTS, _IMAGES = 4, 6
_LARGE, _OF_LARGE = 600e6, 2  # of models with more bytes of weights (ViT-L) only so many checkpoints are shown
_GALLERY_SIDE = 96  # pixels


@dataclass
class ModelRows:
    """What a run's checkpoints make of the same crops; `missing` says why some rows are missing."""

    reconstructions: list[Row] = field(default_factory=list)
    features: list[Row] = field(default_factory=list)
    features_of: str = ""  # which checkpoint
    missing: list[str] = field(default_factory=list)


def model_rows(run: RunRecord, index: ShardIndex, prototypes: RunPrototypes | None) -> ModelRows:
    """Draw reconstructions by some checkpoints, the first and the last included, and features of the last one.

    Images are spaced evenly over the train split. The run must have checkpoints, of which only the weights are read.
    Raises DataError for an image that cannot be read, and OSError.
    """
    from mimcl.cli.encoders.patch_features import patch_features
    from mimcl.cli.encoders.reconstruction import reconstruct
    from mimcl.cli.encoders.restore import restore_model
    from mimcl.cli.encoders.saved import config_of
    from mimcl.cli.heat_maps import heat_maps
    from mimcl.cli.prototypes.gallery import images_of

    side, seed = int(run.config["data.image_size"]), int(run.config["seed"])
    rows = ModelRows()
    wanted = _CHECKPOINTS
    if max(_file_size(path / "weights.safetensors") for path in run.checkpoints) > _LARGE:
        wanted = _OF_LARGE
        rows.missing.append(
            f"at most {wanted} checkpoints for a large model; `{command('masks', run.folder)}` draws more"
        )
    sample_ids = evenly_spaced(index.samples, _IMAGES)
    tips = [tooltip(index, sample_id, prototypes) for sample_id in sample_ids]
    crops: Tensor | None = None
    for place in evenly_spaced(len(run.checkpoints), wanted)[::-1]:
        try:
            saved = checkpoint.load(run.checkpoints[place], with_state=False)
        except CheckpointError as error:  # a run that is training may have deleted it meanwhile
            rows.missing.append(str(error))
            continue
        step, epoch = saved.meta["step"], saved.meta["position"] / index.samples
        if crops is None:
            crops = images_of(index, sample_ids, side)
            shown = Row("images", f"{side} px crops", pictures(_pixels(crops), "Crop of", tips))
            found = patch_features(restore_model(config_of(saved), saved.tensors), crops)
            colours = _enlarged((255 * found.colours).round().byte().numpy(), side)
            attention = heat_maps(crops, found.attention.numpy())
            rows.features_of = f"step {step:,}"
            rows.features = [
                shown,
                Row("patch features", "three components as RGB", pictures(colours, "Features of", tips)),
                Row("CLS attention", "last block, all heads", pictures(attention, "Attention in", tips)),
            ]
            rows.reconstructions = [shown]
        made = reconstruct(saved, crops, seed, index.samples)
        detail = f"epoch {epoch:.3g}" + (f", {made.stage.replace('_', ' ')}" if made.stage else "")
        rows.reconstructions[1:1] = [
            Row(f"step {step:,}", f"masked; {detail}", pictures(_pixels(made.seen), f"Step {step:,}, masked:", tips)),
            Row("", "reconstructed", pictures(_pixels(made.filled), f"Step {step:,}, reconstructed:", tips)),
        ]
    return rows


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    return images.permute(0, 2, 3, 1).numpy()


def _enlarged(colours: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Repeat the colours of patches (n, h, h, 3) for all pixels of a patch: (n, side, side, 3)."""
    patch = side // colours.shape[1]
    return colours.repeat(patch, axis=1).repeat(patch, axis=2)


def _file_size(path: Path) -> int:
    """Return a file's size; 0 if a run that is training has deleted it meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def cluster_rows(index: ShardIndex, prototypes: RunPrototypes) -> list[Row]:
    """Draw the nearest and the farthest images of some clusters, as gallery.png has them, with their distances.

    Raises DataError for an image that cannot be read.
    """
    from mimcl.cli.prototypes.gallery import gallery_rows, images_of

    selected = gallery_rows(prototypes.found)
    ids = np.concatenate([part for row in selected for part in (row.near, row.far)])
    tips = [tooltip(index, sample_id, prototypes) for sample_id in ids]
    shown = pictures(_pixels(images_of(index, ids, _GALLERY_SIDE)), "Image", tips)
    captioned = iter(
        replace(picture, caption=f"{prototypes.found.distance[sample_id]:.2f}")
        for picture, sample_id in zip(shown, ids, strict=True)
    )
    return [
        Row(f"{row.size:,} images" if row.size else "", "", *(list(islice(captioned, len(part))) for part in row[1:]))
        for row in selected
    ]
