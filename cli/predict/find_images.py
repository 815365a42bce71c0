"""Find the images to classify: files, folders, and folders of shards, as indices that a Stream reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from mimcl.cli.data.images import is_packed, open_images
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.item_index import ItemIndex
from mimcl.pipeline.sources.folder import FileItemFactory, FolderTree
from mimcl.pipeline.sources.item import Item
from mimcl.pipeline.sources.names import from_fs, to_utf8
from mimcl.pipeline.sources.tree import has_image_ending, walk


def find_images(paths: Sequence[str | Path], split: str) -> list[ShardIndex]:
    """Return indices of all images, in the given order: one for consecutive files and folders, one for each shards.

    Folders are searched to the bottom for files that are named like images. Raises DataError if there are none.
    """
    found: list[ShardIndex] = []
    for packed, group in groupby(paths, is_packed):
        if packed:
            found += [open_images(path, split)[0] for path in group]
        elif items := [item for path in group for item in _items(Path(path))]:
            found.append(ItemIndex.of(Path(), items, []))
    if not found:
        raise DataError(f"{paths[0]} has no images; give image files, folders of images, or folders of shards")
    return found


def _items(path: Path) -> Iterator[Item]:
    """Yield the image at a path, or those below it, named as the user would: by the path as it was given."""
    make = FileItemFactory(Path())
    if path.is_dir():
        tree, around = FolderTree(path), from_fs(str(path))
        names = [name for name in walk(tree) if has_image_ending(name)]
        names = [f"{around}/{name}" for name in sorted(names, key=lambda name: name.split("/"))]
    else:
        names = [from_fs(str(path))]
    for name in names:
        yield make(name, to_utf8(name), -1)
