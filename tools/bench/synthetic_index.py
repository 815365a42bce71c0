"""Create a synthetic packed data set of any size: the index is real, its shards are links to one small tar."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray
from PIL import Image

from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.pipeline.dataset_json import DATASET_FORMAT
from mimcl.pipeline.files import write_json
from mimcl.pipeline.index import COLUMNS, ShardIndex, file_digest
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

IMAGES, SIDE = 64, 32  # in the tar, and their size in pixels
PER_SHARD = 10_000  # rows, which of ImageNet are 1 GB
CLASSES = 1000
CENTROIDS, WIDTH = 4096, 384
_CHUNK = 1 << 18  # rows
_UNKNOWN = "0" * 32  # placeholder of the fingerprint
_FINGERPRINTED = np.dtype([("key", "S9"), ("nbytes", "<i8"), ("xxh64", "<u8"), ("label", "<i4")])


def bare_index(shard: NDArray, offset: NDArray | None = None, nbytes: NDArray | None = None) -> ShardIndex:
    """Return an index in memory with these columns (N,) and zeros in the others; its shards have no files."""
    zeros = np.zeros(len(shard), np.int64)
    columns: dict[str, NDArray] = {"offset": offset if offset is not None else zeros}
    columns |= {"nbytes": nbytes if nbytes is not None else zeros}
    columns |= {name: zeros.astype(COLUMNS[name].to_pandas_dtype()) for name in ("xxh64", "width", "height", "label")}
    shards: list[dict[str, Any]] = [{} for _ in range(int(shard[-1]) + 1)]
    table = pa.record_batch(columns)
    number = shard.astype(np.int32)
    return ShardIndex(Path(), "train", "", [], shards, shard=number, **columns, _table=table, url=None)


def make(folder: Path, rows: int) -> None:
    """Create `folder`/shards with an index of `rows` rows and the prototypes `default`, a chunk in memory at a time."""
    root = folder / "shards"
    _pack_one(folder)
    images = ShardIndex.load(folder / "one")
    tar, shards = folder / "one" / images.shards[0]["name"], -(-rows // PER_SHARD)
    root.mkdir()
    for number in range(shards):
        os.link(tar, root / f"train-{number:06d}.tar")
    path = root / "train.arrow"
    _write_zeros(path, rows)
    fingerprint = _fill(path, rows, shards, images)
    sizes = [min(PER_SHARD, rows - number * PER_SHARD) for number in range(shards)]
    entries = [
        {"name": f"train-{number:06d}.tar", "bytes": images.shards[0]["bytes"], "samples": size}
        | {"xxh128": images.shards[0]["xxh128"]}
        for number, size in enumerate(sizes)
    ]
    part = {"samples": rows, "fingerprint": fingerprint, "index_xxh128": file_digest(path)}
    part |= {"classes": [f"n{label:08d}" for label in range(CLASSES)], "shards": entries}
    described = json.loads((folder / "one" / "dataset.json").read_text())
    write_json(root / "dataset.json", described | {"splits": {"train": part}})
    _prototypes(root / "prototypes" / "default", rows, fingerprint)


def _pack_one(folder: Path) -> None:
    rng, source = np.random.default_rng(0), folder / "images"
    source.mkdir()
    for number in range(IMAGES):
        pixels = rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8)
        Image.fromarray(pixels).resize((SIDE, SIDE)).save(source / f"{number:03d}.jpg")
    pack(image_folder(source), folder / "one", PackConfig(), on_progress=lambda count: None)


def _texts(rows: NDArray[np.int64], labels: NDArray[np.int32]) -> dict[str, NDArray[np.uint8]]:
    """Return keys of nine digits and paths such as n00000007/000012345.jpg, as ASCII bytes (n, length)."""

    def digits(numbers: NDArray, count: int) -> NDArray[np.uint8]:
        return (numbers[:, None] // 10 ** np.arange(count - 1, -1, -1) % 10 + ord("0")).astype(np.uint8)

    def same(text: str) -> NDArray[np.uint8]:
        return np.broadcast_to(np.frombuffer(text.encode(), np.uint8), (len(rows), len(text)))

    keys = digits(rows, 9)
    return {"key": keys, "path": np.hstack([same("n"), digits(labels, 8), same("/"), keys, same(".jpg")])}


def _columns(rows: NDArray[np.int64], shards: int, images: ShardIndex) -> dict[str, NDArray]:
    """Return all columns but the texts. Each image stands for consecutive rows of a shard, so that offsets ascend."""
    shard = rows // PER_SHARD
    image = rows % PER_SHARD * IMAGES // PER_SHARD
    found = {"shard": shard.astype(np.int32), "label": (shard * CLASSES // shards).astype(np.int32)}
    return found | {name: getattr(images, name)[image] for name in ("offset", "nbytes", "xxh64", "width", "height")}


def _write_zeros(path: Path, rows: int) -> None:
    """Write the file in its final size, all columns zero: untouched pages of zeros need no memory."""
    arrays = []
    for name, kind in COLUMNS.items():
        if pa.types.is_large_string(kind):
            width = {"key": 9, "path": 23}[name]
            offsets = np.zeros(rows + 1, np.int64)
            offsets[-1] = rows * width
            buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.zeros(rows * width, np.uint8))]
            arrays.append(pa.Array.from_buffers(kind, rows, buffers))
        else:
            arrays.append(pa.array(np.zeros(rows, kind.to_pandas_dtype())))
    schema = pa.schema(list(COLUMNS.items()), metadata={"format": DATASET_FORMAT, "fingerprint": _UNKNOWN})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))


def _fill(path: Path, rows: int, shards: int, images: ShardIndex) -> str:
    """Write the rows and their fingerprint into the file; return the fingerprint."""
    targets = _writable_columns(path)
    digest = xxhash.xxh128()
    for start in range(0, rows, _CHUNK):
        stop = min(start + _CHUNK, rows)
        numbers = np.arange(start, stop)
        columns = _columns(numbers, shards, images)
        texts = _texts(numbers, columns["label"])
        for name, column in columns.items():
            targets[name][start:stop] = column
        for name, text in texts.items():
            width = text.shape[1]
            targets[f"{name} offsets"][start : stop + 1] = np.arange(start, stop + 1) * width
            targets[name][start * width : stop * width] = text.ravel()
        hashed = np.empty(stop - start, _FINGERPRINTED)
        hashed["key"] = texts["key"].view("S9")[:, 0]
        for name in ("nbytes", "xxh64", "label"):
            hashed[name] = columns[name]
        digest.update(hashed.tobytes())
    fingerprint = digest.hexdigest()
    content = np.memmap(path, np.uint8, "r+")
    for part in (content[: 1 << 16], content[-(1 << 16) :]):
        place = part.tobytes().find(_UNKNOWN.encode())
        while place >= 0:
            part[place : place + len(fingerprint)] = np.frombuffer(fingerprint.encode(), np.uint8)
            place = part.tobytes().find(_UNKNOWN.encode())
    content.flush()
    return fingerprint


def _writable_columns(path: Path) -> dict[str, NDArray]:
    """Return the columns, and the offsets of the texts, as arrays that write into the file."""
    content = np.memmap(path, np.uint8, "r+")
    with pa.memory_map(str(path)) as file:
        whole = file.read_buffer()
        batch, found = pa.ipc.open_file(whole).get_batch(0), {}
        for name, kind in COLUMNS.items():
            *offsets, values = (buffer for buffer in batch[name].buffers() if buffer is not None)
            for key, buffer in [(name, values), *((f"{name} offsets", buffer) for buffer in offsets)]:
                part = content[buffer.address - whole.address :][: buffer.size]
                text = pa.types.is_large_string(kind)
                item = np.int64 if key != name else np.uint8 if text else kind.to_pandas_dtype()
                found[key] = part[: part.size // np.dtype(item).itemsize * np.dtype(item).itemsize].view(item)
    return found


def _prototypes(folder: Path, rows: int, fingerprint: str) -> None:
    """Save a prototype set with bell-shaped distances in [0, 1], sqrt(n) of them exact zeros and ones."""
    distance = np.empty(rows, np.float32)
    for number, part in enumerate(_parts(distance)):
        part[:] = np.random.default_rng(number).beta(2, 2, len(part))
        ends = int(len(part) ** 0.5)
        part[:ends], part[-ends:] = 0, 1
    cluster = (np.arange(rows, dtype=np.int32) * np.int32(7919)) % np.int32(CENTROIDS)
    np.abs(cluster, out=cluster)
    info = {"format": "mimcl-prototypes/1", "features": "random", "k": CENTROIDS, "seed": 0, "samples": rows}
    info |= {"index_fingerprint": fingerprint, "davies_bouldin": None, "singletons": "far"}
    PrototypeSet(cluster, distance, distance, np.zeros((CENTROIDS, WIDTH), np.float32), info).save(folder)


def _parts(array: NDArray) -> Iterator[NDArray]:
    return (array[start : start + _CHUNK] for start in range(0, len(array), _CHUNK))
