"""Write features as npy with a list of keys, or as parquet: a chunk at a time, aside, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mimcl.cli.embed.unfinished import UnfinishedFeatures, first_change, read_settings
from mimcl.cli.encoders.split_features import central_crop_stream
from mimcl.cli.errors import ConfigError
from mimcl.pipeline.decode import Decoder
from mimcl.pipeline.files import DataError, atomic_file, remedy
from mimcl.pipeline.index import ShardIndex

_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def keys_path(out: Path) -> Path:
    """Return features.keys.txt for features.npy."""
    return out.with_suffix(".keys.txt")


def description_path(out: Path) -> Path:
    """Return features.npy.json for features.npy: what the features were made from, and the bad images."""
    return out.with_name(f"{out.name}.json")


@dataclass(frozen=True)
class Embedded:
    """What was written: `rows` features of `width` numbers; `files` has the features first, the description last."""

    files: tuple[Path, ...]
    rows: int
    width: int
    bad: tuple[str, ...]  # paths of bad images, which have no row


def find_finished(out: Path, settings: dict[str, Any]) -> Embedded | None:
    """Return what was written to `out` with these settings; None if there is nothing.

    Raises ConfigError if it was made with others, or does not say with which.
    """
    if not out.exists():
        return None
    about = read_settings(description_path(out))
    if about is None or not {"rows", "width", "bad"} <= about.keys():
        raise ConfigError(f"{out} exists and does not say what it was made from; give another --out, or remove it")
    if change := first_change(about, settings):
        raise ConfigError(f"{out} was made with {change}; give another --out, or remove it")
    beside = [keys_path(out)] if out.suffix == ".npy" else []
    bad = tuple(row["path"] for row in about["bad"])
    return Embedded((out, *beside, description_path(out)), about["rows"], about["width"], bad)


def write_features(
    out: Path, features: UnfinishedFeatures, index: ShardIndex, decoder: Decoder, settings: dict[str, Any]
) -> None:
    """Write `out` and the files beside it: bad images have no row, and are listed with the reason.

    `out` appears last, so that one that exists has everything beside it. Raises DataError if the disk is full, if
    features do not fit into the type in `settings`, or if all images are bad.
    """
    bad = features.bad()
    if len(bad) == index.samples:
        features.remove()
        raise DataError(f"all {index.samples:,} images of {index.shown} are bad, so there are no features")
    description = settings | {
        "rows": index.samples - len(bad),
        "width": features.width,
        "bad": _reasons(index, decoder, bad),
    }
    dtype = np.dtype(settings["dtype"])
    writers: list[tuple[Path, Callable[[BinaryIO], None]]] = [
        (description_path(out), lambda file: _write_json(file, description)),
    ]
    if out.suffix == ".npy":
        writers.append((keys_path(out), lambda file: _write_keys(file, features, index)))
        writers.append((out, lambda file: _write_npy(file, features, dtype, description["rows"], description["width"])))
    else:
        writers.append((out, lambda file: _write_parquet(file, features, index, dtype, description)))
    try:
        for path, write in writers:
            aside = features.folder / path.name
            with atomic_file(aside) as file:
                write(file)
        for path, _ in writers:
            os.replace(features.folder / path.name, path)
    except OSError as error:
        advice = remedy(error, "make room")
        raise DataError(
            f"cannot write {out} ({error.strerror or error}); {advice} and run the same command again to continue"
        ) from None


def _reasons(index: ShardIndex, decoder: Decoder, bad: NDArray[np.int64]) -> list[dict[str, str]]:
    """Read bad images again; return key, path and reason of each."""
    reasons = {
        found.sample_id: found.reason
        for batch in (central_crop_stream(index, decoder, bad) if len(bad) else ())
        for found in batch.bad
    }
    unknown = "could not be read; remove the features and run the command again"
    return [
        {"key": index.key(row), "path": index.path(row), "reason": reasons.get(row, unknown)} for row in bad.tolist()
    ]


def _write_json(file: BinaryIO, description: dict[str, Any]) -> None:
    file.write((json.dumps(description, indent=1, ensure_ascii=False) + "\n").encode())


def _write_npy(file: BinaryIO, features: UnfinishedFeatures, dtype: np.dtype, rows: int, width: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(file, header)
    for _, found, good in features.chunks():
        file.write(_converted(found[good], dtype).tobytes())


def _write_keys(file: BinaryIO, features: UnfinishedFeatures, index: ShardIndex) -> None:
    """Write a line for each row: key, path and label, separated by tabs; tabs and newlines in paths are escaped."""
    for rows, _, good in features.chunks():
        keys, paths = index.names(rows.start, rows.stop)
        labels = index.label[rows.start : rows.stop].tolist()
        lines = zip(keys, paths, labels, good.tolist(), strict=True)
        text = "".join(f"{key}\t{path.translate(_ESCAPES)}\t{label}\n" for key, path, label, kept in lines if kept)
        file.write(text.encode())


def _write_parquet(
    file: BinaryIO, features: UnfinishedFeatures, index: ShardIndex, dtype: np.dtype, description: dict[str, Any]
) -> None:
    """Write a row group for each chunk, with the description and the names of the classes in the file's metadata."""
    kind = pa.list_(pa.from_numpy_dtype(dtype), description["width"])
    about = {name: value for name, value in description.items() if name != "bad"} | {"classes": index.classes}
    schema = pa.schema(
        {"key": pa.string(), "path": pa.string(), "label": pa.int32(), "feature": kind},
        metadata={"mimcl": json.dumps(about)},
    )
    with pq.ParquetWriter(file, schema) as writer:
        for rows, found, good in features.chunks():
            keys, paths = index.names(rows.start, rows.stop)
            labels = index.label[rows.start : rows.stop]
            names = (pa.array(column, pa.string()).filter(pa.array(good)) for column in (keys, paths))
            values = pa.array(_converted(found[good], dtype).reshape(-1))
            vectors = pa.FixedSizeListArray.from_arrays(values, type=kind)
            writer.write_batch(pa.record_batch([*names, pa.array(labels[good]), vectors], schema=schema))


def _converted(features: NDArray[np.float32], dtype: np.dtype) -> NDArray:
    with np.errstate(over="ignore"):
        converted = features.astype(dtype)
    if not np.array_equal(np.isfinite(converted), np.isfinite(features)):
        largest = float(np.abs(features).max())
        raise DataError(f"features of up to {largest:.3g} do not fit into {dtype}; give --dtype float32")
    return converted
