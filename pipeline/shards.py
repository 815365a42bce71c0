"""Packs a source into webdataset shards with DALI's and our own index: same input, same bytes."""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash
from PIL import Image

from mimcl.pipeline.decode import to_rgb
from mimcl.pipeline.examine import EXTENSIONS, Header, NotUsable, examine
from mimcl.pipeline.files import DataError, atomic_file, write_json, write_json_lines
from mimcl.pipeline.index import DATASET_FORMAT, write_index
from mimcl.pipeline.sources import Item, Source

_OURS = re.compile(r"dataset\.json|rejected\.jsonl|(train|val)(\.arrow|-\d{6}\.(tar|idx))|prototypes|.*\.tmp")
_CHUNK = 32  # files a worker takes at once
_JPEG_QUALITY = 95
_BLOCK = 512  # of a tar
IDX_VERSION = "v1.2"  # of DALI's wds2idx


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
    image is usable; what this call has written is removed then, as after any other failure.
    """
    replaced = _claim(out, overwrite)
    written: list[Path] = []
    rejected: list[dict[str, str]] = []
    splits: dict[str, Any] = {}
    changed = 0
    try:
        with ThreadPoolExecutor(config.workers) as pool:
            for split, items in source.splits.items():
                writer = _SplitWriter(out, split, config.shard_mb * 1_000_000, written)
                for item, outcome in _examined(pool, items, config, on_progress):
                    if isinstance(outcome, str):
                        rejected.append({"split": split, "path": item.name, "reason": outcome})
                    else:
                        writer.add(item, outcome)
                        changed += outcome.changed
                splits[split] = writer.finish(source.classes)
        if not any(description["samples"] for description in splits.values()):
            reason = f", for example {rejected[0]['path']}: {rejected[0]['reason']}" if rejected else ""
            raise DataError(f"none of the {len(rejected)} files is a usable image{reason}")
        for path in replaced.difference(written):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        write_json_lines(out / "rejected.jsonl", rejected)
        description = {
            "format": DATASET_FORMAT,
            "splits": splits,
            "packed": {
                "shard_mb": config.shard_mb,
                "short_side": config.short_side,
                "bytes_changed": changed,
                "jpeg_quality": _JPEG_QUALITY if changed else None,
                "every_image_decoded": config.decode or bool(config.short_side),
                "rejected": len(rejected),
            },
        }
        write_json(out / "dataset.json", description)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return description


def _claim(out: Path, overwrite: bool) -> set[Path]:
    """Makes `out`, or checks that it may be written to; returns the files of an earlier packing to be replaced."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; give a folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    present = set(out.iterdir())
    if present and not overwrite:
        raise DataError(f"{out} is not empty; give another --out, or --overwrite to replace what was packed there")
    (out / "dataset.json").unlink(missing_ok=True)  # from here on the folder is no data set until the new one is whole
    return {path for path in present if _OURS.fullmatch(path.name)}


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
    encoded = io.BytesIO()
    image.save(encoded, EXTENSIONS[header.extension], quality=_JPEG_QUALITY)
    return encoded.getvalue(), Header(header.extension, *size)


class _SplitWriter:
    """The shards of one split, their .idx files and the rows of its index."""

    def __init__(self, out: Path, split: str, shard_bytes: int, written: list[Path]) -> None:
        self._out, self._split, self._shard_bytes, self._written = out, split, shard_bytes, written
        self._shards: list[dict[str, Any]] = []
        self._rows: list[tuple] = []
        self._shard: _Shard | None = None

    def add(self, item: Item, sample: _Sample) -> None:
        number = len(self._rows)
        if number >= 10**9:
            raise DataError(f"{self._split} has more than 10^9 images; pack it as several data sets")
        key = f"{number:09d}"
        members = [(f"{key}.{sample.header.extension}", sample.data)]
        if item.label >= 0:
            members.append((f"{key}.cls", str(item.label).encode()))
        records = [_tar_record(name, data) for name, data in members]
        if self._shard and self._shard.offset + sum(map(len, records)) > self._shard_bytes:
            self._close_shard()
        if not self._shard:
            path = self._out / f"{self._split}-{len(self._shards):06d}.tar"
            self._written += [_aside(path), path, path.with_suffix(".idx")]
            self._shard = _Shard(path)
        offset = self._shard.append(members, records)
        header = sample.header
        place = (len(self._shards), offset, len(sample.data))
        self._rows.append((key, item.name, *place, sample.xxh64, header.width, header.height, item.label))

    def finish(self, classes: list[str]) -> dict[str, Any]:
        """Closes the last shard and writes the index; returns the split's part of dataset.json."""
        if self._shard:
            self._close_shard()
        path = self._out / f"{self._split}.arrow"
        self._written.append(path)
        fingerprint = write_index(path, self._rows)
        return {"samples": len(self._rows), "fingerprint": fingerprint, "classes": classes, "shards": self._shards}

    def _close_shard(self) -> None:
        self._shards.append(self._shard.close())
        self._shard = None


class _Shard:
    """One tar being written aside, with the lines of its .idx."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(_aside(path), "wb")  # noqa: SIM115 - closed with the shard
        self._hash = xxhash.xxh128()
        self._idx: list[str] = []
        self.offset = 0

    def append(self, members: list[tuple[str, bytes]], records: list[bytes]) -> int:
        """Appends one sample's members; returns the offset of the first one's data."""
        first = self.offset + _BLOCK
        places = []
        for (name, data), record in zip(members, records, strict=True):
            places.append(f"{name.split('.')[1]} {self.offset + _BLOCK} {len(data)} {name}")
            self._write(record)
        self._idx.append(" ".join(places))
        return first

    def close(self) -> dict[str, Any]:
        """Ends the tar, gives both files their names; returns the shard's entry in dataset.json."""
        self._write(bytes(-(self.offset + 2 * _BLOCK) % tarfile.RECORDSIZE + 2 * _BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(_aside(self._path), self._path)
        with atomic_file(self._path.with_suffix(".idx")) as file:
            file.write("\n".join([f"{IDX_VERSION} {len(self._idx)}", *self._idx, ""]).encode())
        digest = self._hash.hexdigest()
        return {"name": self._path.name, "bytes": self.offset, "samples": len(self._idx), "xxh128": digest}

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.offset += len(data)


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")


def _tar_record(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)  # time 0, owner 0, no names: nothing of this machine gets into the bytes
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % _BLOCK)
