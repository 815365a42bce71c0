"""The end of a packing: one index of all shards, dataset.json, and everything moved to its place."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from mimcl.pipeline.dataset_json import DATASET_FORMAT
from mimcl.pipeline.files import DataError, write_json, write_json_lines
from mimcl.pipeline.index import file_digest
from mimcl.pipeline.index_writer import write_index
from mimcl.pipeline.packing.jobs import PackedShard
from mimcl.pipeline.packing.sample import JPEG_QUALITY

_OURS = re.compile(r"(rejected|duplicates)\.jsonl|(train|val)(\.arrow|-\d{6}\.(tar|idx))")


def describe(
    staging: Path, shards: dict[str, list[PackedShard]], classes: list[str], plan: dict[str, Any], more: dict[str, Any]
) -> dict[str, Any]:
    """Writes indices, rejected.jsonl and, last, dataset.json to `staging`; returns what that holds.

    `more` is put to what it says about the packing. Raises DataError where a split has no usable image.
    """
    rejected, splits = [], {}
    for split, found in shards.items():
        lost = [{"split": split, "path": path, "reason": why} for shard in found for path, why in shard.rejected]
        rejected += lost
        if not any(shard.samples for shard in found):
            shutil.rmtree(staging)  # only another source mends it, and with that nothing here could be gone on with
            example = [f", for example {row['path']}: {row['reason']}" for row in lost[:1]]
            raise DataError(f"none of the {len(lost)} files of {split} is a usable image" + "".join(example))
        splits[split] = _split(staging, split, found, classes)
    write_json_lines(staging / "rejected.jsonl", rejected)
    changed = sum(shard.changed for found in shards.values() for shard in found)
    packed = {
        "source": plan["source"],
        "shard_mb": plan["shard_mb"],
        "short_side": plan["short_side"],
        "bytes_changed": changed,
        "jpeg_quality": JPEG_QUALITY if changed else None,
        "every_image_decoded": plan["decode"],
        "rejected": len(rejected),
        "dedup": plan["dedup"],
        **more,
    }
    description = {"format": DATASET_FORMAT, "splits": splits, "packed": packed}
    write_json(staging / "dataset.json", description)
    return description


def move(out: Path, staging: Path, shards: dict[str, list[PackedShard]], dedup: bool) -> None:
    """Puts what was packed in place of an earlier packing; dataset.json, which makes it a data set, comes last.

    Killed in between, it does the rest when called again. Prototype sets stay: they know the index that they were made
    for.
    """
    places = {
        tar.with_suffix(end).name: name.removesuffix(".tar") + end
        for split, found in shards.items()
        for name, tar in ((name, shard.tar) for name, shard in named(split, found))
        for end in (".tar", ".idx")
    }
    beside = [*(f"{split}.arrow" for split in shards), "rejected.jsonl", *(["duplicates.jsonl"] if dedup else [])]
    places |= {name: name for name in beside}
    wanted = {*places.values()}
    (out / "dataset.json").unlink(missing_ok=True)
    for path in out.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in wanted:
            path.unlink()
    for name, place in places.items():
        if (staging / name).exists():
            os.replace(staging / name, out / place)
    os.replace(staging / "dataset.json", out / "dataset.json")
    shutil.rmtree(staging)


def named(split: str, shards: Sequence[PackedShard]) -> list[tuple[str, PackedShard]]:
    """The shards that hold anything, numbered without a gap."""
    held = [shard for shard in shards if shard.samples]
    return [(f"{split}-{number:06d}.tar", shard) for number, shard in enumerate(held)]


def _split(staging: Path, split: str, shards: Sequence[PackedShard], classes: list[str]) -> dict[str, Any]:
    entries, tables = [], []
    for number, (name, shard) in enumerate(named(split, shards)):
        entries.append({"name": name, "bytes": shard.nbytes, "samples": shard.samples, "xxh128": shard.xxh128})
        rows = shard.rows().replace_schema_metadata()
        tables.append(rows.append_column("shard", pa.repeat(pa.scalar(number, pa.int32()), rows.num_rows)))
    path = staging / f"{split}.arrow"
    fingerprint = write_index(path, pa.concat_tables(tables))
    return {
        "samples": sum(entry["samples"] for entry in entries),
        "fingerprint": fingerprint,
        "index_xxh128": file_digest(path),
        "classes": classes,
        "shards": entries,
    }
