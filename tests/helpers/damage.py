"""Changes to a packed data set, as accidents make them or, sealed with new checksums, as one who means harm would."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path

import pyarrow as pa
import xxhash

from mimcl.pipeline.examine import extension_of
from mimcl.pipeline.index import ShardIndex, file_digest
from mimcl.pipeline.writer import tar_header


def flip(path: Path, place: int) -> None:
    """Changes one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edit_dataset(root: Path, split: str = "train", **changes: object) -> None:
    """Changes what dataset.json says of a split."""
    description = json.loads((root / "dataset.json").read_text())
    description["splits"][split] |= changes
    (root / "dataset.json").write_text(json.dumps(description))


def seal_index(root: Path, split: str = "train", **columns: list) -> None:
    """Puts other columns into an index, with the checksum of the file that comes of it; the fingerprint stays."""
    path = root / f"{split}.arrow"
    with pa.ipc.open_file(str(path)) as file:
        batch = file.get_batch(0)
    for name, column in columns.items():
        place, field = batch.schema.get_field_index(name), batch.schema.field(name)
        batch = batch.set_column(place, field, pa.array(column, field.type))
    with pa.ipc.new_file(str(path), batch.schema) as writer:
        writer.write_batch(batch)
    edit_dataset(root, split, index_xxh128=file_digest(path))


def seal_rows(root: Path, row: int, split: str = "train", **values: object) -> None:
    """Changes one row of an index as `seal_index` does."""
    index = ShardIndex.load(root, split)
    columns = {name: index.keys() if name == "key" else getattr(index, name).tolist() for name in values}
    for name, value in values.items():
        columns[name][row] = value
    seal_index(root, split, **columns)


def seal_shard(root: Path, content: bytes, number: int = 0, split: str = "train") -> None:
    """Replaces a shard, with the size and checksum that belong to it."""
    shards = json.loads((root / "dataset.json").read_text())["splits"][split]["shards"]
    (root / shards[number]["name"]).write_bytes(content)
    shards[number] |= {"bytes": len(content), "xxh128": xxhash.xxh128_hexdigest(content)}
    edit_dataset(root, split, shards=shards)


def seal_image(root: Path, row: int, data: bytes, width: int, height: int) -> None:
    """Puts other bytes in the place of an image that is no smaller, with an index and a name that fit them."""
    index = ShardIndex.load(root)
    offset, nbytes = int(index.offset[row]), int(index.nbytes[row])
    assert len(data) <= nbytes
    data += bytes(nbytes - len(data))
    content = bytearray((root / index.shards[0]["name"]).read_bytes())
    content[offset : offset + nbytes] = data
    content[offset - 512 : offset] = tar_header(f"{row:09d}.{extension_of(data) or 'jpg'}", nbytes)
    seal_shard(root, bytes(content))
    seal_rows(root, row, xxh64=xxhash.xxh64_intdigest(data), width=width, height=height)


def seal_checkpoint(path: Path, name: str, content: bytes) -> None:
    """Replaces a file of a checkpoint, with checksums that fit."""
    (path / name).write_bytes(content)
    meta = json.loads((path / "meta.json").read_text())
    meta["sha256"][name] = hashlib.sha256(content).hexdigest()
    del meta["sha256"]["meta.json"]
    meta["sha256"]["meta.json"] = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    (path / "meta.json").write_text(json.dumps(meta))


def hollow_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that promises any size and has no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
