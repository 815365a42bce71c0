"""gallery.png: what a prototype set takes for typical and for untypical."""

from __future__ import annotations

import io
import os

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.pipeline.augment import central_crops
from mimcl.pipeline.decode import Encoded, ReferenceDecoder
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.store import ShardStore

_CLUSTERS, _IMAGES, _PIXELS = 8, 5, 96


def draw_gallery(index: ShardIndex, found: PrototypeSet) -> bytes:
    """Draws up to 8 clusters, the largest first, a row each: nearest images left, farthest right; as PNG."""
    clusters = _spread(np.bincount(found.cluster, minlength=found.info["k"]))
    rows = [_ends(found, cluster) for cluster in clusters]
    figure = Figure(figsize=(2 * _IMAGES + 1.6, 1.12 * len(rows) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(rows), 2 * _IMAGES + 1, squeeze=False, width_ratios=[1] * _IMAGES + [0.25] + [1] * _IMAGES
    )
    for axes, cluster, (near, far) in zip(grid, clusters, rows, strict=True):
        for axis in axes:
            axis.set_axis_off()
        shown = [*zip(axes[:_IMAGES], near, strict=False), *zip(axes[_IMAGES + 1 :], far, strict=False)]
        images = _decode(index, np.array([sample_id for _, sample_id in shown]))
        for (axis, sample_id), image in zip(shown, images, strict=True):
            axis.imshow(image)
            axis.set_title(f"{found.distance[sample_id]:.2f}", fontsize=7, pad=1)
        size = np.count_nonzero(found.cluster == cluster)
        axes[0].text(-0.08, 0.5, f"{size:,}\nimages", transform=axes[0].transAxes, ha="right", va="center", fontsize=7)
    figure.suptitle(
        f"{found.info['k']} prototypes in {found.info['features']} features: nearest to the prototype (left), "
        "farthest (right), with distance",
        fontsize=9,
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def _spread(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Up to 8 clusters, evenly spaced in order of size among those with something to compare."""
    by_size = np.argsort(-sizes, kind="stable")
    by_size = by_size[sizes[by_size] >= min(3, sizes.max())]
    return by_size[np.linspace(0, len(by_size) - 1, min(_CLUSTERS, len(by_size))).astype(int)]


def _ends(found: PrototypeSet, cluster: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The nearest and the farthest members, none of them twice; the farthest last."""
    members = np.flatnonzero(found.cluster == cluster)
    members = members[np.argsort(found.raw_distance[members], kind="stable")]
    count = min(_IMAGES, (len(members) + 1) // 2)
    return members[:count], members[count:][-_IMAGES:]


def _decode(index: ShardIndex, sample_ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    boxes, flips = central_crops(sample_ids, index.width[sample_ids], index.height[sample_ids])
    encoded = Encoded(ShardStore(index).read(sample_ids), boxes, flips)
    return ReferenceDecoder(_PIXELS, os.cpu_count() or 1).decode(encoded).permute(0, 2, 3, 1).numpy()
