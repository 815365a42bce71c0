"""A packed data set of any number of rows, made up: the index is real, its shards are links to one small tar."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

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

IMAGES, SIDE = 64, 32  # that there really are, in the tar, and their size in pixels
PER_SHARD = 10_000  # rows; of ImageNet that is 1 GB
CLASSES = 1000
CENTROIDS, WIDTH = 4096, 384
_CHUNK = 1 << 18  # rows
_UNKNOWN = "0" * 32  # in the place of a fingerprint
_FINGERPRINTED = np.dtype([("key", "S9"), ("nbytes", "<i8"), ("xxh64", "<u8"), ("label", "<i4")])


def make(folder: Path, rows: int) -> None:
    """Makes `folder`/shards with an index of so many rows and the prototypes `default`; a chunk in memory at a time."""
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
    """Keys, nine digits, and paths such as n00000007/000012345.jpg, as the bytes (n, length) of ASCII."""

    def digits(numbers: NDArray, count: int) -> NDArray[np.uint8]:
        return (numbers[:, None] // 10 ** np.arange(count - 1, -1, -1) % 10 + ord("0")).astype(np.uint8)

    def same(text: str) -> NDArray[np.uint8]:
        return np.broadcast_to(np.frombuffer(text.encode(), np.uint8), (len(rows), len(text)))

    keys = digits(rows, 9)
    return {"key": keys, "path": np.hstack([same("n"), digits(labels, 8), same("/"), keys, same(".jpg")])}


def _columns(rows: NDArray[np.int64], shards: int, images: ShardIndex) -> dict[str, NDArray]:
    """All columns but the texts. In a shard each image stands for a stretch of rows: places never descend."""
    shard = rows // PER_SHARD
    image = rows % PER_SHARD * IMAGES // PER_SHARD
    found = {"shard": shard.astype(np.int32), "label": (shard * CLASSES // shards).astype(np.int32)}
    return found | {name: getattr(images, name)[image] for name in ("offset", "nbytes", "xxh64", "width", "height")}


def _write_zeros(path: Path, rows: int) -> None:
    """The file in its final size, all columns zero: pages of zeros that nobody writes to need no memory."""
    arrays = []
    for name, kind in COLUMNS.items():
        if pa.types.is_large_string(kind):
            width = {"key": 9, "path": 23}[name]
            places = np.zeros(rows + 1, np.int64)
            places[-1] = rows * width
            buffers = [None, pa.py_buffer(places), pa.py_buffer(np.zeros(rows * width, np.uint8))]
            arrays.append(pa.Array.from_buffers(kind, rows, buffers))
        else:
            arrays.append(pa.array(np.zeros(rows, kind.to_pandas_dtype())))
    schema = pa.schema(list(COLUMNS.items()), metadata={"format": DATASET_FORMAT, "fingerprint": _UNKNOWN})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))


def _fill(path: Path, rows: int, shards: int, images: ShardIndex) -> str:
    """Writes the rows into the file; returns the fingerprint, which stands there as well."""
    targets = _places(path)
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
            targets[f"{name} places"][start : stop + 1] = np.arange(start, stop + 1) * width
            targets[name][start * width : stop * width] = text.ravel()
        hashed = np.empty(stop - start, _FINGERPRINTED)
        hashed["key"] = texts["key"].view("S9")[:, 0]
        for name in ("nbytes", "xxh64", "label"):
            hashed[name] = columns[name]
        digest.update(hashed)
    fingerprint = digest.hexdigest()
    content = np.memmap(path, np.uint8, "r+")
    for part in (content[: 1 << 16], content[-(1 << 16) :]):
        place = part.tobytes().find(_UNKNOWN.encode())
        while place >= 0:
            part[place : place + len(fingerprint)] = np.frombuffer(fingerprint.encode(), np.uint8)
            place = part.tobytes().find(_UNKNOWN.encode())
    content.flush()
    return fingerprint


def _places(path: Path) -> dict[str, NDArray]:
    """The columns, and the places of the texts, as arrays that write into the file."""
    content = np.memmap(path, np.uint8, "r+")
    with pa.memory_map(str(path)) as file:
        whole = file.read_buffer()
        batch, found = pa.ipc.open_file(whole).get_batch(0), {}
        for name, kind in COLUMNS.items():
            *places, values = (buffer for buffer in batch[name].buffers() if buffer is not None)
            for key, buffer in [(name, values), *((f"{name} places", buffer) for buffer in places)]:
                part = content[buffer.address - whole.address :][: buffer.size]
                text = pa.types.is_large_string(kind)
                item = np.int64 if key != name else np.uint8 if text else kind.to_pandas_dtype()
                found[key] = part[: part.size // np.dtype(item).itemsize * np.dtype(item).itemsize].view(item)
    return found


def _prototypes(folder: Path, rows: int, fingerprint: str) -> None:
    """Distances as prototypes give them: bell-shaped in [0, 1], sqrt(n) exact zeros and ones."""
    distance = np.empty(rows, np.float32)
    for number, part in enumerate(_parts(distance)):
        part[:] = np.random.default_rng(number).beta(2, 2, len(part))
        ends = int(len(part) ** 0.5)
        part[:ends], part[-ends:] = 0, 1
    cluster = (np.arange(rows, dtype=np.int32) * np.int32(7919)) % np.int32(CENTROIDS)
    np.abs(cluster, out=cluster)
    info = {"format": "mimcl-prototypes/1", "features": "made up", "k": CENTROIDS, "seed": 0, "samples": rows}
    info |= {"index_fingerprint": fingerprint, "davies_bouldin": None, "singletons": "far"}
    PrototypeSet(cluster, distance, distance, np.zeros((CENTROIDS, WIDTH), np.float32), info).save(folder)


def _parts(array: NDArray) -> Iterator[NDArray]:
    return (array[start : start + _CHUNK] for start in range(0, len(array), _CHUNK))
