"""Make a val split of a share of the train split, with the classes in proportion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import Item, Source

_MOST = 2  # times the share asked for that a class may give, to make up for classes of one image
_NOTICEABLE = 0.05  # relative difference of the share from the one asked for


def hold_out(source: Source, share: float, where: object) -> Source:
    """Move a share of a source without val into a val split: of each class the items with the lowest hashes.

    Each class keeps at least one item in train, so a class of one item stays there whole; others give more instead, up
    to twice the share. A note says so. The choice depends on names and classes only, and a larger share contains a
    smaller one. Raises DataError.
    """
    if not 0.0 <= share < 1.0:
        raise DataError(f"--holdout {share} must be at least 0 and less than 1")
    if not share:
        return source
    if "val" in source.splits:
        raise DataError(f"{where} already has val/; leave out --holdout, or rename val/")
    items = source.splits["train"]
    wanted = round(share * len(items))
    if not 0 < wanted < len(items):
        raise DataError(f"--holdout {share} of {len(items)} files leaves a split empty; choose another share")
    labels = np.fromiter((item.label for item in items), np.int64, len(items))
    order, keys = _order(items, labels)
    if not len(order):
        raise DataError(
            f"each class of {where} has a single image, which --holdout leaves in train; leave out --holdout, or give "
            "images of the same classes as --val"
        )
    held = order[: min(wanted, max(1, int(np.searchsorted(keys, _MOST * share))))]
    is_held = np.zeros(len(items), np.bool_)
    is_held[held] = True
    source.splits = {
        "train": [item for item, out in zip(items, is_held, strict=True) if not out],
        "val": [item for item, out in zip(items, is_held, strict=True) if out],
    }
    source.notes += _notes(labels, share, wanted, len(held))
    return source


def _order(items: Sequence[Item], labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the items that may be held out, in the order in which they are, and their keys, ascending.

    Item r of the n items of a class, in order of their hashes, has the key (r + u) / n, with a random u of the class.
    So the keys of each class are evenly spaced, and the items with keys below t are a share t of every class, one item
    more or less.
    """
    names = [item.name.encode() for item in items]
    hashes = np.fromiter(map(xxhash.xxh64_intdigest, names), np.uint64, len(names))
    by_class = np.lexsort((hashes, labels))
    first = np.flatnonzero(np.diff(labels[by_class], prepend=-2))  # of each class; there is no label -2
    sizes = np.diff(first, append=len(items))
    # Hashed again: the lowest of the hashes of a class is not evenly distributed.
    offsets = np.array([xxhash.xxh64_intdigest(names[n], 1) / 2**64 for n in by_class[first]])
    size = np.repeat(sizes, sizes)
    rank = np.arange(len(items)) - np.repeat(first, sizes)
    keys = (rank + np.repeat(offsets, sizes)) / size
    may_be_held = (rank < size - 1) | (labels[by_class] < 0)  # images without a label belong to no class
    found, keys = by_class[may_be_held], keys[may_be_held]
    order = np.lexsort((hashes[found], keys))
    return found[order], keys[order]


def _notes(labels: NDArray[np.int64], share: float, wanted: int, held: int) -> list[str]:
    sizes = np.unique(labels[labels >= 0], return_counts=True)[1]
    notes = []
    if single := np.count_nonzero(sizes == 1):
        notes.append(f"classes of one image, which stays in train: {single:,} of {len(sizes):,}")
    if wanted - held > _NOTICEABLE * wanted:
        notes.append(
            f"--holdout {share:g} reduced to {held / len(labels):.2g}: {held:,} of {len(labels):,} images, so that "
            "every class keeps images in train"
        )
    return notes
