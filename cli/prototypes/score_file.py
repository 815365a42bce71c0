"""Read a score for each image from a file: npy in row order, or csv or parquet by key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from mimcl.cli.errors import ConfigError
from mimcl.pipeline.files import DataError, open_regular, remedy
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.map_file import map_file, npy_view

KEY, SCORE, CLUSTER = "key", "score", "cluster"  # columns; the last is optional
_TEXT, _NUMBER, _WHOLE = pa.large_string(), pa.float64(), pa.int64()


@dataclass(frozen=True)
class Scores:
    """The scores of all images, in the order of the index."""

    scores: NDArray[np.float64]  # (N,), finite
    cluster: NDArray[np.int32]  # (N,), numbered from 0 without gaps; all 0 without a column of clusters
    digest: str  # xxh128 of the file


def require_kind(path: Path) -> None:
    """Raise ConfigError unless the file's name ends as that of a file that can be read."""
    if path.suffix.lower() not in _READERS:
        raise ConfigError(f"{path} must end in {', '.join([*_READERS][:-1])} or {[*_READERS][-1]}")


def read_scores(path: Path, index: ShardIndex) -> Scores:
    """Read the scores of all images of `index`. Raises DataError for a file that does not have exactly these."""
    require_kind(path)
    try:
        with open_regular(path) as file:
            content = map_file(file)
        scores, cluster = _READERS[path.suffix.lower()](path, content, index)
        digest = xxhash.xxh128_hexdigest(content)
    except OSError as error:
        if error.errno is None and not str(error).endswith("not a regular file"):
            raise _damaged(path, error) from None
        advice = remedy(error, "give a file with a score for each image")
        raise DataError(f"{path} cannot be read ({error.strerror or error}); {advice}") from None
    except (ValueError, OverflowError, TypeError, pa.ArrowException) as error:  # of numpy and Arrow
        raise _damaged(path, error) from None
    with np.errstate(over="ignore"):  # sets keep scores in float32
        wrong = np.flatnonzero(~np.isfinite(scores.astype(np.float32)))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{path}: the score of key {index.key(row)} is {scores[row]:g}, and {len(wrong) - 1:,} more are not finite "
            "in float32; give each image one"
        )
    return Scores(scores, cluster, digest)


def _damaged(path: Path, error: Exception) -> DataError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return DataError(f"{path} cannot be read ({reason:.200}); it may be damaged or of another kind, write it again")


def _read_npy(path: Path, content: pa.Buffer, index: ShardIndex) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    found = npy_view(content)
    if found.dtype.kind not in "fiu":
        raise DataError(f"{path} has values of type {found.dtype}; it must have numbers")
    if found.shape != (index.samples,):
        raise DataError(
            f"{path} has shape {found.shape}; it must be ({index.samples},), a score for each train image of "
            f"{index.shown} in row order"
        )
    return found.astype(np.float64), np.zeros(index.samples, np.int32)


def _read_csv(path: Path, content: pa.Buffer, index: ShardIndex) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    from pyarrow import csv

    # Keys stay text: as numbers they would lose their leading zeros.
    types = csv.ConvertOptions(column_types={KEY: _TEXT, SCORE: _NUMBER, CLUSTER: _WHOLE})
    table = csv.read_csv(pa.BufferReader(content), convert_options=types)
    return _by_key(path, table.select(_columns(path, table.schema)), index)


def _read_parquet(path: Path, content: pa.Buffer, index: ShardIndex) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    from pyarrow import parquet

    file = parquet.ParquetFile(pa.BufferReader(content))
    columns = _columns(path, file.schema_arrow)
    if file.metadata.num_rows > 2 * index.samples:  # before they are in memory: a small file may have billions
        raise DataError(f"{path} has {file.metadata.num_rows:,} rows for {index.samples:,} images; give each image one")
    return _by_key(path, file.read(columns), index)


def _columns(path: Path, schema: pa.Schema) -> list[str]:
    """Return the columns to read, after a check of their names and types."""
    wanted: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
        KEY: (_is_text, 'text, as in the index ("000000000")'),
        SCORE: (_is_number, "numbers"),
        CLUSTER: (pa.types.is_integer, "whole numbers"),
    }
    for name, (fits, what) in wanted.items():
        count = schema.names.count(name)
        if count == 0 and name != CLUSTER:
            raise DataError(f"{path} has no column {name} (it has {', '.join(schema.names):.200}); rename a column")
        if count > 1:
            raise DataError(f"{path} has {count} columns {name}; keep one")
        if count and not fits(kind := schema.field(name).type):
            raise DataError(f"{path}: column {name} has type {kind}; it must be {what}")
    return [name for name in wanted if name in schema.names]


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)


def _by_key(path: Path, table: pa.Table, index: ShardIndex) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Put the rows of a table in the order of the index. Raises DataError unless each image has exactly one."""
    keys = table[KEY].cast(_TEXT)
    rows = index.rows_of(keys)
    if len(unknown := np.flatnonzero(rows < 0)):
        raise DataError(
            f"{path}: {len(unknown):,} keys match no train image of {index.shown}, the first is "
            f"{keys[int(unknown[0])].as_py()!r:.80}; keys are as in the index, such as {index.key(0)!r}"
        )
    times = np.bincount(rows, minlength=index.samples)
    if times.max() > 1:
        raise DataError(f"{path}: {index.key(int(times.argmax()))} occurs {times.max():,} times; give each key once")
    if len(missing := np.flatnonzero(times == 0)):
        key = index.key(int(missing[0]))
        if index.rows_of(pa.array([key], _TEXT))[0] != missing[0]:
            raise DataError(f"several images of {index.shown} have key {key}; give their scores as .npy, in row order")
        raise DataError(f"{path}: {len(missing):,} images have no row, the first is {key}; give each image a score")
    scores, cluster = np.empty(index.samples), np.zeros(index.samples, np.int32)
    scores[rows] = table[SCORE].cast(_NUMBER).to_numpy()  # NaN where it is missing
    if CLUSTER in table.column_names:
        given = table[CLUSTER]
        if given.null_count or given.to_numpy().min() < 0:
            raise DataError(f"{path}: some clusters are missing or negative; number them from 0")
        cluster[rows] = np.unique(given.to_numpy(), return_inverse=True)[1]
    return scores, cluster


_READERS: dict[str, Callable[[Path, pa.Buffer, ShardIndex], tuple[NDArray[np.float64], NDArray[np.int32]]]] = {
    ".npy": _read_npy,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
