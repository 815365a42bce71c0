"""Changes to a packed data set: accidental damage, or hostile edits with matching checksums (`seal_...`)."""

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
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edit_dataset(root: Path, split: str = "train", **changes: object) -> None:
    """Change the entry of a split in dataset.json."""
    description = json.loads((root / "dataset.json").read_text())
    description["splits"][split] |= changes
    (root / "dataset.json").write_text(json.dumps(description))


def seal_index(root: Path, split: str = "train", **columns: list) -> None:
    """Replace columns of an index and the checksum of its file; the fingerprint stays."""
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
    """Change one row of an index as `seal_index` does."""
    index = ShardIndex.load(root, split)
    columns = {name: index.keys() if name == "key" else getattr(index, name).tolist() for name in values}
    for name, value in values.items():
        columns[name][row] = value
    seal_index(root, split, **columns)


def seal_shard(root: Path, content: bytes, number: int = 0, split: str = "train") -> None:
    """Replace a shard, its size and its checksum."""
    shards = json.loads((root / "dataset.json").read_text())["splits"][split]["shards"]
    (root / shards[number]["name"]).write_bytes(content)
    shards[number] |= {"bytes": len(content), "xxh128": xxhash.xxh128_hexdigest(content)}
    edit_dataset(root, split, shards=shards)


def seal_image(root: Path, row: int, data: bytes, width: int, height: int) -> None:
    """Replace an image by other bytes, at most as many, and update index and member name."""
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
    """Replace a file of a checkpoint and its checksums."""
    (path / name).write_bytes(content)
    meta = json.loads((path / "meta.json").read_text())
    meta["sha256"][name] = hashlib.sha256(content).hexdigest()
    del meta["sha256"]["meta.json"]
    meta["sha256"]["meta.json"] = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    (path / "meta.json").write_text(json.dumps(meta))


def hollow_png(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that claims any size and has no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
