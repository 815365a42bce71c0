"""The index of a split: one Arrow row per sample, memory-mapped, so that opening it costs nothing at any size."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from mimcl.pipeline.files import DataError, atomic_file

DATASET_FORMAT = "mimcl-shards/1"
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
    hashed = np.empty(len(rows), _HASHED)
    for name in _HASHED.names:
        hashed[name] = named[name]
    fingerprint = xxhash.xxh128_hexdigest(hashed.tobytes())
    metadata = {"format": DATASET_FORMAT, "fingerprint": fingerprint}
    schema = pa.schema(list(_COLUMNS.items()), metadata=metadata)
    arrays = [pa.array(named[name], kind) for name, kind in _COLUMNS.items()]
    with atomic_file(path) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return fingerprint


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

    @classmethod
    def load(cls, root: Path, split: str = "train") -> ShardIndex:
        """Opens the index of one split. Raises DataError when it is missing, damaged, stale or of another format."""
        description = read_dataset(root)
        if split not in description["splits"]:
            raise DataError(f"{root} has no {split} split; it has {', '.join(description['splits'])}")
        part = description["splits"][split]
        path = root / f"{split}.arrow"
        try:
            with pa.memory_map(str(path)) as file:
                reader = pa.ipc.open_file(file)
                batch = reader.get_batch(0)
                metadata = {key.decode(): value.decode() for key, value in (reader.schema.metadata or {}).items()}
                batch.validate()  # cheap: the extent of each column, not its values
        except (OSError, ValueError, IndexError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{path} cannot be read ({reason}); pack again with `mimcl shard`") from None
        if reader.schema.names != list(_COLUMNS) or reader.schema.types != list(_COLUMNS.values()):
            raise DataError(f"{path} is not an index of this program's format; pack again with `mimcl shard`")
        if metadata.get("fingerprint") != part["fingerprint"] or batch.num_rows != part["samples"]:
            raise DataError(f"{path} is not the index that dataset.json describes; pack again with `mimcl shard`")
        numbers = [name for name, kind in _COLUMNS.items() if not pa.types.is_large_string(kind)]
        columns = {name: batch[name].to_numpy(zero_copy_only=True) for name in numbers}
        return cls(root, split, part["fingerprint"], part["classes"], part["shards"], **columns, _table=batch)


def read_dataset(root: Path) -> dict[str, Any]:
    """The content of dataset.json. Raises DataError where there is none, or of another format."""
    path = root / "dataset.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        kind = description["format"]
        if kind == DATASET_FORMAT:
            for part in description["splits"].values():
                _ = part["samples"], part["fingerprint"], part["classes"]
                _ = [(shard["name"], shard["bytes"]) for shard in part["shards"]]
    except FileNotFoundError:
        raise DataError(f"{root} is not a packed data set (no dataset.json); make one with `mimcl shard SRC`") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read ({error!r}); pack again with `mimcl shard`") from None
    if kind != DATASET_FORMAT:
        raise DataError(
            f"{path} has format {kind!r}, this program reads {DATASET_FORMAT!r}; upgrade mimcl or pack again"
        )
    return description
