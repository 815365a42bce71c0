"""Images in tars, zips, parquet and webdataset shards, as other programs write them."""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

from helpers.images import encoded


def tar_bytes(members: dict[str, bytes], **options) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def tar_of(folder: Path, path: Path) -> Path:
    """Write the tar that `tar -C folder -cf path .` writes."""
    with tarfile.open(path, "w") as tar:
        tar.add(folder, ".")
    return path


def zip_of(folder: Path, path: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as opened:
        for file in sorted(folder.rglob("*"), reverse=True):
            opened.write(file, file.relative_to(folder))
    return path


def list_of(folder: Path, path: Path) -> Path:
    files = sorted((file for file in folder.rglob("*") if file.is_file()), reverse=True)
    path.write_text("".join(f"{file.relative_to(folder)}\n" for file in files))
    return path


def pictures(count: int, seed: int = 0) -> list[bytes]:
    return [encoded("baseline", seed + number, 24, 16) for number in range(count)]


def write_parquet(
    path: Path,
    images: list[bytes | None],
    labels: list | None = None,
    *,
    names: list[str] | None = None,
    paths: list[str | None] | None = None,
    rows: int = 3,
    **more: list,
) -> Path:
    """Write a parquet file as on Hugging Face's hub, with `rows` per row group."""
    paths = paths or [f"picture_{number}.JPEG" for number in range(len(images))]
    columns = {
        "image": pa.array(
            [image and {"bytes": image, "path": where} for image, where in zip(images, paths, strict=True)],
            pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        )
    }
    features = {"image": {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels)
    if names is not None:
        features["label"] = {"names": names, "_type": "ClassLabel"}
    table = pa.table(columns | {name: pa.array(column) for name, column in more.items()})
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=rows)
    return path


def write_shard(path: Path, samples: list[dict]) -> Path:
    """Write a shard with webdataset's own writer."""
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
    return path


def write_shards(folder: Path, counts: dict[str, int], classes: int = 3) -> list[dict]:
    """Write shards, `counts` labelled samples in each; return all samples in order."""
    folder.mkdir(parents=True, exist_ok=True)
    every = []
    for number, (name, count) in enumerate(counts.items()):
        images = pictures(count, 100 * number)
        samples = [
            {
                "__key__": f"part/{Path(name).stem}_picture_{row:04d}",
                "jpg": image,
                "cls": (number + row) % classes,
                "txt": "words",
            }
            for row, image in enumerate(images)
        ]
        write_shard(folder / name, samples)
        every += samples
    return every


def raw_zip(
    path: Path,
    members: dict[bytes, bytes],
    *,
    system: int = 3,
    flags: int = 0,
    modes: dict[bytes, int] | None = None,
    extra: Callable[[bytes], bytes] = lambda name: b"",
) -> Path:
    """Write a zip whose names are these bytes, as a tool on `system` (3 is Unix, 0 is Windows) writes them."""
    file = io.BytesIO()
    stand_ins = {name: f"{number:0{len(name)}d}" for number, name in enumerate(members, 10)}
    with zipfile.ZipFile(file, "w") as opened:
        for name, content in members.items():
            info = zipfile.ZipInfo(stand_ins[name])
            info.create_system, info.extra, info.external_attr = system, extra(name), (modes or {}).get(name, 0) << 16
            opened.writestr(info, content)
    written = bytearray(file.getvalue())
    for name, stand_in in stand_ins.items():
        for magic, length in ((b"PK\x03\x04", 30), (b"PK\x01\x02", 46)):
            at = next(
                found.start()
                for found in re.finditer(magic, written)
                if written[found.start() + length :].startswith(stand_in.encode())
            )
            written[at + length : at + length + len(name)] = name
            at += 6 if length == 30 else 8
            written[at : at + 2] = flags.to_bytes(2, "little")
    path.write_bytes(written)
    return path
