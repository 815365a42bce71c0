"""Verify a packed data set: every byte of shards and indices, with findings instead of errors.

The index determines every byte of a shard besides the images: headers, names, order, padding and end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from mimcl.pipeline.bounded_map import bounded_map
from mimcl.pipeline.dataset_json import read_dataset
from mimcl.pipeline.files import DataError, open_regular
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.index_writer import fingerprint_of
from mimcl.pipeline.sources.names import to_fs
from mimcl.pipeline.verify_samples import Shard, Tar, check_adopted_samples, check_end, check_samples, is_own_key
from mimcl.pipeline.writer import BLOCK, idx_text

_ROWS = 64  # checked by a worker at once
_MAX_IDX_LINE = 240  # bytes, more than any line has
Job = tuple[int, Callable[[], list[str]]]  # number of images, and the function that returns their findings


def verify(root: Path, decode: bool, workers: int, on_progress: Callable[[int], None]) -> list[str]:
    """Find what is wrong with the data set in `root`, one line per finding, in order of splits, shards and samples.

    With `decode`, every pixel is decoded as well. `on_progress(n)` is called whenever n more images are done. Raises
    DataError if dataset.json is missing or damaged, since then there is nothing to compare with.
    """
    description = read_dataset(root)
    packed = description.get("packed")
    packed = packed if isinstance(packed, dict) else {}
    splits = description["splits"].items()
    jobs = (job for split, part in splits for job in _split_jobs(root, split, part, packed, decode))
    findings: list[str] = []
    for images, found in bounded_map(lambda job: (job[0], job[1]()), jobs, workers):
        findings += found
        on_progress(images)
    return findings


def _split_jobs(root: Path, split: str, part: dict[str, Any], packed: dict[str, Any], decode: bool) -> Iterator[Job]:
    index = None
    try:
        index = ShardIndex.load(root, split, recheck=True)
    except DataError as error:
        yield 0, partial(list, [str(error)])
    else:
        yield 0, partial(_check_index, index, bool(packed.get("adopted")))
    for number, entry in enumerate(part["shards"]):
        try:
            tar = Tar(root / to_fs(entry["name"]), entry["bytes"])
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            yield entry["samples"], partial(list, [f"{entry['name']}: {reason}"])
            continue
        yield 0, partial(_check_checksum, root / to_fs(entry["name"]), entry["xxh128"])
        if index is None:  # nothing to compare with
            yield entry["samples"], list
        elif packed.get("adopted"):
            yield from _adopted_jobs(index, number, tar, entry["samples"], decode)
        else:
            yield from _shard_jobs(index, number, tar, entry["samples"], decode, packed.get("json") is True)


def _check_index(index: ShardIndex, adopted: bool) -> list[str]:
    findings, keys = [], index.keys()
    if not adopted and (not all(map(is_own_key, keys)) or any(a >= b for a, b in pairwise(keys))):
        findings.append(f"{index.split}.arrow: keys are not ascending numbers")
    columns = {"key": keys, "nbytes": index.nbytes, "xxh64": index.xxh64, "label": index.label}
    if fingerprint_of(pa.table(columns)) != index.fingerprint:
        findings.append(f"{index.split}.arrow: fingerprint does not match the rows")
    return findings


def _check_checksum(path: Path, expected: str) -> list[str]:
    try:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, xxhash.xxh128).hexdigest()
    except OSError as error:
        return [f"{path.name}: {error.strerror or error}"]
    return [] if found == expected else [f"{path.name}: checksum does not match dataset.json"]


def _adopted_jobs(index: ShardIndex, number: int, tar: Tar, expected: int, decode: bool) -> Iterator[Job]:
    first, last = np.searchsorted(index.shard, [number, number + 1]).tolist()
    yield 0, partial(list, _check_count(tar, last - first, expected))
    for row in range(first, last, _ROWS):
        rows_of_job = range(row, min(row + _ROWS, last))
        yield len(rows_of_job), partial(check_adopted_samples, index, tar, rows_of_job, decode)


def _check_count(tar: Tar, found: int, expected: int) -> list[str]:
    if found == expected:
        return []
    return [f"{tar.name}: {found:,} samples in the index, {expected:,} in dataset.json"]


def _shard_jobs(index: ShardIndex, number: int, tar: Tar, expected: int, decode: bool, json: bool) -> Iterator[Job]:
    first, last = np.searchsorted(index.shard, [number, number + 1]).tolist()
    rows = slice(first, last)
    # A label has at most ten digits: a header and one block.
    ends = index.offset[rows] + index.nbytes[rows]
    ends += -ends % BLOCK + np.where(index.label[rows] >= 0, 2 * BLOCK, 0)
    idx, idx_findings = _read_idx(index.root / tar.name, last - first)
    shard = Shard(index, tar, range(first, last), index.offset[rows] - BLOCK, ends, idx, json)
    yield 0, partial(list, idx_findings + _check_count(tar, last - first, expected))
    for row in range(first, last, _ROWS):
        rows_of_job = range(row, min(row + _ROWS, last))
        yield len(rows_of_job), partial(check_samples, shard, rows_of_job, decode)
    yield 0, partial(check_end, shard)


def _read_idx(tar: Path, samples: int) -> tuple[list[str], list[str]]:
    """Read the samples' lines of the .idx file; returns none, but findings, if it is not as DALI reads it."""
    path = tar.with_suffix(".idx")
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_IDX_LINE * (samples + 1))
    except OSError as error:
        return [], [f"{path.name}: {error.strerror or error}"]
    lines = content.decode("ascii", "replace").split("\n")[1:-1]
    if len(lines) != samples or content != idx_text(lines):
        return [], [f"{path.name}: not an index of {samples:,} samples as DALI reads it"]
    return lines, []
