"""Index the webdataset shards of another program in place, reading each image once and rewriting none.

Samples keep their keys. Those without a usable image are listed in rejected.jsonl and are not in the index.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import xxhash

from mimcl.pipeline.bounded_map import bounded_map
from mimcl.pipeline.dataset_json import ADOPTED_NAME, DATASET_FORMAT, SPLITS, read_dataset
from mimcl.pipeline.examine import NotUsable, examine
from mimcl.pipeline.files import DataError, remedy, write_json, write_json_lines
from mimcl.pipeline.index import MAX_BYTES, file_digest
from mimcl.pipeline.index_writer import table_of, write_index
from mimcl.pipeline.sources.archives.tar_reader import TarReader, tar_notes
from mimcl.pipeline.sources.item import Item
from mimcl.pipeline.sources.label_files.class_list import ClassList
from mimcl.pipeline.sources.labels import apply_class_list, classes_without_train, label_items
from mimcl.pipeline.sources.names import from_fs, to_fs, to_utf8
from mimcl.pipeline.sources.shard_files import require_shards
from mimcl.pipeline.sources.splits import group_by_split
from mimcl.pipeline.sources.webdataset import LABEL_KEY, BadSample, Sample, iter_samples

_CHUNK = 1 << 20  # bytes read and hashed at once between images
_MAX_KEY_BYTES = 1000
_WRITTEN = ("rejected.jsonl", *(f"{split}.arrow" for split in SPLITS))


@dataclass(frozen=True)
class _ShardContent:
    """A shard that has been read: its entry in dataset.json, rows without labels, labels, rejected samples.

    Rows and labels are in the order of the offsets, as an index must be: where an image is a hard link, not the order
    of the members.
    """

    entry: dict[str, Any]
    rows: list[tuple]  # key, offset, nbytes, xxh64, width, height, name
    labels: list[int | str | None]
    rejected: list[dict[str, str]]
    oddities: list[tuple[str, str]]


def adopt(
    folder: Path,
    shards: Sequence[Path],
    classes: ClassList | None = None,
    *,
    label_key: str = LABEL_KEY,
    workers: int = 1,
    decode: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int], None],
) -> tuple[dict[str, Any], list[str]]:
    """Write SPLIT.arrow, rejected.jsonl and, last, dataset.json beside the webdataset shards in `folder`.

    Returns the content of dataset.json, and notes. Does nothing if these shards were adopted with the same options and
    have not changed since. `on_progress(n)` is called for each n further samples. Raises DataError if a shard is
    missing, not a tar or in another folder, if mimcl packed the folder, and, unless `overwrite` is given, if shards
    have changed or the index is damaged. After an error the folder is unchanged.
    """
    require_shards(shards)
    if any(path.parent != folder for path in shards):
        raise DataError(
            f"adopted shards must be in one folder, but some are not in {folder}; adopt each folder separately"
        )
    names = sorted(from_fs(path.name) for path in shards)
    if wrong := [name for name in names if not ADOPTED_NAME.fullmatch(name) or to_utf8(name) != name]:
        raise DataError(f"shard name {to_utf8(wrong[0])!r} is not supported; rename the shard")
    splits, notes = group_by_split(folder, ((name, folder / to_fs(name)) for name in names))
    if "train" not in splits:
        raise DataError(f"{folder} has no shards of train; rename them, or move them there")
    chosen = [path for paths in splits.values() for path in paths]
    state = _state(chosen, classes, label_key, decode)
    if (known := _existing_adoption(folder, state, overwrite)) is not None:
        return known, ["already adopted: nothing to do"]
    if not os.access(folder, os.W_OK):  # else noticed only after reading all shards
        raise DataError(f"{folder} is not writable, and the index must be beside the shards; pack them with --out")
    parts, rejected = {}, []
    for split, paths in splits.items():
        read = partial(_read, split=split, label_key=label_key, decode=decode, on_progress=on_progress)
        parts[split] = list(bounded_map(read, paths, workers))
    labels, class_names, more = _labels(parts, classes, folder)
    odd = (oddity for indexed in parts.values() for shard in indexed for oddity in shard.oddities)
    notes += tar_notes(odd) + more
    columns = {}
    for split, indexed in parts.items():
        columns[split] = _rows(indexed, labels[split])
        rejected += [row for shard in indexed for row in shard.rejected]
        if not columns[split]:
            lost = [f", for example {row['path']}: {row['reason']}" for row in rejected if row["split"] == split]
            raise DataError(f"no sample of {split} has a usable image" + "".join(lost[:1]))
    if _state(chosen, classes, label_key, decode) != state:
        raise DataError(f"shards in {folder} changed while they were read; adopt them once they are complete")
    for split, rows in columns.items():
        if repeated := len(rows) - len({row[0] for row in rows}):
            notes.append(f"{split}: {repeated:,} keys occur in several shards; samples are identified by their rows")
    how = {**state, "label_key": label_key, "every_image_decoded": decode}
    return _write(folder, columns, parts, rejected, class_names, how), notes


def _state(shards: Sequence[Path], classes: ClassList | None, label_key: str, decode: bool) -> dict[str, Any]:
    """Return what an adoption depends on: the newest shard's time of modification, and a digest of the rest."""
    digest = xxhash.xxh128(repr((classes and classes.lines, label_key, decode)).encode())
    modified = 0
    for path in shards:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"shard {path} cannot be read: {error.strerror}") from None
        modified = max(modified, status.st_mtime_ns)
        digest.update(f"\n{from_fs(path.name)!r} {status.st_size}".encode())
    return {"source": digest.hexdigest(), "modified": modified}


def _existing_adoption(folder: Path, state: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Return the existing dataset.json if it is of these shards; None if there is none or it is to be replaced."""
    try:
        description = json.loads((folder / "dataset.json").read_bytes())
        packed = description["packed"]
        ours = description["format"] == DATASET_FORMAT
    except FileNotFoundError:
        if not overwrite and (existing := [name for name in _WRITTEN if (folder / name).exists()]):
            raise DataError(
                f"{folder} has {existing[0]} but no dataset.json (interrupted?); give --overwrite to replace it"
            ) from None
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise DataError(f"{folder / 'dataset.json'} was not written by mimcl; move it, since adopting would replace it")
    if not packed.get("adopted"):
        raise DataError(f"{folder} was packed by mimcl and needs no adoption; give it with --data")
    if overwrite:
        return None
    if packed.get("source") != state["source"] or packed.get("modified", -1) < state["modified"]:
        raise DataError(
            f"the shards in {folder} or the options have changed since adoption; give --overwrite to index them again"
        )
    for split, part in read_dataset(folder)["splits"].items():
        index = folder / f"{split}.arrow"
        if not (index.exists() and file_digest(index) == part["index_xxh128"]):
            raise DataError(
                f"{folder} was adopted, but {index.name} is damaged or missing; give --overwrite to index it again"
            )
    return description


def _read(path: Path, split: str, label_key: str, decode: bool, on_progress: Callable[[int], None]) -> _ShardContent:
    """Read a shard from start to end, every byte once except headers and the images of hard links."""
    tar, shard, hashed, at = TarReader(path), from_fs(path.name), xxhash.xxh128(), 0
    found: list[tuple[tuple, int | str | None]] = []
    rejected: list[dict[str, str]] = []
    for sample in iter_samples(tar, label_key):
        if isinstance(sample, Sample) and (reason := _refusal(sample)):
            sample = BadSample(sample.name, reason)
        if isinstance(sample, Sample):
            at = _hash_until(tar, hashed, at, sample.offset)
            data = tar.read(sample.offset, sample.nbytes)
            if at == sample.offset:  # not a hard link, whose bytes have been hashed
                hashed.update(data)
                at += len(data)
            try:
                if len(data) < sample.nbytes:
                    raise NotUsable("the shard was truncated while it was read")
                header = examine(data, decode)
            except NotUsable as reason:
                sample = BadSample(sample.name, str(reason))
            else:
                digest = xxhash.xxh64_intdigest(data)
                size = header.width, header.height
                row = sample.key, sample.offset, sample.nbytes, digest, *size, f"{shard}/{sample.name}"
                found.append((row, sample.label))
        if isinstance(sample, BadSample):
            rejected.append({"split": split, "path": f"{shard}/{sample.name}", "reason": sample.reason})
        on_progress(1)
    _hash_until(tar, hashed, at, tar.size)
    found.sort(key=lambda sample: sample[0][1])
    entry = {"name": shard, "bytes": tar.size, "samples": len(found), "xxh128": hashed.hexdigest()}
    return _ShardContent(entry, [row for row, _ in found], [label for _, label in found], rejected, tar.oddities)


def _refusal(sample: Sample) -> str:
    if sample.nbytes > MAX_BYTES:
        return "larger than 2 GiB"
    if len(sample.key.encode()) > _MAX_KEY_BYTES:
        return f"its key is longer than {_MAX_KEY_BYTES:,} bytes"
    return ""


def _hash_until(tar: TarReader, hashed: xxhash.xxh128, at: int, stop: int) -> int:
    while at < stop and (data := tar.read(at, min(_CHUNK, stop - at))):
        hashed.update(data)
        at += len(data)
    return at


def _labels(
    parts: dict[str, list[_ShardContent]], classes: ClassList | None, folder: Path
) -> tuple[dict[str, list[int]], list[str], list[str]]:
    """Return the labels of each split as positions in the classes, the classes, and notes."""
    raw = {split: [label for shard in indexed for label in shard.labels] for split, indexed in parts.items()}
    blank = Item("", -1, 0)
    source = apply_class_list(
        label_items({split: [blank] * len(found) for split, found in raw.items()}, raw, folder), classes
    )
    labels = {split: [item.label for item in items] for split, items in source.splits.items()}
    return labels, source.classes, [*source.notes, *classes_without_train(source)]


def _rows(indexed: list[_ShardContent], labels: list[int]) -> list[tuple]:
    label_of = iter(labels)
    return [
        (key, name, number, offset, nbytes, xxh64, width, height, next(label_of))
        for number, shard in enumerate(indexed)
        for key, offset, nbytes, xxh64, width, height, name in shard.rows
    ]


def _write(
    folder: Path,
    columns: dict[str, list[tuple]],
    parts: dict[str, list[_ShardContent]],
    rejected: list[dict[str, str]],
    classes: list[str],
    state: dict[str, Any],
) -> dict[str, Any]:
    """Write everything to a temporary folder, remove the old dataset.json, move the new files, dataset.json last."""
    staging = folder / ".adopting"
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of a killed process
        staging.mkdir()
        splits = {}
        for split, rows in columns.items():
            path = staging / f"{split}.arrow"
            splits[split] = {
                "samples": len(rows),
                "fingerprint": write_index(path, table_of(rows)),
                "index_xxh128": file_digest(path),
                "classes": classes,
                "shards": [shard.entry for shard in parts[split]],
            }
        write_json_lines(staging / "rejected.jsonl", rejected)
        description = {
            "format": DATASET_FORMAT,
            "splits": splits,
            "packed": {"adopted": True, **state, "rejected": len(rejected)},
        }
        write_json(staging / "dataset.json", description)
        (folder / "dataset.json").unlink(missing_ok=True)
        for name in (*_WRITTEN, "dataset.json"):
            if (staging / name).exists():
                os.replace(staging / name, folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"the index cannot be written to {folder} ({error.strerror or error}); "
            f"{remedy(error, 'free some space')} and adopt again"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return description
