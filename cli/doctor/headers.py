"""Check the headers of some images: which are damaged, and which are slow to decode."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from mimcl.cli.doctor.findings import Finding
from mimcl.cli.suggest import command
from mimcl.pipeline.image_headers import dali_can_decode
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_store import open_store
from mimcl.pipeline.store import Defect

_MAX_IMAGES, _CHUNK = 2000, 50


def headers(index: ShardIndex, seconds: float) -> Iterator[Finding]:
    """Read up to 2,000 images from all over the split, for at most `seconds`."""
    count = min(index.samples, _MAX_IMAGES)
    # Shuffled, so that they are from all over the split even if time runs out.
    ids = np.linspace(0, index.samples - 1, count).astype(np.int64)[np.random.default_rng(0).permutation(count)]
    store, slow, bad, seen = open_store(index), 0, 0, 0
    started = time.perf_counter()
    for start in range(0, count, _CHUNK):
        for data in store.read(ids[start : start + _CHUNK]):
            seen += 1
            if isinstance(data, Defect):
                bad += 1
            else:
                slow += not dali_can_decode(data)
        if time.perf_counter() - started > seconds:
            break
    text = f"{slow / seen:.1%} of {seen:,} images are decoded by Pillow, which is slower than DALI"
    yield Finding("formats", text, "ok" if slow <= 0.01 * seen else "warning", {"images": slow, "looked_at": seen})
    if bad:
        text = f"{bad:,} of {seen:,} do not match the index; list them with `{command('verify', index.shown)}`"
        yield Finding("damaged images", text, "broken", {"images": bad})
