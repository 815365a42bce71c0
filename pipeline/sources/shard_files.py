"""Find the shards of a webdataset in a folder, and refuse the ones that cannot be read in place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.names import from_fs, to_utf8
from mimcl.pipeline.sources.splits import find_files, split_folders, split_of

_TAR = re.compile(r"\.tar(\.(?:gz|bz2|xz|zst|lz4|lz|lzma|br|z))?$|(\.(?:tgz|tbz2?|txz|tzst|tlz|taz))$", re.IGNORECASE)


def is_tar(name: str) -> bool:
    """Whether a file is a tar by its name, compressed or not."""
    return _TAR.search(name) is not None


def is_compressed_tar(name: str) -> bool:
    """Whether a file is a compressed tar by its name."""
    found = _TAR.search(name)
    return found is not None and any(found.groups())


def find_shards(folder: Path) -> list[Path]:
    """Return the tars below a folder, sorted by their paths' parts.

    Raises DataError if some are compressed, unless their decompressed tar lies beside them, and if some are in folders
    of splits and some beside these, which may be their origin. Tars of the test split do not matter.
    """
    named = {from_fs(path.relative_to(folder).as_posix()): path for path in find_files(folder, "")}
    shards = [name for name in named if is_tar(name) and not is_compressed_tar(name)]
    needed = [name for name in shards if split_of(name) != "test"]
    splits = split_folders(folder, {name.partition("/")[0] for name in needed if "/" in name})
    beside = [name for name in needed if name.partition("/")[0] not in splits.values()]
    if "train" in splits and beside:
        raise DataError(
            f"{folder} has shards in {to_utf8(splits['train'])}/ and beside it ({to_utf8(beside[0])}); move some of "
            "them elsewhere, or name the ones to read with --list"
        )
    for name in filter(is_compressed_tar, named):
        if split_of(name) != "test" and _TAR.sub(".tar", name) not in named:
            raise DataError(
                f"{folder} has compressed shards ({to_utf8(name)}), whose images cannot be read in place; "
                "decompress them, or move them elsewhere"
            )
    return [named[name] for name in shards]


def require_shards(paths: Sequence[Path]) -> None:
    """Raise DataError for the first shard that does not exist or is compressed by its name."""
    for path in paths:
        if not path.exists():
            raise DataError(f"shard {path} not found; restore it, or remove it from the list")
        if is_compressed_tar(path.name):
            raise DataError(f"shard {path} is compressed, so its images cannot be read in place; decompress it")
