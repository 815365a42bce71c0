"""Packs a source into webdataset shards with DALI's and our own index: same input, same bytes."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash
from PIL import Image

from mimcl.pipeline.decode import to_rgb
from mimcl.pipeline.examine import EXTENSIONS, Header, NotUsable, examine
from mimcl.pipeline.files import DataError, write_json, write_json_lines
from mimcl.pipeline.index import DATASET_FORMAT
from mimcl.pipeline.sources.item import Item, Source
from mimcl.pipeline.writer import SplitWriter

_OURS = re.compile(r"rejected\.jsonl|(train|val)(\.arrow|-\d{6}\.(tar|idx))")
_CHUNK = 32  # files a worker takes at once
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class PackConfig:
    """How to pack. `shard_mb` in 10^6 bytes; `short_side` in pixels, 0 keeps the bytes; `decode` checks every pixel."""

    shard_mb: int = 256
    short_side: int = 0
    workers: int = os.cpu_count() or 1
    decode: bool = False

    def __post_init__(self) -> None:
        for name, least in (("shard_mb", 1), ("short_side", 0), ("workers", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")


@dataclass(frozen=True)
class _Sample:
    data: bytes
    header: Header
    xxh64: int
    changed: bool


def pack(
    source: Source, out: Path, config: PackConfig, *, overwrite: bool = False, on_progress: Callable[[int], None]
) -> dict[str, Any]:
    """Writes shards, indices, dataset.json (last) and rejected.jsonl to `out`; returns what dataset.json holds.

    `on_progress(n)` is called whenever n more files have been dealt with. Raises DataError when `out` is in use or no
    image is usable. After any failure `out` holds what it held before.
    """
    staging = _claim(out, overwrite)
    rejected: list[dict[str, str]] = []
    splits: dict[str, Any] = {}
    changed = 0
    try:
        with _cancelled_on_failure(ThreadPoolExecutor(config.workers)) as pool:
            for split, items in source.splits.items():
                with closing(SplitWriter(staging, split, config.shard_mb * 1_000_000)) as writer:
                    for item, outcome in _examined(pool, items, config, on_progress):
                        if isinstance(outcome, str):
                            rejected.append({"split": split, "path": item.name, "reason": outcome})
                        else:
                            writer.add(item.name, item.label, outcome.header, outcome.data, outcome.xxh64)
                            changed += outcome.changed
                    splits[split] = writer.finish(source.classes)
        for split, part in splits.items():
            if not part["samples"]:
                lost = [f", for example {r['path']}: {r['reason']}" for r in rejected if r["split"] == split]
                raise DataError(f"none of the {len(lost)} files of {split} is a usable image" + "".join(lost[:1]))
        write_json_lines(staging / "rejected.jsonl", rejected)
        description = {
            "format": DATASET_FORMAT,
            "splits": splits,
            "packed": {
                "shard_mb": config.shard_mb,
                "short_side": config.short_side,
                "bytes_changed": changed,
                "jpeg_quality": _JPEG_QUALITY if changed else None,
                "every_image_decoded": config.decode,
                "rejected": len(rejected),
            },
        }
        write_json(staging / "dataset.json", description)
        _replace(out, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not any(out.iterdir()):
            out.rmdir()
    return description


@contextmanager
def _cancelled_on_failure(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    try:
        yield pool
    finally:  # nothing is left to do then, unless something failed
        pool.shutdown(cancel_futures=True)


def _claim(out: Path, overwrite: bool) -> Path:
    """Makes `out`, or checks that it may be written to; returns an empty folder in it to pack into."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; give a folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    staging = out / ".packing"
    if any(path != staging for path in out.iterdir()) and not overwrite:
        raise DataError(f"{out} is not empty; give another --out, or --overwrite to replace what was packed there")
    shutil.rmtree(staging, ignore_errors=True)  # of a packing that was killed
    staging.mkdir()
    return staging


def _replace(out: Path, staging: Path) -> None:
    """Moves what was packed in place of an earlier packing; dataset.json, which makes it a data set, comes last.

    Prototype sets stay: they know the index that they were made for.
    """
    (out / "dataset.json").unlink(missing_ok=True)
    for path in out.iterdir():
        if _OURS.fullmatch(path.name):
            path.unlink()
    for path in sorted(staging.iterdir(), key=lambda path: path.name == "dataset.json"):
        os.replace(path, out / path.name)


def _examined(
    pool: ThreadPoolExecutor, items: list[Item], config: PackConfig, on_progress: Callable[[int], None]
) -> Iterator[tuple[Item, _Sample | str]]:
    """Every item in order with its sample, or the reason why it has none; workers run a bounded stretch ahead."""

    def work(chunk: list[Item]) -> list[_Sample | str]:
        return [_prepare(item, config) for item in chunk]

    chunks = (items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK))
    ahead = deque((chunk, pool.submit(work, chunk)) for chunk in islice(chunks, 2 * config.workers))
    while ahead:
        chunk, future = ahead.popleft()
        yield from zip(chunk, future.result(), strict=True)
        on_progress(len(chunk))
        ahead.extend((chunk, pool.submit(work, chunk)) for chunk in islice(chunks, 1))


def _prepare(item: Item, config: PackConfig) -> _Sample | str:
    try:
        data = item.read()
        header = examine(data, config.decode)
        short_side = min(header.width, header.height)
        changed = bool(config.short_side) and short_side > config.short_side
        if changed:
            data, header = _shrink(data, header, config.short_side)
    except NotUsable as reason:
        return str(reason)
    except OSError as error:
        return f"unreadable: {error.strerror or error}"
    return _Sample(data, header, xxhash.xxh64_intdigest(data), changed)


def _shrink(data: bytes, header: Header, short_side: int) -> tuple[bytes, Header]:
    """The image with `short_side` pixels on its short side, as RGB in its own format, without metadata."""
    scale = short_side / min(header.width, header.height)
    size = (max(1, round(header.width * scale)), max(1, round(header.height * scale)))
    try:
        image = to_rgb(Image.open(io.BytesIO(data))).resize(size, Image.Resampling.LANCZOS)
    except Exception as error:
        raise NotUsable(f"does not decode: {error}") from None
    image.info = {}  # of which Pillow would write comments, colour profiles and transparency
    encoded = io.BytesIO()
    image.save(encoded, EXTENSIONS[header.extension], quality=_JPEG_QUALITY)
    return encoded.getvalue(), Header(header.extension, *size)
