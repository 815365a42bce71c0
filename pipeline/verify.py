"""Is a packed data set what packing wrote? Every byte of shards and indices looked at; findings instead of errors.

A shard is known to the byte from its index: headers, names, order, padding, end. What differs is named.
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
from mimcl.pipeline.verify_samples import Shard, Tar, adopted_samples, end, is_own_key, samples
from mimcl.pipeline.writer import BLOCK, idx_text

_ROWS = 64  # looked at by a worker at once
_IDX_LINE = 240  # bytes, more than any has
Job = tuple[int, Callable[[], list[str]]]  # images it deals with, and what finds out about them


def verify(root: Path, decode: bool, workers: int, on_progress: Callable[[int], None]) -> list[str]:
    """What is wrong with the data set in `root`, a line each, in the order of splits, shards and samples.

    `decode` decodes every pixel as well; `on_progress(n)` is called whenever n more images have been dealt with. Raises
    DataError when dataset.json cannot be used: then there is nothing to compare with.
    """
    description = read_dataset(root)
    packed = description.get("packed")
    packed = packed if isinstance(packed, dict) else {}
    jobs = (job for split, part in description["splits"].items() for job in _split(root, split, part, packed, decode))
    findings: list[str] = []
    for images, found in bounded_map(lambda job: (job[0], job[1]()), jobs, workers):
        findings += found
        on_progress(images)
    return findings


def _split(root: Path, split: str, part: dict[str, Any], packed: dict[str, Any], decode: bool) -> Iterator[Job]:
    try:
        index = ShardIndex.load(root, split, anew=True)
    except DataError as error:
        yield 0, partial(list, [str(error)])
        index = None
    else:
        yield 0, partial(_index, index, bool(packed.get("adopted")))
    for number, entry in enumerate(part["shards"]):
        try:
            tar = Tar(root / entry["name"], entry["bytes"])
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            yield entry["samples"], partial(list, [f"{entry['name']}: {reason}"])
            continue
        yield 0, partial(_checksum, root / entry["name"], entry["xxh128"])
        if index is None:  # which says nothing that could be compared
            yield entry["samples"], list
        elif packed.get("adopted"):
            yield from _adopted(index, number, tar, entry["samples"], decode)
        else:
            yield from _shard(index, number, tar, entry["samples"], decode, packed.get("json") is True)


def _index(index: ShardIndex, adopted: bool) -> list[str]:
    findings, keys = [], index.keys()
    if not adopted and (not all(map(is_own_key, keys)) or any(a >= b for a, b in pairwise(keys))):
        findings.append(f"{index.split}.arrow: its keys are not numbers in ascending order")
    columns = {"key": keys, "nbytes": index.nbytes, "xxh64": index.xxh64, "label": index.label}
    if fingerprint_of(pa.table(columns)) != index.fingerprint:
        findings.append(f"{index.split}.arrow: its fingerprint is not that of its rows")
    return findings


def _checksum(path: Path, expected: str) -> list[str]:
    try:
        with open_regular(path) as file:
            found = hashlib.file_digest(file, xxhash.xxh128).hexdigest()
    except OSError as error:
        return [f"{path.name}: {error.strerror or error}"]
    return [] if found == expected else [f"{path.name}: its checksum differs from that in dataset.json"]


def _adopted(index: ShardIndex, number: int, tar: Tar, expected: int, decode: bool) -> Iterator[Job]:
    first, last = np.searchsorted(index.shard, [number, number + 1]).tolist()
    yield 0, partial(list, _counted(tar, last - first, expected))
    for row in range(first, last, _ROWS):
        stretch = range(row, min(row + _ROWS, last))
        yield len(stretch), partial(adopted_samples, index, tar, stretch, decode)


def _counted(tar: Tar, found: int, expected: int) -> list[str]:
    if found == expected:
        return []
    return [f"{tar.name}: {found:,} samples by the index, {expected:,} by dataset.json"]


def _shard(index: ShardIndex, number: int, tar: Tar, expected: int, decode: bool, json: bool) -> Iterator[Job]:
    first, last = np.searchsorted(index.shard, [number, number + 1]).tolist()
    rows = slice(first, last)
    # A label is at most ten digits: a header and one block.
    ends = index.offset[rows] + index.nbytes[rows]
    ends += -ends % BLOCK + np.where(index.label[rows] >= 0, 2 * BLOCK, 0)
    idx, idx_findings = _read_idx(index.root / tar.name, last - first)
    shard = Shard(index, tar, range(first, last), index.offset[rows] - BLOCK, ends, idx, json)
    yield 0, partial(list, idx_findings + _counted(tar, last - first, expected))
    for row in range(first, last, _ROWS):
        stretch = range(row, min(row + _ROWS, last))
        yield len(stretch), partial(samples, shard, stretch, decode)
    yield 0, partial(end, shard)


def _read_idx(tar: Path, samples: int) -> tuple[list[str], list[str]]:
    """The lines of the samples, and findings; no lines where they cannot be those of the samples."""
    path = tar.with_suffix(".idx")
    try:
        with open_regular(path) as file:
            content = file.read(_IDX_LINE * (samples + 1))
    except OSError as error:
        return [], [f"{path.name}: {error.strerror or error}"]
    lines = content.decode("ascii", "replace").split("\n")[1:-1]
    if len(lines) != samples or content != idx_text(lines):
        return [], [f"{path.name}: it is not an index of {samples:,} samples as DALI reads it"]
    return lines, []
