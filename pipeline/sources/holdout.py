"""Make a val split of a share of the train split."""

from __future__ import annotations

import xxhash

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import Source


def hold_out(source: Source, share: float, where: object) -> Source:
    """Move a share of a source without val into a val split: the items with the lowest hashes of their names.

    So the choice depends on names only, and a larger share contains a smaller one. Raises DataError.
    """
    if not 0.0 <= share < 1.0:
        raise DataError(f"--holdout {share} must be at least 0 and less than 1")
    if not share:
        return source
    if "val" in source.splits:
        raise DataError(f"{where} already has val/; leave out --holdout, or rename val/")
    items = source.splits["train"]
    count = round(share * len(items))
    if not 0 < count < len(items):
        raise DataError(f"--holdout {share} of {len(items)} files leaves a split empty; choose another share")
    names = [item.name for item in items]
    by_hash = sorted(range(len(items)), key=lambda n: (xxhash.xxh64_intdigest(names[n].encode()), names[n]))
    held = set(by_hash[:count])
    source.splits = {
        "train": [item for n, item in enumerate(items) if n not in held],
        "val": [item for n, item in enumerate(items) if n in held],
    }
    return source
