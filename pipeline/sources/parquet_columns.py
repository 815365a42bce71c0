"""Find the columns of images and labels in a parquet file, by type, name and Hugging Face's metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mimcl.pipeline.files import DataError, open_regular

UNREADABLE = (OSError, ValueError, KeyError, MemoryError, pa.ArrowException)  # what a damaged file raises
LABELS = ("label", "labels", "cls", "class", "target")  # names of a label column without metadata
NO_LABEL = "none"  # instead of a label column
_CONVERSIONS = (  # of types that are not labels
    (pa.types.is_floating, "cast it to int64, with null where there is no label"),
    (pa.types.is_decimal, "cast it to int64"),
    (pa.types.is_boolean, "cast it to int8 or to names"),
    (pa.types.is_nested, "keep one number or name per image"),
    (pa.types.is_null, "it has no values"),
    (lambda kind: _is_bytes(kind), "cast it to string"),
)


class Columns(NamedTuple):
    """The column of images, and its field with the bytes if it is a struct; the label column if there is one."""

    image: str
    field: str  # "" if the column itself has the bytes
    has_path: bool  # whether the struct has the path of the image
    label: str | None
    names: list[str] | None  # of classes, from Hugging Face's metadata

    @property
    def leaf(self) -> str:
        """Path of the bytes in the parquet schema."""
        return f"{self.image}.{self.field}" if self.field else self.image


def find_columns(file: Path, opened: pq.ParquetFile, image: str | None, label: str | None) -> Columns:
    """Return the columns; `image` and `label` are given by the user. Raises DataError, listing the columns."""
    schema = opened.schema_arrow
    types = {column.name: column.type for column in schema}
    available = f"its columns are {', '.join(f'{name} ({kind})' for name, kind in types.items()):.400}"
    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise DataError(f"{file} has several columns named {twice[0]!r}; rename them")
    for option, given in (("--image-column", image), ("--label-column", None if label == NO_LABEL else label)):
        if given is not None and given not in types:
            raise DataError(f"{file} has no column {given!r} ({option}); {available}")
    if image is None:
        candidates = [name for name, kind in types.items() if bytes_field(kind) is not None]
        if len(candidates) != 1:
            candidates = [name for name in candidates if name == "image"] or candidates
        if not candidates:
            raise DataError(f"{file} has no column of images (bytes); {available}")
        if len(candidates) > 1:
            raise DataError(f"{file} has several columns of images; choose one with --image-column; {available}")
        (image,) = candidates
    field = bytes_field(types[image])
    if field is None:
        raise DataError(f"{file}: column {image!r} does not hold images (bytes); {available}")
    has_path = bool(field) and any(part.name == "path" and _is_text(part.type) for part in types[image])
    features = _features(schema)
    label = _label_column(file, types, features, label, available)
    names = features.get(label, {}).get("names") if label else None
    if not (isinstance(names, list) and names and all(type(name) is str for name in names)):
        names = None
    return Columns(image, field, has_path, label, names)


def _label_column(
    file: Path, types: dict[str, pa.DataType], features: dict[str, dict], given: str | None, available: str
) -> str | None:
    if given == NO_LABEL:
        return None
    candidates = [given] if given is not None else []
    candidates = candidates or [name for name in types if features.get(name, {}).get("_type") == "ClassLabel"]
    if not candidates:
        # Images beside the images, such as segmentation masks, are not labels, whatever their name.
        named = [name for name in types if name in LABELS and not bytes_field(types[name])]
        candidates = [name for name in named if _is_label(types[name])] or named
    for name in candidates:
        if not _is_label(types[name]):
            hint = next((hint for is_kind, hint in _CONVERSIONS if is_kind(types[name])), "cast it to int64 or string")
            raise DataError(
                f"{file}: column {name!r} has type {types[name]}, not numbers or names; {hint}, or give "
                f"--label-column {NO_LABEL}; {available}"
            )
    if len(candidates) > 1:
        raise DataError(f"{file} has several columns of labels; choose one with --label-column; {available}")
    return candidates[0] if candidates else None


def has_image_column(file: Path) -> bool:
    """Whether a parquet file has a column of bytes; True if it cannot be read, which reading it reports."""
    try:
        with open_regular(file) as stream, pq.ParquetFile(stream) as opened:
            return any(bytes_field(column.type) is not None for column in opened.schema_arrow)
    except UNREADABLE:
        return True


def _features(schema: pa.Schema) -> dict[str, dict]:
    """Return what Hugging Face's metadata say about the columns; empty if they are missing or unreadable."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: about for name, about in features.items() if isinstance(about, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def bytes_field(kind: pa.DataType) -> str | None:
    """Return the field of a column's type with an image's bytes, "" for the column itself; None if it has no bytes."""
    if pa.types.is_struct(kind):
        fields = [field.name for field in kind if _is_bytes(field.type)]
        return "bytes" if "bytes" in fields else fields[0] if len(fields) == 1 else None
    return "" if _is_bytes(kind) else None


def _is_bytes(kind: pa.DataType) -> bool:
    kind = _values(kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_text(kind: pa.DataType) -> bool:
    kind = _values(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_label(kind: pa.DataType) -> bool:
    return pa.types.is_integer(_values(kind)) or _is_text(kind)


def _values(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
