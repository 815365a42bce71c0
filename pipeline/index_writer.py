"""Write the index of a split, and compute the fingerprint that identifies its images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from mimcl.pipeline.dataset_json import DATASET_FORMAT
from mimcl.pipeline.files import atomic_file
from mimcl.pipeline.index import COLUMNS

_KEY_BYTES = 9  # the keys that packing gives
_ROWS = 1 << 20  # hashed at once


def table_of(rows: list[tuple]) -> pa.Table:
    """Build the table for `write_index` from rows, each in the order of the index's columns."""
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, COLUMNS.values(), strict=True)]
    return pa.table(arrays, schema=pa.schema(list(COLUMNS.items())))


def write_index(path: Path, table: pa.Table) -> str:
    """Write the index's columns as one record batch; returns the fingerprint, which the file also contains.

    A table in several chunks is copied in memory.
    """
    fingerprint = fingerprint_of(table)
    schema = pa.schema(list(COLUMNS.items()), metadata={"format": DATASET_FORMAT, "fingerprint": fingerprint})
    arrays = [_whole(table[name]) for name in COLUMNS]
    with atomic_file(path) as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return fingerprint


def fingerprint_of(table: pa.Table) -> str:
    """xxh128 over key, nbytes, xxh64 and label, row by row; independent of where the images are stored.

    Keys are UTF-8, padded with zeros to nine bytes or to the longest key. Other columns are ignored.
    """
    width = max(_KEY_BYTES, pc.max(pc.binary_length(table["key"])).as_py() or 0)
    kind = np.dtype([("key", f"S{width}"), ("nbytes", "<i8"), ("xxh64", "<u8"), ("label", "<i4")])
    digest = xxhash.xxh128()
    for first in range(0, table.num_rows, _ROWS):
        part = table.slice(first, _ROWS)
        hashed = np.empty(part.num_rows, kind)
        hashed["key"] = [key.encode() for key in part["key"].to_pylist()]
        for name in ("nbytes", "xxh64", "label"):
            hashed[name] = part[name].to_numpy()
        digest.update(hashed.tobytes())
    return digest.hexdigest()


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
