"""Parquet files with images in a column, like data sets of the Hugging Face hub, as a source."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import MAX_BYTES, Item, Source
from mimcl.pipeline.sources.labels import label_items
from mimcl.pipeline.sources.names import from_fs, to_utf8
from mimcl.pipeline.sources.splits import find_files, group_by_split

_UNREADABLE = (OSError, ValueError, KeyError, MemoryError, pa.ArrowException)
_LABELS = ("label", "labels", "cls", "class", "target")  # names of a label column without metadata
_group_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class RowItem(Item):
    """A row of a parquet file; `nbytes` is the mean of its row group, since the size is known only after reading."""

    exact: ClassVar[bool] = False
    file: Path
    column: str  # dotted, where the bytes are a field of a struct
    group: int
    row: int  # in the group

    def read(self) -> bytes:
        """Return the image's bytes. Raises OSError. A process that reads rows in order reads each row group once."""
        with _group_lock:  # so that threads do not read the same group several times
            try:
                images = _images(self.file, self.column, self.group)
            except _UNREADABLE as error:
                raise OSError(f"cannot read its row group ({_line(error)})") from None
        if self.row >= len(images):
            raise OSError("the file has fewer rows than it had")
        data = images[self.row].as_py()
        if data is None:
            raise OSError("no image in this row")
        if len(data) > MAX_BYTES:
            raise OSError("larger than 2 GiB")
        return data


@lru_cache(maxsize=2)  # at the end of a group, threads still need the previous one
def _images(file: Path, column: str, group: int) -> pa.ChunkedArray:
    with pq.ParquetFile(file) as opened:
        found = opened.read_row_group(group, columns=[column], use_threads=False).column(0)
    if not pa.types.is_struct(found.type):
        return found
    return pa.chunked_array([chunk.field("bytes") for chunk in found.chunks], found.type.field("bytes").type)


class _Columns(NamedTuple):
    image: str
    path: str | None  # of the image
    label: str | None
    names: list[str] | None  # of classes, from Hugging Face's metadata


def parquet_images(root: Path, image_column: str | None = None, label_column: str | None = None) -> Source:
    """Return the rows of a parquet file or of all below a folder; splits come from the words train, ... in their paths.

    An image is bytes, or a struct of bytes and path; a label is a number or a name. Columns that are not given are
    found by type and name. An item is named FILE/ROW or FILE/ROW/PATH. Raises DataError, listing the columns.
    """
    files = find_files(root, ".parquet") if root.is_dir() else [root]
    base = root if root.is_dir() else root.parent
    if not files:
        raise DataError(f"{root} has no .parquet files; give a folder with some")
    splits, notes = group_by_split(root, ((file.relative_to(base).as_posix(), file) for file in files))
    items: dict[str, list[RowItem]] = {split: [] for split in splits}
    labels: dict[str, list[int | str | None]] = {split: [] for split in splits}
    classes: list[str] | None = None
    modified, first = 0, None
    for split, of_split in splits.items():
        for file in of_split:
            name = to_utf8(from_fs(file.relative_to(base).as_posix()))
            try:
                modified = max(modified, file.stat().st_mtime_ns)
                with pq.ParquetFile(file) as opened:
                    columns = _columns(file, opened, image_column, label_column)
                    if first is not None and columns.names != first.names:
                        raise DataError(f"{file} has other classes in its metadata than {files[0]}; pack it separately")
                    first = first or columns
                    classes = columns.names
                    for item, label in _rows(file, name, opened, columns):
                        items[split].append(item)
                        labels[split].append(label)
            except _UNREADABLE as error:
                raise DataError(f"{file} is not a readable parquet file ({_line(error)})") from None
    if not any(items.values()):
        raise DataError(f"{root} has no rows")
    source = label_items(items, labels, root)
    if classes is not None and not source.classes:  # numbers are positions in the metadata's list
        most = max(item.label for of_split in source.splits.values() for item in of_split)
        if most >= len(classes):
            raise DataError(f"{root}: label {most} is not one of the {len(classes):,} classes in its metadata")
        source.classes = classes
    source.notes[:0] = notes
    source.modified = modified
    return source


def _rows(
    file: Path, name: str, opened: pq.ParquetFile, columns: _Columns
) -> Iterator[tuple[RowItem, int | str | None]]:
    before = 0
    wanted = [column for column in (columns.path, columns.label) if column]
    for group in range(opened.num_row_groups):
        about = opened.metadata.row_group(group)
        rows = about.num_rows
        paths: Sequence[str | None] = [None] * rows
        found: Sequence[int | str | None] = [None] * rows
        if wanted:
            table = opened.read_row_group(group, columns=wanted, use_threads=False)
            if columns.label:
                found = _plain(table.column(columns.label))
            if columns.path:
                paths = [value and value["path"] for value in table.column(columns.path.rpartition(".")[0]).to_pylist()]
        size = sum(
            column.total_uncompressed_size
            for column in map(about.column, range(about.num_columns))
            if column.path_in_schema == columns.image
        )
        nbytes = min(size // max(rows, 1), MAX_BYTES)
        for row in range(rows):
            item_name = f"{name}/{before + row:09d}" + (f"/{paths[row]}" if paths[row] else "")
            yield RowItem(item_name, -1, nbytes, file, columns.image, group, row), found[row]
        before += rows


def _plain(column: pa.ChunkedArray) -> list[int | str | None]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.to_pylist()


def _columns(file: Path, opened: pq.ParquetFile, image: str | None, label: str | None) -> _Columns:
    schema = opened.schema_arrow
    types = {field.name: field.type for field in schema}
    available = f"its columns are {', '.join(f'{name} ({kind})' for name, kind in types.items()):.400}"
    for option, given in (("--image-column", image), ("--label-column", label)):
        if given is not None and given not in types:
            raise DataError(f"{file} has no column {given!r} ({option}); {available}")
    features = _features(schema)
    if image is None:
        candidates = [name for name, kind in types.items() if _bytes_in(kind) is not None]
        if len(candidates) != 1:
            candidates = [name for name in candidates if name == "image"] or candidates
        if not candidates:
            raise DataError(f"{file} has no column of images (bytes); {available}")
        if len(candidates) > 1:
            raise DataError(f"{file} has several columns of images; choose one with --image-column; {available}")
        (image,) = candidates
    inside = _bytes_in(types[image])
    if inside is None:
        raise DataError(f"{file}: column {image!r} does not hold images (bytes); {available}")
    with_path = (
        inside and "path" in [field.name for field in types[image]] and _is_text(types[image].field("path").type)
    )
    if label is None:
        candidates = [name for name in types if features.get(name, {}).get("_type") == "ClassLabel"]
        candidates = candidates or [name for name in types if name in _LABELS and _is_label(types[name])]
        if len(candidates) > 1:
            raise DataError(f"{file} has several columns of labels; choose one with --label-column; {available}")
        label = candidates[0] if candidates else None
    if label is not None and not _is_label(types[label]):
        raise DataError(f"{file}: column {label!r} does not hold numbers or names; {available}")
    names = features.get(label, {}).get("names") if label else None
    if not (isinstance(names, list) and names and all(type(name) is str for name in names)):
        names = None
    return _Columns(image + inside, f"{image}.path" if with_path else None, label, names)


def has_image_column(file: Path) -> bool:
    """Whether a parquet file has a column of bytes; True if it cannot be read, which reading it reports."""
    try:
        with pq.ParquetFile(file) as opened:
            return any(_bytes_in(field.type) is not None for field in opened.schema_arrow)
    except _UNREADABLE:
        return True


def _features(schema: pa.Schema) -> dict[str, dict]:
    """Return what Hugging Face's metadata say about the columns; empty if they are missing or unreadable."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: about for name, about in features.items() if isinstance(about, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _bytes_in(kind: pa.DataType) -> str | None:
    """Return the suffix of the column's name for the field with an image's bytes; None if the type has no bytes."""
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        return ".bytes" if "bytes" in fields and _is_bytes(fields["bytes"]) else None
    return "" if _is_bytes(kind) else None


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_label(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_integer(kind) or _is_text(kind)


def _line(error: BaseException) -> str:
    return f"{str(error).partition(chr(10))[0] or type(error).__name__:.200}"
