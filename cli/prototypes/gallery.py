"""gallery.png: the nearest and farthest images of a prototype set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimcl.cli.console import warn
from mimcl.cli.picture_sheet import PictureSheet
from mimcl.curriculum.prototypes import PrototypeSet, cluster_sizes
from mimcl.pipeline.augment import Transform, central_crops
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.cores import decode_threads
from mimcl.pipeline.decode import ReferenceDecoder
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.plan import InOrderPlan
from mimcl.pipeline.stream import ReadOptions, Stream

_CLUSTERS, _IMAGES, _PIXELS = 8, 5, 96
_ROWS_OF_ONE = 4  # of the images of a single cluster
# In inches: an image, from one to the next, a line of text, from one row to the next.
_SIDE, _PITCH, _LINE, _ROW = 0.9, 0.96, 0.15, 1.12
_LEFT, _GAP, _TOP = 0.75, 0.25, 0.32  # the sizes of clusters, between nearest and farthest, the title
_GREY = "#7a7a7a"  # of texts: the contrast is 4 to 1 on white and on the dark page of a report


def draw_gallery(index: ShardIndex, found: PrototypeSet) -> bytes:
    """Draw up to 8 clusters, the largest first, one per row: nearest images left, farthest right; as PNG.

    A single cluster has several rows, from its ends inwards. The background is transparent, for light pages and dark
    ones.
    """
    rows = gallery_rows(found)
    shown = np.concatenate([ids for row in rows for ids in (row.near, row.far)])
    images = iter(images_of(index, shown, _PIXELS).permute(0, 2, 3, 1).numpy())
    by_scores = "scores" in found.info
    ends = ("easiest images", "hardest images") if by_scores else ("nearest images", "farthest images")
    measured = "scores" if by_scores else "distances"
    layout = "a cluster per row, " if rows[-1].size else ""

    width = _LEFT + 2 * _IMAGES * _PITCH + _GAP
    sheet = PictureSheet(width, _TOP + _ROW * len(rows))
    title = f"{found.described}: {layout}{ends[0]} left, {ends[1]} right; numbers are {measured}"
    sheet.text(width / 2, 0.08, title, 9, colour=_GREY)
    for number, (size, near, far) in enumerate(rows):
        top = _TOP + _ROW * number + _LINE
        sheet.text(_LEFT / 2, top + _SIDE / 2 - _LINE, f"{size:,}\nimages" if size else "", 8, colour=_GREY)
        for ids, left in ((near, _LEFT), (far, _LEFT + _IMAGES * _PITCH + _GAP)):
            for place, sample_id in enumerate(ids):
                x = left + place * _PITCH
                sheet.text(x + _SIDE / 2, top - _LINE, f"{found.distance[sample_id]:.2f}", 8, colour=_GREY)
                sheet.image(x, top, next(images), _SIDE, _SIDE)
    return sheet.png(110, transparent=True)


class GalleryRow(NamedTuple):
    """The images of one cluster, or some of a single cluster's; `size` 0: the same cluster as the row above."""

    size: int  # of the cluster
    near: NDArray[np.int64]  # sample ids, the nearest first
    far: NDArray[np.int64]  # the farthest last


def gallery_rows(found: PrototypeSet) -> list[GalleryRow]:
    """Select the images of a gallery: both ends of up to 8 clusters, or several rows of a single one."""
    clusters = spread_clusters(found, _CLUSTERS)
    sizes = [int(np.count_nonzero(found.cluster == cluster)) for cluster in clusters]
    rows = [cluster_ends(found, cluster) for cluster in clusters]
    if len(clusters) == 1:
        rows = _inwards(*cluster_ends(found, clusters[0], _IMAGES * _ROWS_OF_ONE))
        sizes += [0] * (len(rows) - 1)
    return [GalleryRow(size, *ends) for size, ends in zip(sizes, rows, strict=True)]


def spread_clusters(found: PrototypeSet, count: int) -> NDArray[np.int64]:
    """Return up to `count` clusters, evenly spaced in order of size, with 3 or more images if there are any."""
    sizes = cluster_sizes(found.cluster, found.info["k"])
    by_size = np.argsort(-sizes, kind="stable")
    by_size = by_size[sizes[by_size] >= min(3, sizes.max())]
    return by_size[np.linspace(0, len(by_size) - 1, min(count, len(by_size))).astype(int)]


def cluster_ends(found: PrototypeSet, cluster: int, most: int = _IMAGES) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return at most so many of the nearest and of the farthest members, without overlap; the farthest last."""
    members = np.flatnonzero(found.cluster == cluster)
    members = members[np.argsort(found.raw_distance[members], kind="stable")]
    count = min(most, (len(members) + 1) // 2)
    return members[:count], members[count:][-most:]


def _inwards(near: NDArray[np.int64], far: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Cut both ends of a cluster into rows: the first has the nearest and the farthest."""
    starts = range(0, len(near), _IMAGES)
    return [(near[s : s + _IMAGES], far[max(0, len(far) - s - _IMAGES) : max(0, len(far) - s)]) for s in starts]


def images_of(
    index: ShardIndex, sample_ids: NDArray[np.int64], side: int, transform: Transform = central_crops
) -> Tensor:
    """Return crops of these samples as draws 0, 1, ..., uint8 (n, 3, side, side); that of a bad sample is black."""
    decoder = ReferenceDecoder(side, decode_threads())
    options = ReadOptions(1, keep_bad=True)
    stream = Stream(InOrderPlan(sample_ids), index, decoder, transform, BatchShares(64, 64), options, seed=0)
    images = []
    for batch in stream:
        images.append(batch.images)
        for bad in batch.bad:
            warn(f"{index.path(bad.sample_id)} (sample {bad.key} of {bad.shard}) is bad and shown black: {bad.reason}")
    return torch.cat(images)
