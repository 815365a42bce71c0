"""Parquet files with images in a column, like data sets of the Hugging Face hub, as a source."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from mimcl.pipeline.files import DataError, open_regular
from mimcl.pipeline.sources.item import MAX_BYTES, Item, Source
from mimcl.pipeline.sources.labels import label_items
from mimcl.pipeline.sources.parquet_columns import NO_LABEL, UNREADABLE, Columns, find_columns
from mimcl.pipeline.sources.parquet_folders import parquet_files, partition_label

_group_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class RowItem(Item):
    """A row of a parquet file; `nbytes` is the mean of its row group, since the size is known only after reading."""

    exact: ClassVar[bool] = False
    file: Path
    column: str
    field: str  # of the column with the bytes, if it is a struct
    group: int
    row: int  # in the group

    def read(self) -> bytes:
        """Return the image's bytes. Raises OSError. A process that reads rows in order reads each row group once."""
        with _group_lock:  # so that threads do not read the same group several times
            try:
                images = _images(self.file, self.column, self.field, self.group)
            except UNREADABLE as error:
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
def _images(file: Path, column: str, field: str, group: int) -> pa.ChunkedArray:
    # Opened here, since Arrow encodes paths in UTF-8, whatever the locale.
    with open_regular(file) as content, pq.ParquetFile(content) as opened:
        leaf = f"{column}.{field}" if field else column
        found = opened.read_row_group(group, columns=[leaf], use_threads=False).column(column)
    if not field:
        return found
    return pa.chunked_array([chunk.field(field) for chunk in found.chunks], found.type.field(field).type)


def parquet_images(root: Path, image_column: str | None = None, label_column: str | None = None) -> Source:
    """Return the rows of a parquet file or of all below a folder; splits come from the words train, ... in their paths.

    An image is bytes, or a struct of bytes and path; a label is a number or a name, from a column or from a folder such
    as label=cat/. Columns that are not given are found by type and name; a `label_column` "none" ignores the labels.
    An item is named FILE/ROW or FILE/ROW/PATH. Raises DataError, listing the columns.
    """
    splits, notes = parquet_files(root)
    items: dict[str, list[RowItem]] = {split: [] for split in splits}
    labels: dict[str, list[int | str | None]] = {split: [] for split in splits}
    known: tuple[Path, Columns] | None = None  # of the first file with labels
    unlabelled: list[str] = []
    modified = 0
    for split, of_split in splits.items():
        for name, file in of_split:
            try:
                modified = max(modified, file.stat().st_mtime_ns)
                with open_regular(file) as content, pq.ParquetFile(content) as opened:
                    if not opened.metadata.num_rows:
                        notes.append(f"skipped, no rows: {name}")
                        continue
                    columns, label = _columns(file, name, opened, image_column, label_column)
                    if columns.label:
                        known = known or (file, columns)
                        _require_same(file, columns, *known)
                    elif label is None:
                        unlabelled.append(name)
                    for item, in_row in _rows(file, name, opened, columns):
                        items[split].append(item)
                        labels[split].append(in_row if columns.label else label)
            except UNREADABLE as error:
                raise DataError(f"{file} is not a readable parquet file ({_line(error)})") from None
    if not any(items.values()):
        raise DataError(f"{root} has no rows")
    if known and unlabelled:
        notes.append(f"{unlabelled[0]} has no column {known[1].label!r}" + " and others" * (len(unlabelled) > 1))
    source = label_items(items, labels, root)
    classes = known[1].names if known else None
    if classes is not None and not source.classes:  # numbers are positions in the metadata's list
        most = max(item.label for of_split in source.splits.values() for item in of_split)
        if most >= len(classes):
            raise DataError(f"{root}: label {most} is not one of the {len(classes):,} classes in its metadata")
        source.classes = classes
    source.notes[:0] = notes
    source.modified = modified
    return source


def _columns(
    file: Path, name: str, opened: pq.ParquetFile, image_column: str | None, label_column: str | None
) -> tuple[Columns, int | str | None]:
    """Return the columns of a file, and the label that its folders give to all rows."""
    in_folder, label = partition_label(name, label_column)
    if in_folder and (label_column is None or label_column not in opened.schema_arrow.names):
        columns = find_columns(file, opened, image_column, NO_LABEL)
        if label_column is None and (column := find_columns(file, opened, image_column, None).label):
            raise DataError(
                f"{file} has labels in its folder's name and in column {column!r}; choose with --label-column"
            )
        return columns, label
    return find_columns(file, opened, image_column, label_column), None


def _require_same(file: Path, columns: Columns, first_file: Path, first: Columns) -> None:
    for what, mine, other, hint in (
        ("label column", columns.label, first.label, "choose with --label-column, or rename"),
        ("image column", columns.image, first.image, "choose with --image-column, or rename"),
    ):
        if mine != other:
            raise DataError(f"{file} has {what} {mine!r}, but {first_file} has {other!r}; {hint} one of them")
    if columns.names != first.names:
        raise DataError(f"{file} has other classes in its metadata than {first_file}; pack it separately")


def _rows(
    file: Path, name: str, opened: pq.ParquetFile, columns: Columns
) -> Iterator[tuple[RowItem, int | str | None]]:
    before = 0
    wanted = ([f"{columns.image}.path"] if columns.has_path else []) + ([columns.label] if columns.label else [])
    for group in range(opened.num_row_groups):
        about = opened.metadata.row_group(group)
        rows = about.num_rows
        paths: Sequence[str | None] = [None] * rows
        found: Sequence[int | str | None] = [None] * rows
        if wanted:
            table = opened.read_row_group(group, columns=wanted, use_threads=False)
            if columns.label:
                found = _plain(table.column(columns.label))
            if columns.has_path:
                paths = [value and value["path"] for value in table.column(columns.image).to_pylist()]
        size = sum(
            column.total_uncompressed_size
            for column in map(about.column, range(about.num_columns))
            if column.path_in_schema == columns.leaf
        )
        nbytes = min(size // max(rows, 1), MAX_BYTES)
        for row in range(rows):
            item_name = f"{name}/{before + row:09d}" + (f"/{paths[row]}" if paths[row] else "")
            yield RowItem(item_name, -1, nbytes, file, columns.image, columns.field, group, row), found[row]
        before += rows


def _plain(column: pa.ChunkedArray) -> list[int | str | None]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.to_pylist()


def _line(error: BaseException) -> str:
    return f"{str(error).partition(chr(10))[0] or type(error).__name__:.200}"
