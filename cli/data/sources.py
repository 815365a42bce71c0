"""Open the source given to `mimcl shard`: a folder, an archive, parquet, webdataset shards, or a list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mimcl.cli.errors import ConfigError
from mimcl.pipeline.files import DataError
from mimcl.pipeline.remote.urls import is_address

if TYPE_CHECKING:
    from mimcl.pipeline.sources.folder import FolderTree
    from mimcl.pipeline.sources.item import Source


SourceKind = Literal["folder", "tar", "zip", "parquet", "webdataset"]
_SHOWN = {
    "folder": "a folder of images",
    "tar": "a tar",
    "zip": "a zip",
    "parquet": "parquet",
    "webdataset": "a webdataset",
}


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source. The columns are for parquet, `label_key` is a field of a webdataset's KEY.json.

    Without a `kind` the source's files decide; it does not concern `val`.
    """

    list_file: Path | None = None
    classes: Path | None = None
    val: Path | None = None
    val_labels: Path | None = None
    holdout: float = 0.0
    image_column: str | None = None
    label_column: str | None = None
    label_key: str | None = None
    kind: SourceKind | None = None

    def __post_init__(self) -> None:
        if self.kind not in (None, *_SHOWN):
            raise ConfigError(f"--source-kind is {self.kind!r}; choose one of {', '.join(_SHOWN)}")


def open_source(path: Path, options: SourceOptions = SourceOptions()) -> Source:
    """Open a source of any kind, with labels, classes and splits as the options say.

    Raises DataError if it cannot be read, and ConfigError for conflicting options.
    """
    from mimcl.pipeline.sources.holdout import hold_out
    from mimcl.pipeline.sources.label_files.class_list import read_class_list
    from mimcl.pipeline.sources.label_files.text_lines import read_text
    from mimcl.pipeline.sources.label_files.val_labels import label_val
    from mimcl.pipeline.sources.labels import apply_class_list, classes_without_train, join_val

    if options.val and options.holdout:
        raise ConfigError("--val and --holdout both make a val split; give one of them only")
    # Read first: it is small, so a mistake in it is found before millions of files are listed.
    classes = read_class_list(options.classes) if options.classes else None
    if options.list_file and options.kind:
        raise ConfigError("--list and --source-kind cannot be combined: a list has either images or shards")
    found = [_find(path, options.kind)] if not options.list_file else []
    if options.val:
        found.append(_find(options.val))
    kinds = {source.kind for source in found}
    shown = "read from a list" if options.list_file else _SHOWN[found[0].kind]
    if (options.image_column or options.label_column) and "parquet" not in kinds:
        raise ConfigError(f"--image-column and --label-column are for parquet, but {path} is {shown}")
    if options.label_key and not (options.list_file or kinds & {"webdataset", "tar"}):
        raise ConfigError(f"--label-key is for webdataset, but {path} is {shown}")
    source = _open_list(path, options) if options.list_file else _open(found[0], options)
    if "train" not in source.splits:
        raise DataError(
            f"{path} has no train split, only {', '.join(source.splits)}; give it as --val of another source"
        )
    if options.val:
        source = join_val(source, _open(found[-1], options), options.val, class_list=classes)
    source = apply_class_list(source, classes)
    if options.val_labels:
        source = label_val(source, read_text(options.val_labels, "label file"), options.val_labels, classes is not None)
    elif options.val and source.classes and all(item.label < 0 for item in source.splits["val"]):
        source.notes.append(f"{options.val} has no classes: its images have no label; give them with --val-labels")
    source = hold_out(source, options.holdout, path)
    source.notes += classes_without_train(source)
    return source


@dataclass(frozen=True)
class _Found:
    """A source whose kind is known; a folder may have been listed for that."""

    path: Path
    kind: SourceKind
    chosen: bool  # by an option
    tree: FolderTree | None = None


def _find(path: Path, kind: SourceKind | None = None) -> _Found:
    """Find out what a source is, unless its `kind` is given. Raises DataError."""
    if is_address(path):
        raise DataError(f"{path} is not local; download it first (--data takes URLs of packed shards)")
    if not path.exists():
        raise DataError(f"{path} not found; give a folder of images, a tar, a zip, parquet or a folder of shards")
    from mimcl.pipeline.sources.kinds import file_kind, folder_kind

    if path.is_dir():
        from mimcl.pipeline.sources.folder import FolderTree

        if kind in ("tar", "zip"):
            raise DataError(f"{path} is a folder; --source-kind {kind} is for a file")
        tree = FolderTree(path)
        return _Found(path, kind or folder_kind(tree), kind is not None, tree)
    if kind == "folder":
        raise DataError(f"{path} is a file; --source-kind folder is for a folder")
    return _Found(path, kind or file_kind(path), kind is not None)


def _open(found: _Found, options: SourceOptions) -> Source:
    path, kind = found.path, found.kind
    if kind == "folder" and found.tree:
        from mimcl.pipeline.sources.folder import tree_source

        return tree_source(found.tree)
    if kind == "parquet":
        from mimcl.pipeline.sources.parquet import parquet_images

        return parquet_images(path, options.image_column, options.label_column)
    if kind == "zip":
        from mimcl.pipeline.sources.archives.zips import zip_images

        return zip_images(path)
    from mimcl.pipeline.sources.archives.tars import tar_images
    from mimcl.pipeline.sources.shard_files import find_shards
    from mimcl.pipeline.sources.webdataset import LABEL_KEY, webdataset_images

    label_key = options.label_key or LABEL_KEY
    if kind == "tar":
        return tar_images(path, label_key, unpacked=found.chosen)
    if not path.is_dir():
        return webdataset_images([path], label_key)
    if not (shards := find_shards(path)):
        raise DataError(f"{path} has no shards (.tar); leave out --source-kind webdataset")
    source = webdataset_images(shards, label_key, path)
    return source if options.classes else _with_known_classes(source, path)


def _open_list(folder: Path, options: SourceOptions) -> Source:
    from mimcl.pipeline.sources.listed import listed_images, read_list
    from mimcl.pipeline.sources.names import to_fs
    from mimcl.pipeline.sources.webdataset import LABEL_KEY, webdataset_images

    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder of the files in --list")
    assert options.list_file
    listing = read_list(options.list_file, folder)
    if listing.lists_shards:
        return webdataset_images(
            [folder / to_fs(name) for name in listing.labels], options.label_key or LABEL_KEY, folder
        )
    return listed_images(folder, listing)


def _with_known_classes(source: Source, folder: Path) -> Source:
    """Name the classes by dataset.json if the folder was packed by mimcl and the labels fit."""
    from mimcl.pipeline.dataset_json import read_dataset
    from mimcl.pipeline.sources.label_files.class_list import ClassList, Reading
    from mimcl.pipeline.sources.labels import apply_class_list

    if not (folder / "dataset.json").is_file():
        return source
    try:
        classes = next(part["classes"] for part in read_dataset(folder)["splits"].values())
        known = ClassList(folder / "dataset.json", classes, [Reading("", classes, first_number=0)])
        return apply_class_list(source, known) if classes else source
    except DataError:  # not packed by mimcl, or with other shards since
        return source
