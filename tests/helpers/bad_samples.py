"""Bad samples in packed data sets, all of them in real files."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

from helpers.images import encoded
from mimcl.pipeline.index import ShardIndex

_FAILS = Path("/sys/class/net/lo/speed")  # a regular file of 4,096 bytes; reading it is an error


def broken_png(seed: int) -> bytes:
    """Return a PNG with valid header and end but undecodable pixels, so that it can be packed."""
    png = encoded("png", seed)
    start = png.index(b"IDAT") + 200
    return png[:start] + bytes(100) + png[start + 100 :]


def flip_byte(index: ShardIndex, sample_id: int, place: int = 100) -> None:
    """Change a byte of the sample on disk."""
    with open(index.root / index.shards[index.shard[sample_id]]["name"], "r+b") as file:
        file.seek(int(index.offset[sample_id]) + place)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def reading_can_fail() -> bool:
    """Return whether this system has the file that `unreadable` needs."""
    try:
        _FAILS.read_bytes()
    except OSError as error:
        return error.errno == errno.EINVAL
    return False


def unreadable(index: ShardIndex, sample_id: int) -> ShardIndex:
    """Return `index` with the sample in a file that can be opened but not read."""
    columns = {name: getattr(index, name).copy() for name in ("shard", "offset", "nbytes")}
    columns["shard"][sample_id], columns["offset"][sample_id] = len(index.shards), 512
    columns["nbytes"][sample_id] = 1000
    return replace(index, shards=[*index.shards, {"name": str(_FAILS), "bytes": _FAILS.stat().st_size}], **columns)
