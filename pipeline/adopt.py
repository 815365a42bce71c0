"""Takes the shards of another program as they are: an index beside them, of images that are read once; none is written.

Keys stay those of the shards. What is no sample with a usable image is listed in rejected.jsonl and not in the index.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash

from mimcl.pipeline.dataset_json import ADOPTED_NAME, DATASET_FORMAT, SPLITS, read_dataset
from mimcl.pipeline.examine import NotUsable, examine
from mimcl.pipeline.files import DataError, write_json, write_json_lines
from mimcl.pipeline.index import MAX_BYTES, file_digest
from mimcl.pipeline.index_writer import table_of, write_index
from mimcl.pipeline.sources.item import Item
from mimcl.pipeline.sources.labels import ClassList, apply_class_list, label_items
from mimcl.pipeline.sources.layout import to_utf8
from mimcl.pipeline.sources.splits import group_by_split
from mimcl.pipeline.sources.tar_headers import TarReader
from mimcl.pipeline.sources.webdataset import LABEL_KEY, BadSample, Sample, iter_samples, require_shards

_AT_ONCE = 1 << 20  # bytes between images that are read and hashed at once
_LONGEST_KEY = 1000  # bytes
_WRITTEN = ("rejected.jsonl", *(f"{split}.arrow" for split in SPLITS))


@dataclass(frozen=True)
class _Indexed:
    """A shard that has been read: its entry in dataset.json, rows without labels, labels, what is left out."""

    entry: dict[str, Any]
    rows: list[tuple]  # key, offset, nbytes, xxh64, width, height, name
    labels: list[int | str | None]
    rejected: list[dict[str, str]]


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
    """Writes dataset.json (last), SPLIT.arrow and rejected.jsonl beside shards of a webdataset in `folder`.

    Returns what dataset.json holds, and notes. Does nothing where these shards have been adopted with the same options
    and have not changed since. `on_progress(n)` is called for every n samples that have been dealt with. Raises
    DataError: for a shard that is missing or no tar, or lies elsewhere; for a folder that mimcl packed; for shards that
    changed and for an index that is damaged, unless what was adopted is to be replaced (`overwrite`). After a failure
    the folder holds what it held.
    """
    require_shards(shards)
    if any(path.parent != folder for path in shards):
        raise DataError(f"shards that are adopted lie in one folder, and not all of these do in {folder} itself")
    if wrong := [
        path.name for path in shards if not ADOPTED_NAME.fullmatch(path.name) or to_utf8(path.name) != path.name
    ]:
        raise DataError(f"a shard is called {to_utf8(wrong[0])!r}, which no data set can hold; rename it")
    splits, notes = group_by_split(folder, ((path.name, path) for path in sorted(shards)))
    if "train" not in splits:
        raise DataError(f"{folder} has no shards of train; rename them, or adopt them where the others are")
    chosen = [path for paths in splits.values() for path in paths]
    state = _state(chosen, classes, label_key, decode)
    if (known := _adopted_before(folder, state, overwrite)) is not None:
        return known, ["adopted before, and nothing changed since"]
    if not os.access(folder, os.W_OK):  # else it would be found out after all shards have been read
        raise DataError(f"{folder} cannot be written to, and the index belongs beside the shards; pack them with --out")
    parts, rejected = {}, []
    pool = ThreadPoolExecutor(workers)
    try:
        for split, paths in splits.items():
            work = partial(_read, split=split, label_key=label_key, decode=decode, on_progress=on_progress)
            parts[split] = list(_in_order(pool, paths, workers, work))
    finally:  # nothing is left to do then, unless something failed
        pool.shutdown(cancel_futures=True)
    labels, names = _labels(parts, classes, folder)
    columns = {}
    for split, indexed in parts.items():
        columns[split] = _rows(indexed, labels[split])
        rejected += [flaw for shard in indexed for flaw in shard.rejected]
        if not columns[split]:
            lost = [f", for example {flaw['path']}: {flaw['reason']}" for flaw in rejected if flaw["split"] == split]
            raise DataError(f"no sample of {split} has a usable image" + "".join(lost[:1]))
    if _state(chosen, classes, label_key, decode) != state:
        raise DataError(f"shards in {folder} changed while they were read; adopt them when they are whole")
    for split, rows in columns.items():
        if repeated := len(rows) - len({row[0] for row in rows}):
            notes.append(f"{split}: {repeated:,} keys are in several shards; samples are told apart by their rows")
    how = {**state, "label_key": label_key, "every_image_decoded": decode}
    return _write(folder, columns, parts, rejected, names, how), notes


def _state(shards: Sequence[Path], classes: ClassList | None, label_key: str, decode: bool) -> dict[str, Any]:
    """What an adoption depends on: when the newest shard was changed, and a digest of all else."""
    known = xxhash.xxh128(repr((classes and (classes.first, classes.whole), label_key, decode)).encode())
    modified = 0
    for path in shards:
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"shard {path} cannot be read: {error.strerror}") from None
        modified = max(modified, status.st_mtime_ns)
        known.update(f"\n{path.name!r} {status.st_size}".encode())
    return {"source": known.hexdigest(), "modified": modified}


def _adopted_before(folder: Path, state: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The description that stands there if it is of these shards; None where there is none or it is to be replaced."""
    try:
        description = json.loads((folder / "dataset.json").read_bytes())
        packed = description["packed"]
        ours = description["format"] == DATASET_FORMAT
    except FileNotFoundError:
        if not overwrite and (there := [name for name in _WRITTEN if (folder / name).exists()]):
            raise DataError(
                f"{folder} has {there[0]} but no dataset.json, perhaps of an adoption that was stopped; "
                "--overwrite replaces it"
            ) from None
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise DataError(f"{folder / 'dataset.json'} is not of this program's making, and adopting would replace it")
    if not packed.get("adopted"):
        raise DataError(f"{folder} has been packed by mimcl and needs no adoption; give it with --data")
    if overwrite:
        return None
    if packed.get("source") != state["source"] or packed.get("modified", -1) < state["modified"]:
        raise DataError(
            f"the shards in {folder}, or the options, changed since they were adopted; --overwrite makes a new index"
        )
    for split, part in read_dataset(folder)["splits"].items():
        index = folder / f"{split}.arrow"
        if not (index.exists() and file_digest(index) == part["index_xxh128"]):
            raise DataError(
                f"{folder} was adopted, but {index.name} is damaged or missing; --overwrite makes a new index"
            )
    return description


def _in_order(
    pool: ThreadPoolExecutor, paths: Sequence[Path], workers: int, work: Callable[[Path], _Indexed]
) -> Iterator[_Indexed]:
    waiting = iter(paths)
    ahead = deque(pool.submit(work, path) for path in islice(waiting, 2 * workers))
    while ahead:
        yield ahead.popleft().result()
        ahead.extend(pool.submit(work, path) for path in islice(waiting, 1))


def _read(path: Path, split: str, label_key: str, decode: bool, on_progress: Callable[[int], None]) -> _Indexed:
    """Reads a shard from its beginning to its end, every byte once but for headers."""
    tar, hashed, at = TarReader(path), xxhash.xxh128(), 0
    rows, labels, rejected = [], [], []
    for sample in iter_samples(tar, label_key):
        if isinstance(sample, Sample) and (reason := _refused(sample)):
            sample = BadSample(sample.name, reason)
        if isinstance(sample, Sample):
            at = _hash_until(tar, hashed, at, sample.offset)
            data = tar.read(at, sample.nbytes)
            hashed.update(data)
            at += len(data)
            try:
                if len(data) < sample.nbytes:
                    raise NotUsable("the shard became shorter while it was read")
                header = examine(data, decode)
            except NotUsable as reason:
                sample = BadSample(sample.name, str(reason))
            else:
                digest = xxhash.xxh64_intdigest(data)
                size = header.width, header.height
                rows.append((sample.key, sample.offset, sample.nbytes, digest, *size, f"{path.name}/{sample.name}"))
                labels.append(sample.label)
        if isinstance(sample, BadSample):
            rejected.append({"split": split, "path": f"{path.name}/{sample.name}", "reason": sample.reason})
        on_progress(1)
    _hash_until(tar, hashed, at, tar.size)
    entry = {"name": path.name, "bytes": tar.size, "samples": len(rows), "xxh128": hashed.hexdigest()}
    return _Indexed(entry, rows, labels, rejected)


def _refused(sample: Sample) -> str:
    if sample.nbytes > MAX_BYTES:
        return "larger than 2 GiB"
    if len(sample.key.encode()) > _LONGEST_KEY:
        return f"its key is longer than {_LONGEST_KEY:,} bytes"
    return ""


def _hash_until(tar: TarReader, hashed: xxhash.xxh128, at: int, stop: int) -> int:
    while at < stop and (data := tar.read(at, min(_AT_ONCE, stop - at))):
        hashed.update(data)
        at += len(data)
    return at


def _labels(
    parts: dict[str, list[_Indexed]], classes: ClassList | None, folder: Path
) -> tuple[dict[str, list[int]], list[str]]:
    """The number of each sample's class, by split, and the classes."""
    raw = {split: [label for shard in indexed for label in shard.labels] for split, indexed in parts.items()}
    blank = Item("", -1, 0)
    source = apply_class_list(
        label_items({split: [blank] * len(found) for split, found in raw.items()}, raw, folder), classes
    )
    return {split: [item.label for item in items] for split, items in source.splits.items()}, source.classes


def _rows(indexed: list[_Indexed], labels: list[int]) -> list[tuple]:
    label_of = iter(labels)
    return [
        (key, name, number, offset, nbytes, xxh64, width, height, next(label_of))
        for number, shard in enumerate(indexed)
        for key, offset, nbytes, xxh64, width, height, name in shard.rows
    ]


def _write(
    folder: Path,
    columns: dict[str, list[tuple]],
    parts: dict[str, list[_Indexed]],
    rejected: list[dict[str, str]],
    classes: list[str],
    state: dict[str, Any],
) -> dict[str, Any]:
    """Everything aside, then the old description away, then the new files in their places, the description last."""
    staging = folder / ".adopting"
    try:
        shutil.rmtree(staging, ignore_errors=True)  # of an adoption that was killed
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
            f"the index cannot be written beside the shards in {folder}: {error.strerror or error}"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return description
