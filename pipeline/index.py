"""The index of a split: one Arrow row per sample, memory-mapped, so that opening it costs nothing at any size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from mimcl.pipeline.examine import MAX_PIXELS
from mimcl.pipeline.files import DataError, atomic_file, open_regular
from mimcl.pipeline.mirror import fetch_description, fetch_index, mirror_of
from mimcl.pipeline.urls import joined, shown, url_of

DATASET_FORMAT = "mimcl-shards/1"
SPLITS = ("train", "val")
MAX_BYTES = 2**31 - 1  # of an image: readers count in 32 bits; none within the limit on pixels needs more
_MAX_DESCRIPTION = 1 << 28  # bytes of dataset.json: over a million shards
_AGAIN = "pack again with `mimcl shard`"
_COLUMNS = {
    "key": pa.large_string(),
    "path": pa.large_string(),
    "shard": pa.int32(),  # position in dataset.json's list of the split's shards
    "offset": pa.int64(),  # of the image bytes in the tar
    "nbytes": pa.int64(),
    "xxh64": pa.uint64(),  # of the image bytes
    "width": pa.int32(),  # pixels, stored orientation
    "height": pa.int32(),
    "label": pa.int32(),  # position in the split's classes; -1 = none
}
_HASHED = np.dtype([("key", "S9"), ("nbytes", "<i8"), ("xxh64", "<u8"), ("label", "<i4")])


def write_index(path: Path, rows: list[tuple]) -> str:
    """Writes rows in the order of the columns above; returns the fingerprint, which the file carries as well."""
    columns = list(zip(*rows, strict=True)) or [()] * len(_COLUMNS)
    named = dict(zip(_COLUMNS, columns, strict=True))
    fingerprint = fingerprint_of(named)
    metadata = {"format": DATASET_FORMAT, "fingerprint": fingerprint}
    schema = pa.schema(list(_COLUMNS.items()), metadata=metadata)
    arrays = [pa.array(named[name], kind) for name, kind in _COLUMNS.items()]
    with atomic_file(path) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return fingerprint


def fingerprint_of(columns: Mapping[str, Sequence]) -> str:
    """xxh128 over key, nbytes, xxh64 and label, row by row: what the images are, wherever they lie."""
    hashed = np.empty(len(columns["key"]), _HASHED)
    for name in _HASHED.names:
        hashed[name] = columns[name]
    return xxhash.xxh128_hexdigest(hashed.tobytes())


def file_digest(path: Path) -> str:
    """xxh128 of a whole file. Raises OSError."""
    with open_regular(path) as file, pa.memory_map(file.name) as mapped:
        return xxhash.xxh128_hexdigest(mapped.read_buffer())


@dataclass(frozen=True)
class ShardIndex:
    """One split of a packed data set. Columns are memory-mapped arrays of length `samples`; row = sample_id."""

    root: Path
    split: str
    fingerprint: str
    classes: list[str]
    shards: list[dict[str, Any]]  # name, bytes, samples, xxh128
    shard: NDArray[np.int32]
    offset: NDArray[np.int64]
    nbytes: NDArray[np.int64]
    xxh64: NDArray[np.uint64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    label: NDArray[np.int32]
    _table: pa.RecordBatch
    url: str | None = None  # where the shards lie; then `root` is what of the data set is kept on this machine

    @property
    def location(self) -> str:
        """Folder or URL, as `load` takes it; it may hold secrets."""
        return self.url or str(self.root)

    @property
    def shown(self) -> str:
        """Folder or URL, as it may be printed."""
        return shown(self.location)

    def at(self, name: str) -> str:
        """Path or URL of a shard, as it may be printed."""
        return joined(self.shown, name) if self.url else str(self.root / name)

    @property
    def samples(self) -> int:
        return len(self.shard)

    @property
    def largest(self) -> int:
        """The most pixels that an image has; packing refuses what would not fit into an int32."""
        return int((self.width * self.height).max())

    def key(self, sample_id: int) -> str:
        return self._table["key"][int(sample_id)].as_py()

    def path(self, sample_id: int) -> str:
        return self._table["path"][int(sample_id)].as_py()

    def keys(self) -> list[str]:
        """The keys of all rows."""
        return self._table["key"].to_pylist()

    @classmethod
    def load(cls, root: str | Path, split: str = "train") -> ShardIndex:
        """Opens the index of one split, of a folder or a URL, from where it is fetched once.

        Raises DataError when it is missing, damaged, stale or of another format.
        """
        description = read_dataset(root)
        if split not in description["splits"]:
            raise DataError(f"{shown(root)} has no {split} split; it has {', '.join(description['splits'])}")
        part = description["splits"][split]
        if url := url_of(root):
            fetch_index(url, split, part["index_xxh128"])
        root = mirror_of(url) if url else Path(root)
        path = root / f"{split}.arrow"
        try:
            # Before anything is parsed: Arrow trusts what it reads.
            if file_digest(path) != part["index_xxh128"]:
                raise DataError(
                    f"{path} is not the index that dataset.json describes: damaged, or of another packing; {_AGAIN}"
                )
            with pa.memory_map(str(path)) as file:
                reader = pa.ipc.open_file(file)
                batch = reader.get_batch(0)
                metadata = {key.decode(): value.decode() for key, value in (reader.schema.metadata or {}).items()}
                batch.validate(full=True)  # the extent of each column, and the places of all texts
        except (OSError, ValueError, IndexError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{path} cannot be read ({reason}); {_AGAIN}") from None
        if reader.schema.names != list(_COLUMNS) or reader.schema.types != list(_COLUMNS.values()):
            raise DataError(f"{path} is not an index of this program's format; {_AGAIN}")
        if metadata.get("fingerprint") != part["fingerprint"] or batch.num_rows != part["samples"]:
            raise DataError(f"{path} is not the index that dataset.json describes; {_AGAIN}")
        if fault := _fault(batch, part):
            raise DataError(f"{path}: index damaged or hostile ({fault}); {_AGAIN}")
        numbers = [name for name, kind in _COLUMNS.items() if not pa.types.is_large_string(kind)]
        columns = {name: batch[name].to_numpy(zero_copy_only=True) for name in numbers}
        return cls(root, split, part["fingerprint"], part["classes"], part["shards"], **columns, _table=batch, url=url)


def _fault(batch: pa.RecordBatch, part: dict[str, Any]) -> str | None:
    """What no row that was packed can say, with the first row that says it; None for a sound index."""
    if any(column.null_count for column in batch.columns):
        return "values are missing"
    shard, offset, nbytes, width, height, label = (
        batch[name].to_numpy(zero_copy_only=True) for name in ("shard", "offset", "nbytes", "width", "height", "label")
    )
    sizes = np.array([shard["bytes"] for shard in part["shards"]], np.int64)
    unknown = (shard < 0) | (shard >= len(sizes))
    if unknown.any():
        return f"row {unknown.argmax()} lies in no shard"
    wrong = {
        "does not lie inside its shard": (offset < 512)
        | (nbytes < 1)
        | (nbytes > MAX_BYTES)
        # Not offset + nbytes: the sum may be beyond an int64.
        | (offset > sizes[shard] - nbytes),
        "has an impossible size in pixels": (width < 1)
        | (height < 1)
        | (np.multiply(width, height, dtype=np.int64) > MAX_PIXELS),
        "has an impossible label": (label < -1) | (label >= (len(part["classes"]) or np.inf)),
    }
    return next((f"row {rows.argmax()} {what}" for what, rows in wrong.items() if rows.any()), None)


def read_dataset(root: str | Path) -> dict[str, Any]:
    """The content of dataset.json in a folder or at a URL.

    Raises DataError where there is none, of another format, or not as it is packed.
    """
    url = url_of(root)
    path = (fetch_description(url) if url else Path(root)) / "dataset.json"
    where = joined(shown(url), path.name) if url else path
    try:
        with open_regular(path) as file:
            text = file.read(_MAX_DESCRIPTION + 1)
        if len(text) > _MAX_DESCRIPTION:
            raise ValueError(f"more than {_MAX_DESCRIPTION:,} bytes")
        description = json.loads(text)
        kind = description["format"]
        if kind == DATASET_FORMAT:
            for split, part in description["splits"].items():
                _check_split(shown(root), split, part)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{root} is not a packed data set (no dataset.json); make one with `mimcl shard SRC`") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"  # the repr of some errors holds all that was read
        raise DataError(f"{where} cannot be read ({reason:.200}); {_AGAIN}") from None
    if kind != DATASET_FORMAT:
        raise DataError(
            f"{where} has format {kind!r:.80}, this program reads {DATASET_FORMAT!r}; upgrade mimcl or pack again"
        )
    return description


def _check_split(root: str, split: str, part: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError for what was never packed, DataError for what was packed long ago."""
    if split not in SPLITS:
        raise ValueError(f"a split called {split!r:.80}")
    if "index_xxh128" not in part and "fingerprint" in part:
        raise DataError(f"{root} was packed by an earlier mimcl, which kept no checksum of its index; {_AGAIN}")
    texts = [part["fingerprint"], part["index_xxh128"], *part["classes"]]
    numbers = [part["samples"]]
    for place, shard in enumerate(part["shards"]):
        # A name is joined to the folder and opened: nothing but the one that packing gives may stand here.
        if shard["name"] != f"{split}-{place:06d}.tar":
            raise ValueError(f"a shard called {shard['name']!r:.80}")
        texts.append(shard["xxh128"])
        numbers += [shard["bytes"], shard["samples"]]
    if not all(type(text) is str for text in texts):
        raise TypeError(f"a checksum or class of {split} is no text")
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError(f"a number of {split} is no whole number from 0 to 2^63 - 1")
    if part["samples"] != sum(shard["samples"] for shard in part["shards"]):
        raise ValueError(f"the shards of {split} do not add up to {part['samples']} samples")
