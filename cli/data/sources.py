"""What `mimcl shard` is given, and how it is opened: a folder, an archive, parquet, shards of others, a list."""

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

_LOOKED_AT = 1000  # entries of a folder, to find out what it holds
_FOLDERS = 16  # in it that are looked into
_MAGIC = {b"PK\x03\x04": "zip", b"PK\x05\x06": "zip", b"PAR1": "parquet"}


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source. Columns are of parquet, `label_key` is a field of a webdataset's json."""

    list_file: Path | None = None
    classes: Path | None = None
    val: Path | None = None
    val_labels: Path | None = None
    holdout: float = 0.0
    image_column: str | None = None
    label_column: str | None = None
    label_key: str | None = None


def open_source(path: Path, options: SourceOptions = SourceOptions()) -> Source:
    """The images at `path`, whatever holds them, with labels, classes and splits as the options say.

    Raises DataError with one line for what cannot be read, ConfigError for options that contradict one another.
    """
    from mimcl.pipeline.sources.labels import apply_class_list, join_val, read_class_list
    from mimcl.pipeline.sources.layout import hold_out
    from mimcl.pipeline.sources.val_labels import label_val

    if options.val and options.holdout:
        raise ConfigError("--val gives a val split and --holdout makes one; leave one of them out")
    # Read first: it is small, and a mistake in it is found before a source of millions has been listed.
    classes = read_class_list(options.classes) if options.classes else None
    kinds = [source_kind(path, options.list_file is not None)]
    if options.val:
        kinds.append(source_kind(options.val))
    for given, what, kind in (
        (options.image_column or options.label_column, "--image-column and --label-column belong", "parquet"),
        (options.label_key, "--label-key belongs", "webdataset"),
    ):
        if given and kind not in kinds and not (kind == "webdataset" and {"list", "tar"} & set(kinds)):
            raise ConfigError(f"{what} to {kind}, and {path} is {_ARTICLES[kinds[0]]}")
    source = _opened(path, kinds[0], options)
    if "train" not in source.splits:
        raise DataError(
            f"{path} has no train split, only {', '.join(source.splits)}; give it with --val beside another"
        )
    if options.val:
        source = join_val(source, _opened(options.val, kinds[1], options), options.val, class_list=classes)
    source = apply_class_list(source, classes)
    if options.val_labels:
        source = label_val(source, options.val_labels, classes is not None)
    elif options.val and source.classes and all(item.label < 0 for item in source.splits["val"]):
        source.notes.append(f"{options.val} has no classes: its images get no label; --val-labels gives them")
    return hold_out(source, options.holdout, path)


_ARTICLES = {
    "images": "a folder of images",
    "parquet": "parquet",
    "webdataset": "a folder of shards",
    "tar": "a tar",
    "zip": "a zip",
    "list": "read by a list",
}


def source_kind(path: Path, has_list: bool = False) -> str:
    """images, parquet or webdataset for a folder, parquet, zip or tar for a file, list where one is given."""
    if has_list:
        if not path.is_dir():
            raise DataError(f"{path} is not a folder; --list names files in it")
        return "list"
    if path.is_dir():
        return _kind_of_folder(path)
    if is_address(path):
        raise DataError(f"{path} is not on this machine; fetch it first (shards elsewhere are for --data)")
    if not path.exists():
        raise DataError(f"{path} does not exist; give a folder of images, a tar, a zip, parquet or a folder of shards")
    from mimcl.pipeline.files import open_regular

    try:
        with open_regular(path) as file:
            start = file.read(512)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    if not start:
        raise DataError(f"{path} is empty; fetch it again")
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), "tar")
    if kind == "tar" and b"\0" not in start and start.isascii():
        raise DataError(f"{path} is a text; a list of images goes with --list {path}, and SRC is their folder")
    return kind


def _kind_of_folder(folder: Path) -> str:
    """By the first files that it holds: parquet and tars lie at the top or two folders below, as the hub has them.

    Beside a train/ they may be what was unpacked, so it alone is looked into.
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
    entries = list(islice(folder.iterdir(), _LOOKED_AT))
    yield from (entry.name for entry in entries if entry.suffix in (".parquet", ".tar"))
    if depth and len(entries) < _LOOKED_AT:
        folders = sorted(entry for entry in entries if not entry.name.startswith(".") and entry.is_dir())
        for entry in folders[:_FOLDERS]:
            yield from _files(entry, depth - 1)


def _opened(path: Path, kind: str, options: SourceOptions) -> Source:
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
    from mimcl.pipeline.sources.splits import find_files
    from mimcl.pipeline.sources.tars import tar_images
    from mimcl.pipeline.sources.webdataset import LABEL_KEY, webdataset_images

    label_key = options.label_key or LABEL_KEY
    if kind == "tar":
        return tar_images(path, label_key)
    if kind == "webdataset":
        source = webdataset_images(find_files(path, ".tar"), label_key, path)
        return source if options.classes else _with_known_classes(source, path)
    listing = read_list(options.list_file, path)
    if listing.lists_shards:
        return webdataset_images([path / name for name in listing.labels], label_key, path)
    return listed_images(path, listing)


def _with_known_classes(source: Source, folder: Path) -> Source:
    """With the classes of the data set that these shards are, if they are one and its classes are theirs."""
    from mimcl.pipeline.dataset_json import read_dataset
    from mimcl.pipeline.sources.labels import ClassList, apply_class_list

    if not (folder / "dataset.json").is_file():
        return source
    try:
        classes = next(part["classes"] for part in read_dataset(folder)["splits"].values())
        return apply_class_list(source, ClassList(folder / "dataset.json", classes, classes)) if classes else source
    except DataError:  # not this program's, or other shards than it says
        return source
