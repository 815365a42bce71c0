"""Finish a packing: write the indices and dataset.json, then move everything into place."""

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


def write_description(
    staging: Path, shards: dict[str, list[PackedShard]], classes: list[str], plan: dict[str, Any], extra: dict[str, Any]
) -> dict[str, Any]:
    """Write indices, rejected.jsonl and, last, dataset.json to `staging`; return the content of dataset.json.

    `extra` is added to its entry "packed". Raises DataError if a split has no usable image.
    """
    rejected: list[dict[str, Any]] = []
    splits = {}
    for split, found in shards.items():
        lost = [{"split": split, "path": path, "reason": why} for shard in found for path, why in shard.rejected]
        rejected += lost
        if not any(shard.samples for shard in found):
            shutil.rmtree(staging)  # only another source helps, and none of this can be used with that
            example = f", for example {lost[0]['path']}: {lost[0]['reason']}" if lost else ""
            advice = "add images" if split == "train" else f"add images, or remove {split}/ from the source"
            raise DataError(f"none of the {len(lost):,} files of {split} is a usable image{example}; {advice}")
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
        **extra,
    }
    description = {"format": DATASET_FORMAT, "splits": splits, "packed": packed}
    write_json(staging / "dataset.json", description)
    return description


def move_into_place(out: Path, staging: Path, shards: dict[str, list[PackedShard]], dedup: bool, modified: int) -> None:
    """Replace an earlier packing in `out` by the files in `staging`; dataset.json is moved last.

    It is not older than the source, which was modified at `modified` (ns since 1970), even if a clock was wrong. If
    this is killed, calling it again does the rest. Prototype sets stay: they record the index they were made for.
    """
    places = {
        tar.with_suffix(end).name: name.removesuffix(".tar") + end
        for split, found in shards.items()
        for name, tar in ((name, shard.tar) for name, shard in named_shards(split, found))
        for end in (".tar", ".idx")
    }
    others = [*(f"{split}.arrow" for split in shards), "rejected.jsonl", *(["duplicates.jsonl"] if dedup else [])]
    places |= {name: name for name in others}
    wanted = {*places.values()}
    (out / "dataset.json").unlink(missing_ok=True)
    for path in out.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in wanted:
            path.unlink()
    for name, place in places.items():
        if (staging / name).exists():
            os.replace(staging / name, out / place)
    description = staging / "dataset.json"
    if modified > description.stat().st_mtime_ns:
        os.utime(description, ns=(modified, modified))
    os.replace(description, out / "dataset.json")
    shutil.rmtree(staging)


def named_shards(split: str, shards: Sequence[PackedShard]) -> list[tuple[str, PackedShard]]:
    """Return the shards that are not empty with their final names, numbered without gaps."""
    non_empty = [shard for shard in shards if shard.samples]
    return [(f"{split}-{number:06d}.tar", shard) for number, shard in enumerate(non_empty)]


def _split(staging: Path, split: str, shards: Sequence[PackedShard], classes: list[str]) -> dict[str, Any]:
    entries, tables = [], []
    for number, (name, shard) in enumerate(named_shards(split, shards)):
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
