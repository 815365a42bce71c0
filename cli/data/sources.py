"""Open the source given to `mimcl shard`: a folder, an archive, parquet, webdataset shards, or a list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mimcl.cli.errors import ConfigError
from mimcl.pipeline.files import DataError
from mimcl.pipeline.remote.urls import is_address

if TYPE_CHECKING:
    from mimcl.pipeline.sources.item import Source

_MAX_ENTRIES = 1000  # of a folder, read to find out its kind
_MAX_SUBFOLDERS = 16
_MAGIC = {b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"PAR1": "parquet"}


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source. The columns are for parquet, `label_key` is a field of a webdataset's KEY.json."""

    list_file: Path | None = None
    classes: Path | None = None
    val: Path | None = None
    val_labels: Path | None = None
    holdout: float = 0.0
    image_column: str | None = None
    label_column: str | None = None
    label_key: str | None = None


def open_source(path: Path, options: SourceOptions = SourceOptions()) -> Source:
    """Open a source of any kind, with labels, classes and splits as the options say.

    Raises DataError if it cannot be read, and ConfigError for conflicting options.
    """
    from mimcl.pipeline.sources.class_list import read_class_list
    from mimcl.pipeline.sources.labels import apply_class_list, classes_without_train, join_val
    from mimcl.pipeline.sources.layout import hold_out
    from mimcl.pipeline.sources.text_lines import read_text
    from mimcl.pipeline.sources.val_labels import label_val

    if options.val and options.holdout:
        raise ConfigError("--val and --holdout both make a val split; give one of them only")
    # Read first: it is small, so a mistake in it is found before millions of files are listed.
    classes = read_class_list(options.classes) if options.classes else None
    kinds = [source_kind(path, options.list_file is not None)]
    if options.val:
        kinds.append(source_kind(options.val))
    for given, flags, kind in (
        (options.image_column or options.label_column, "--image-column and --label-column are", "parquet"),
        (options.label_key, "--label-key is", "webdataset"),
    ):
        if given and kind not in kinds and not (kind == "webdataset" and {"list", "tar"} & set(kinds)):
            raise ConfigError(f"{flags} for {kind}, but {path} is {_KIND_NAMES[kinds[0]]}")
    source = _open(path, kinds[0], options)
    if "train" not in source.splits:
        raise DataError(
            f"{path} has no train split, only {', '.join(source.splits)}; give it as --val of another source"
        )
    if options.val:
        source = join_val(source, _open(options.val, kinds[1], options), options.val, class_list=classes)
    source = apply_class_list(source, classes)
    if options.val_labels:
        source = label_val(source, read_text(options.val_labels, "label file"), options.val_labels, classes is not None)
    elif options.val and source.classes and all(item.label < 0 for item in source.splits["val"]):
        source.notes.append(f"{options.val} has no classes: its images have no label; give them with --val-labels")
    source = hold_out(source, options.holdout, path)
    source.notes += classes_without_train(source)
    return source


_KIND_NAMES = {
    "images": "a folder of images",
    "parquet": "parquet",
    "webdataset": "a folder of shards",
    "tar": "a tar",
    "zip": "a zip",
    "list": "read from a list",
}


def source_kind(path: Path, has_list: bool = False) -> str:
    """Return images, parquet or webdataset for a folder; parquet, zip or tar for a file; list if one is given."""
    if has_list:
        if not path.is_dir():
            raise DataError(f"{path} is not a folder; give the folder of the files in --list")
        return "list"
    if path.is_dir():
        return _kind_of_folder(path)
    if is_address(path):
        raise DataError(f"{path} is not local; download it first (--data takes URLs of packed shards)")
    if not path.exists():
        raise DataError(f"{path} not found; give a folder of images, a tar, a zip, parquet or a folder of shards")
    from mimcl.pipeline.files import open_regular

    try:
        with open_regular(path) as file:
            start = file.read(512)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    if not start:
        raise DataError(f"{path} is empty; download it again")
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "tar")
    if kind == "tar" and b"\0" not in start and start.isascii():
        raise DataError(f"{path} is a text file; to pack a list of images, give --list {path} and their folder as SRC")
    return kind


def _kind_of_folder(folder: Path) -> str:
    """Decide by the first files: parquet and tars are at the top or up to two folders below, as on the hub.

    If there is a train/, only that is searched: archives beside it may be what it was unpacked from.
    """
    try:
        train = folder / "train"
        for found in _files(train if train.is_dir() else folder, depth=2):
            if found.endswith(".parquet"):
                return "parquet"
            if found.endswith(".tar"):
                return "webdataset"
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from None
    return "images"


def _files(folder: Path, depth: int) -> Iterator[str]:
    entries = list(islice(folder.iterdir(), _MAX_ENTRIES))
    yield from (entry.name for entry in entries if entry.suffix in (".parquet", ".tar"))
    if depth and len(entries) < _MAX_ENTRIES:
        folders = sorted(entry for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        for entry in folders[:_MAX_SUBFOLDERS]:
            yield from _files(entry, depth - 1)


def _open(path: Path, kind: str, options: SourceOptions) -> Source:
    if kind == "images":
        from mimcl.pipeline.sources.folder import image_folder

        return image_folder(path)
    if kind == "parquet":
        from mimcl.pipeline.sources.parquet import parquet_images

        return parquet_images(path, options.image_column, options.label_column)
    if kind == "zip":
        from mimcl.pipeline.sources.zips import zip_images

        return zip_images(path)
    from mimcl.pipeline.sources.listed import listed_images, read_list
    from mimcl.pipeline.sources.names import to_fs
    from mimcl.pipeline.sources.splits import find_files
    from mimcl.pipeline.sources.tars import tar_images
    from mimcl.pipeline.sources.webdataset import LABEL_KEY, webdataset_images

    label_key = options.label_key or LABEL_KEY
    if kind == "tar":
        return tar_images(path, label_key)
    if kind == "list" and options.list_file:
        listing = read_list(options.list_file, path)
        if listing.lists_shards:
            return webdataset_images([path / to_fs(name) for name in listing.labels], label_key, path)
        return listed_images(path, listing)
    source = webdataset_images(find_files(path, ".tar"), label_key, path)
    return source if options.classes else _with_known_classes(source, path)


def _with_known_classes(source: Source, folder: Path) -> Source:
    """Name the classes by dataset.json if the folder was packed by mimcl and the labels fit."""
    from mimcl.pipeline.dataset_json import read_dataset
    from mimcl.pipeline.sources.class_list import ClassList, Reading
    from mimcl.pipeline.sources.labels import apply_class_list

    if not (folder / "dataset.json").is_file():
        return source
    try:
        classes = next(part["classes"] for part in read_dataset(folder)["splits"].values())
        known = ClassList(folder / "dataset.json", classes, [Reading("", classes, first_number=0)])
        return apply_class_list(source, known) if classes else source
    except DataError:  # not packed by mimcl, or with other shards since
        return source
