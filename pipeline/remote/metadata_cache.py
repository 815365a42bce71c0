"""What of a remote data set is kept whole on this machine: its description, its indices, its prototype sets."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

from mimcl.pipeline.cache_dir import cache_folder
from mimcl.pipeline.files import DataError, atomic_file, open_regular
from mimcl.pipeline.remote.remote_folder import Missing, RemoteFolder
from mimcl.pipeline.verify_cache import check_once

_MOST_TEXT = 1 << 28  # bytes of a description
_BLOCK = 1 << 24


def mirror_of(url: str) -> Path:
    """The folder in the cache for what is kept of the data set at `url`."""
    return cache_folder() / "sets" / xxhash.xxh128_hexdigest(url.encode())


def fetch_description(url: str) -> Path:
    """Asks for dataset.json anew, since it says what all else must be; returns the mirror. Raises DataError."""
    remote, folder = RemoteFolder(url), mirror_of(url)
    try:
        content = remote.whole("dataset.json", _MOST_TEXT)
    except Missing:
        raise DataError(
            f"{remote.shown} is not a packed data set (no dataset.json); make one with `mimcl shard SRC` and upload it"
        ) from None
    with _alone(folder) as alone:
        if alone:
            _remove_left(folder / "dataset.json")
        _write(folder / "dataset.json", content)
    return folder


def fetch_index(url: str, split: str, digest: str) -> None:
    """Has SPLIT.arrow with that xxh128 lie in the mirror; fetched once. Raises DataError."""
    path = mirror_of(url) / f"{split}.arrow"
    with _alone(path.parent) as alone:
        if not _is(path, digest):
            if alone:
                _remove_left(path)
            RemoteFolder(url).download(path.name, path, digest)


def fetch_prototypes(url: str, name: str) -> Path:
    """Download the prototype set `name` of the data set at `url` if needed; returns its folder. Raises DataError."""
    local = mirror_of(url) / "prototypes" / name
    remote, there = RemoteFolder(url), f"prototypes/{name}"
    try:
        description = remote.whole(f"{there}/prototypes.json", _MOST_TEXT)
    except Missing:
        raise DataError(
            f"no prototypes in {remote.at(there)}: run `mimcl prototypes build --data {remote.shown}`"
        ) from None
    try:
        digests = json.loads(description)["xxh128"]
        # Names are joined to a folder: nothing but plain ones may stand here.
        if not all(
            Path(file).name == file and not file.startswith(".") and type(x) is str for file, x in digests.items()
        ):
            raise ValueError("a file name that no set has")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{remote.at(there)}/prototypes.json is damaged ({error!r:.80}); build the set again") from None
    with _alone(mirror_of(url)) as alone:
        if _read(local) != description or not all(_is(local / file, digest) for file, digest in digests.items()):
            if alone:
                _remove_left(local)
            _fetch_set(remote, there, local, description, digests)
    return local


def has_prototypes(url: str, name: str) -> bool:
    """Whether the data set at `url` has a prototype set of that name."""
    return RemoteFolder(url).exists(f"prototypes/{name}/prototypes.json")


def _fetch_set(remote: RemoteFolder, there: str, local: Path, description: bytes, digests: dict[str, str]) -> None:
    """Makes the folder aside and moves it into place whole."""
    aside = local.with_name(f".{local.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _make(aside)
        for name, digest in digests.items():
            remote.download(f"{there}/{name}", aside / name, digest)
        with suppress(Missing):  # nothing is computed from it
            _write(aside / "gallery.png", remote.whole(f"{there}/gallery.png", _MOST_TEXT))
        _write(aside / "prototypes.json", description)
        shutil.rmtree(local, ignore_errors=True)
        aside.rename(local)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_left(path: Path) -> None:
    """Removes what processes that were killed had begun to fetch for that place; indices have gigabytes."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """No other process changes the mirror while the block lasts; a killed one's lock is gone with it.

    False on a file system without locks: files are whole all the same.
    """
    _make(folder)
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            alone = True
        except OSError:
            alone = False
        yield alone
    finally:
        os.close(held)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made ({error.strerror}); name another folder in MIMCL_CACHE") from None


def _write(path: Path, content: bytes) -> None:
    try:
        with atomic_file(path) as file:
            file.write(content)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}); make room, or name another folder in MIMCL_CACHE"
        ) from None


def _read(folder: Path) -> bytes | None:
    try:
        return (folder / "prototypes.json").read_bytes()
    except OSError:
        return None


def _is(path: Path, digest: str) -> bool:
    """Whether a file has this xxh128. It is read again only where it is not as it was then: indices have gigabytes."""

    def check() -> None:
        found = xxhash.xxh128()
        while block := file.read(_BLOCK):
            found.update(block)
        if found.hexdigest() != digest:
            raise ValueError("another checksum")

    try:
        with open_regular(path) as file:
            check_once([file], digest, check, "xxh128")
    except (OSError, ValueError):
        return False
    return True
