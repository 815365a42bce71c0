"""Find out what kind of source a file or a folder is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mimcl.pipeline.dataset_json import read_dataset
from mimcl.pipeline.files import DataError, open_regular
from mimcl.pipeline.sources.folder import FolderTree
from mimcl.pipeline.sources.names import to_fs, to_utf8
from mimcl.pipeline.sources.parquet_columns import has_image_column
from mimcl.pipeline.sources.shard_files import is_compressed_tar
from mimcl.pipeline.sources.splits import split_folders
from mimcl.pipeline.sources.tree import has_image_ending, walk

FolderKind = Literal["folder", "webdataset", "parquet"]
FileKind = Literal["tar", "zip", "parquet"]
_MAGIC: dict[bytes, FileKind] = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"PK\x07\x08": "zip",  # of the first of several parts
    b"PK00PK": "zip",  # made as a part, but single
    b"PAR1": "parquet",
}
_ENDINGS: dict[str, FolderKind] = {".tar": "webdataset", ".parquet": "parquet"}
_ARCHIVES = (".zip", ".7z", ".rar")
_WORDS = {"folder": "images", "webdataset": "shards", "parquet": "parquet"}


def folder_kind(tree: FolderTree) -> FolderKind:
    """Return folder (of images), webdataset or parquet.

    If there are splits, only their folders are searched: archives beside them may be what they were unpacked from.
    Parquet files without a column of images, such as metadata.parquet, do not count beside images. Raises DataError if
    the folder has files of two kinds.
    """
    splits = split_folders(tree.root, tree.folders(""))
    found: dict[FolderKind, str] = {}  # an example of each kind
    archive = ""
    for folder in [f"{name}/" for name in splits.values()] if "train" in splits else [""]:
        for path in walk(tree, folder):
            if kind := "folder" if has_image_ending(path) else _ENDINGS.get(path[path.rfind(".") :].lower()):
                found.setdefault(kind, path)
            elif path.lower().endswith(_ARCHIVES) or is_compressed_tar(path):
                archive = path
    if {"folder", "parquet"} <= found.keys() and not has_image_column(tree.root / to_fs(found["parquet"])):
        del found["parquet"]
    if {"folder", "webdataset"} <= found.keys() and _is_packed(tree.root):
        del found["folder"]  # pictures of prototype sets
    if len(found) > 1:
        examples = " and ".join(f"{_WORDS[kind]} ({to_utf8(path)})" for kind, path in sorted(found.items()))
        options = " or ".join(f"--source-kind {kind}" for kind in sorted(found))
        raise DataError(f"{tree.root} has {examples}; give {options}")
    if not found and archive:
        advice = "decompress them" if is_compressed_tar(archive) else "unpack them, or give a zip itself"
        raise DataError(f"{tree.root} has no images, only archives such as {to_utf8(archive)}; {advice}")
    return next(iter(found), "folder")


def file_kind(path: Path) -> FileKind:
    """Return zip, parquet or else tar by a file's first bytes; a zip may begin with others, and is named .zip then.

    Raises DataError for a text, and if it is unreadable.
    """
    try:
        with open_regular(path) as file:
            start = file.read(512)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    if not start:
        raise DataError(f"{path} is empty; download it again")
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    if kind is None and path.suffix.lower() == ".zip":  # such as a zip that unpacks itself
        kind = "zip"
    if kind is None and b"\0" not in start and start.isascii():
        raise DataError(f"{path} is a text file; to pack a list of images, give --list {path} and their folder as SRC")
    return kind or "tar"


def _is_packed(folder: Path) -> bool:
    """Whether the shards were packed by mimcl."""
    try:
        return bool(read_dataset(folder))
    except DataError:
        return False
