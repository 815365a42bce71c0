"""Open images to read in place: a split of packed shards, or of any source that `mimcl shard` takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mimcl.cli.data.sources import SourceOptions, open_source
from mimcl.cli.errors import ConfigError
from mimcl.pipeline.files import DataError
from mimcl.pipeline.remote.urls import url_of

if TYPE_CHECKING:
    from mimcl.pipeline.index import ShardIndex


def is_packed(source: str | Path) -> bool:
    """Whether it is a URL or a folder of shards that mimcl packed."""
    return url_of(source) is not None or (Path(source) / "dataset.json").exists()


def open_images(
    source: str | Path, split: str = "train", list_file: Path | None = None
) -> tuple[ShardIndex, list[str]]:
    """Return the index of a split, and notes for the user on how a source was read.

    Raises DataError if it cannot be read or has no such split, ConfigError for a list of packed images.
    """
    from mimcl.pipeline.index import ShardIndex

    if is_packed(source):
        if list_file:
            raise ConfigError(f"--list is for a folder of images, but {source} has packed shards; leave it out")
        return ShardIndex.load(source, split), []
    from mimcl.pipeline.item_index import ItemIndex

    found = open_source(Path(source), SourceOptions(list_file=list_file))
    if split not in found.splits:
        raise DataError(f"{source} has no {split} split; it has {', '.join(found.splits)}")
    index = ItemIndex.of(Path(source), found.splits[split], found.classes, split, found.modified)
    return index, found.notes
