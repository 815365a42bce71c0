"""How many of the images neither a GPU's JPEG engine nor DALI would decode."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import numpy as np

from mimcl.cli.doctor.findings import Finding
from mimcl.pipeline.image_headers import dali_can_decode, jpeg_engine_refusal
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_store import open_store
from mimcl.pipeline.store import Defect

_LOOKED_AT, _AT_ONCE = 2000, 50  # images


def refused(index: ShardIndex, seconds: float) -> Iterator[Finding]:
    """Looks at the headers of up to 2,000 images spread over the split, for `seconds` at most."""
    count = min(index.samples, _LOOKED_AT)
    # Shuffled, so that they are spread over the split however early time is up.
    spread = np.linspace(0, index.samples - 1, count).astype(np.int64)[np.random.default_rng(0).permutation(count)]
    store, reasons, slow, bad, looked = open_store(index), Counter(), 0, 0, 0
    started = time.perf_counter()
    for start in range(0, count, _AT_ONCE):
        for data in store.read(spread[start : start + _AT_ONCE]):
            looked += 1
            if isinstance(data, Defect):
                bad += 1
                continue
            slow += not dali_can_decode(data)
            if why := jpeg_engine_refusal(data):
                reasons[why] += 1
        if time.perf_counter() - started > seconds:
            break
    total = sum(reasons.values())
    text = f"{total / looked:.1%} of {looked:,} images looked at"
    text += ": " + ", ".join(f"{why} {number / looked:.1%}" for why, number in reasons.most_common()) if reasons else ""
    numbers = {"looked_at": looked, "refused": total, "reasons": dict(reasons)}
    yield Finding("a JPEG engine refuses", text, "ok" if total <= 0.05 * looked else "warning", numbers)
    text = f"{slow / looked:.1%}, which Pillow decodes on the CPU"
    mark = "ok" if slow <= 0.01 * looked else "warning"
    yield Finding("mimcl keeps from DALI", text, mark, {"images": slow})
    if bad:
        text = f"{bad:,} of {looked:,}; mimcl verify lists them"
        yield Finding("bytes that differ from the index", text, "broken", {"images": bad})
