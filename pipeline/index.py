"""The index of a split: one Arrow row per sample, memory-mapped, and checked only once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from mimcl.pipeline.dataset_json import PACK_AGAIN, read_dataset
from mimcl.pipeline.examine import MAX_PIXELS
from mimcl.pipeline.files import DataError, open_regular, remedy
from mimcl.pipeline.map_file import map_file
from mimcl.pipeline.prototype_location import set_path
from mimcl.pipeline.remote.metadata_cache import fetch_index, fetch_prototypes, has_prototypes, metadata_folder
from mimcl.pipeline.remote.urls import joined, shown, url_of
from mimcl.pipeline.verify_cache import check_once

MAX_BYTES = 2**31 - 1  # of an image: readers use 32 bits, and no image within the pixel limit needs more
_CHUNK = 1 << 20  # rows processed at once, with tens of megabytes of temporaries
_CHECK_VERSION = 2  # of `_check`; when it is raised, every index is checked again
COLUMNS = {
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


def file_digest(path: Path) -> str:
    """xxh128 of a whole file. Raises OSError."""
    with open_regular(path) as file:
        return xxhash.xxh128_hexdigest(map_file(file))


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
    url: str | None = None  # of a remote data set; `root` is then its local cache of metadata

    @property
    def location(self) -> str:
        """Folder or URL, as `load` takes it; it may contain secrets."""
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
        """Pixels of the largest image; packing refuses images whose number does not fit into an int32."""
        return max(int((self.width[rows] * self.height[rows]).max()) for rows in _chunks(self.samples))

    def key(self, sample_id: int) -> str:
        return self._table["key"][int(sample_id)].as_py()

    def path(self, sample_id: int) -> str:
        return self._table["path"][int(sample_id)].as_py()

    def described(self, sample_id: int) -> str:
        """The sample as messages name it: its path in the source, its key and its shard."""
        shard = Path(self.shards[self.shard[sample_id]]["name"]).name
        return f"{self.path(sample_id)} (sample {self.key(sample_id)} of {shard})"

    def names(self, first: int, last: int) -> tuple[list[str], list[str]]:
        """The keys and the paths of rows [first, last)."""
        rows = self._table.slice(first, last - first)
        return rows["key"].to_pylist(), rows["path"].to_pylist()

    def keys(self) -> list[str]:
        """The keys of all rows."""
        return self._table["key"].to_pylist()

    def rows_of(self, keys: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """The row of each of these keys (n,), large strings: the first that has it; -1 if none has."""
        import pyarrow.compute as pc  # imports pydoc and more

        found = pc.index_in(keys, value_set=self._table["key"])
        return found.fill_null(-1).to_numpy().astype(np.int64)

    def prototypes_folder(self, name: str) -> Path:
        """Local folder of a prototype set by its name or path; a remote set is downloaded first. Raises DataError."""
        if path := set_path(name):
            return path
        if self.url:
            return fetch_prototypes(self.url, name)
        folder = self.root / "prototypes" / name
        if not folder.exists() and Path(name, "prototypes.json").is_file():
            raise DataError(f"no prototype set {folder}; if ./{name} is meant, give it with the slash")
        return folder

    def has_prototypes(self, name: str) -> bool:
        """Whether a prototype set of that name exists beside the shards."""
        return has_prototypes(self.url, name) if self.url else (self.root / "prototypes" / name).exists()

    @classmethod
    def load(cls, root: str | Path, split: str = "train", *, recheck: bool = False) -> ShardIndex:
        """Open the index of one split in a folder or at a URL, from which it is downloaded once.

        The whole index is checked if its file is new or has changed, or with `recheck`, which also finds bits that a
        disk has lost. Raises DataError if it is missing, damaged, stale or in another format.
        """
        description = read_dataset(root)
        if split not in description["splits"]:
            raise DataError(f"{shown(root)} has no {split} split; it has {', '.join(description['splits'])}")
        part = description["splits"][split]
        if url := url_of(root):
            fetch_index(url, split, part["index_xxh128"])
        root = metadata_folder(url) if url else Path(root)
        path = root / f"{split}.arrow"
        try:
            with open_regular(path) as file:
                mapped = map_file(file)
                if recheck:
                    _check(path, mapped, part)
                else:
                    claim = json.dumps([_CHECK_VERSION, part])
                    check_once([file], claim, lambda: _check(path, mapped, part))
            batch, _ = _parsed(mapped)
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror or error}); {remedy(error, PACK_AGAIN)}") from None
        except (ValueError, IndexError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{path} cannot be read ({reason}); {PACK_AGAIN}") from None
        numbers = [name for name, kind in COLUMNS.items() if not pa.types.is_large_string(kind)]
        columns = {name: batch[name].to_numpy(zero_copy_only=True) for name in numbers}
        return cls(root, split, part["fingerprint"], part["classes"], part["shards"], **columns, _table=batch, url=url)


def _parsed(mapped: pa.Buffer) -> tuple[pa.RecordBatch, pa.Schema]:
    """The rows as views of the file, and the schema. Raises Arrow's errors if it is not an Arrow file."""
    reader = pa.ipc.open_file(mapped)
    return reader.get_batch(0), reader.schema


def _check(path: Path, mapped: pa.Buffer, part: dict[str, Any]) -> None:
    """Check a whole index against its description `part`, depending on these arguments alone.

    Raises DataError, or Arrow's errors, if it is damaged or another one.
    """
    # Before anything is parsed, since Arrow trusts what it reads.
    if xxhash.xxh128_hexdigest(mapped) != part["index_xxh128"]:
        raise DataError(f"{path} does not match dataset.json (damaged, or of another packing); {PACK_AGAIN}")
    batch, schema = _parsed(mapped)
    batch.validate(full=True)  # the length of each column, and the offsets of all strings
    if schema.names != list(COLUMNS) or schema.types != list(COLUMNS.values()):
        raise DataError(f"{path} is not an index in this program's format; {PACK_AGAIN}")
    fingerprint = (schema.metadata or {}).get(b"fingerprint", b"").decode()
    if fingerprint != part["fingerprint"] or batch.num_rows != part["samples"]:
        raise DataError(f"{path} does not match dataset.json; {PACK_AGAIN}")
    if fault := _fault(batch, part):
        raise DataError(f"{path}: index damaged or hostile ({fault}); {PACK_AGAIN}")


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, rows, _CHUNK))


def _fault(batch: pa.RecordBatch, part: dict[str, Any]) -> str | None:
    """Find the first row with an impossible value; returns None if there is none."""
    if any(column.null_count for column in batch.columns):
        return "values are missing"
    names = ("shard", "offset", "nbytes", "width", "height", "label")
    columns = {name: batch[name].to_numpy(zero_copy_only=True) for name in names}
    sizes = np.array([shard["bytes"] for shard in part["shards"]], np.int64)
    labels = len(part["classes"]) or np.inf
    for rows in _chunks(batch.num_rows):
        if found := _fault_of_rows({name: column[rows] for name, column in columns.items()}, sizes, labels):
            row, what = found
            return f"row {rows.start + row} {what}"
        first = max(rows.start - 1, 0)  # the last row of the chunk before as well
        shard, offset = (columns[name][first : rows.stop] for name in ("shard", "offset"))
        descends = (shard[1:] < shard[:-1]) | ((shard[1:] == shard[:-1]) & (offset[1:] < offset[:-1]))
        if descends.any():  # lookups and read plans rely on the order
            return f"row {first + 1 + int(descends.argmax())} is out of order"
    return None


def _fault_of_rows(columns: dict[str, NDArray[Any]], sizes: NDArray[np.int64], labels: float) -> tuple[int, str] | None:
    """The first faulty row of a chunk and its fault, for shards of `sizes` bytes and `labels` classes."""
    shard, offset, nbytes, width, height, label = columns.values()
    unknown = (shard < 0) | (shard >= len(sizes))
    if unknown.any():
        return int(unknown.argmax()), "is in no shard"
    wrong = {
        "is not inside its shard": (offset < 512)
        | (nbytes < 1)
        | (nbytes > MAX_BYTES)
        # Not offset + nbytes, which may overflow an int64.
        | (offset > sizes[shard] - nbytes),
        "has an impossible size in pixels": (width < 1)
        | (height < 1)
        | (np.multiply(width, height, dtype=np.int64) > MAX_PIXELS),
        "has an impossible label": (label < -1) | (label >= labels),
    }
    return next(((int(rows.argmax()), what) for what, rows in wrong.items() if rows.any()), None)
