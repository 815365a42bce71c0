"""Keep local copies of the metadata of remote data sets: description, indices, prototype sets."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import xxhash

from mimcl.pipeline.cache_dir import cache_dir
from mimcl.pipeline.files import DataError, NoPrototypesError, NotPackedError, atomic_file, open_regular, remedy
from mimcl.pipeline.folder_lock import FolderLock
from mimcl.pipeline.remote.refusals import NotFound
from mimcl.pipeline.remote.remote_folder import RemoteFolder
from mimcl.pipeline.verify_cache import check_once

_MAX_TEXT_BYTES = 1 << 28  # of a description


def metadata_folder(url: str) -> Path:
    """Return the folder in the cache for the metadata of the data set at `url`."""
    return cache_dir() / "sets" / xxhash.xxh128_hexdigest(url.encode())


def fetch_description(url: str) -> Path:
    """Fetch dataset.json, always anew, and return the folder that holds it. Raises DataError."""
    remote, folder = RemoteFolder(url), metadata_folder(url)
    try:
        content = remote.read_whole("dataset.json", _MAX_TEXT_BYTES)
    except NotFound:
        raise NotPackedError(remote.shown) from None
    with _locked(folder) as locked:
        if locked:
            _remove_leftovers(folder / "dataset.json")
        _write(folder / "dataset.json", content)
    return folder


def fetch_index(url: str, split: str, digest: str) -> None:
    """Fetch SPLIT.arrow unless the local copy has xxh128 `digest`. Raises DataError."""
    path = metadata_folder(url) / f"{split}.arrow"
    with _locked(path.parent) as locked:
        if not _has_digest(path, digest):
            if locked:
                _remove_leftovers(path)
            RemoteFolder(url).download(path.name, path, digest)


def fetch_prototypes(url: str, name: str) -> Path:
    """Fetch the prototype set `name` unless the local copy is up to date; returns its folder. Raises DataError."""
    local = metadata_folder(url) / "prototypes" / name
    remote, remote_name = RemoteFolder(url), f"prototypes/{name}"
    try:
        description = remote.read_whole(f"{remote_name}/prototypes.json", _MAX_TEXT_BYTES)
    except NotFound:
        raise NoPrototypesError(f"no prototypes in {remote.address(remote_name)}") from None
    try:
        digests = json.loads(description)["xxh128"]
        # The names are joined to a folder: allow only plain ones.
        if not all(
            Path(file).name == file and not file.startswith(".") and type(x) is str for file, x in digests.items()
        ):
            raise ValueError("invalid file name")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{remote.address(remote_name)}/prototypes.json is damaged ({error!r:.80}); build the set again"
        ) from None
    with _locked(metadata_folder(url)) as locked:
        if _description(local) != description or not all(
            _has_digest(local / file, digest) for file, digest in digests.items()
        ):
            if locked:
                _remove_leftovers(local)
            _fetch_set(remote, remote_name, local, description, digests)
    return local


def has_prototypes(url: str, name: str) -> bool:
    """Whether the data set at `url` has a prototype set of that name."""
    return RemoteFolder(url).exists(f"prototypes/{name}/prototypes.json")


def _fetch_set(
    remote: RemoteFolder, remote_name: str, local: Path, description: bytes, digests: dict[str, str]
) -> None:
    """Fetch a prototype set into a temporary folder, then rename that."""
    aside = local.with_name(f".{local.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _make(aside)
        for name, digest in digests.items():
            remote.download(f"{remote_name}/{name}", aside / name, digest)
        with suppress(NotFound):  # only for looking at
            _write(aside / "gallery.png", remote.read_whole(f"{remote_name}/gallery.png", _MAX_TEXT_BYTES))
        _write(aside / "prototypes.json", description)
        shutil.rmtree(local, ignore_errors=True)
        aside.rename(local)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(path: Path) -> None:
    """Remove partial downloads of killed processes; indices have gigabytes."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock the folder against other processes; yield False on a file system without locks.

    Without the lock files are still complete, but may be fetched several times.
    """
    _make(folder)
    with FolderLock(folder) as lock:
        lock.acquire()
        yield lock.held


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        advice = remedy(error, "set MIMCL_CACHE to another folder")
        raise DataError(f"{folder} cannot be created ({error.strerror}); {advice}") from None


def _write(path: Path, content: bytes) -> None:
    try:
        with atomic_file(path) as file:
            file.write(content)
    except OSError as error:
        advice = remedy(error, "free some space, or set MIMCL_CACHE to another folder")
        raise DataError(f"{path} cannot be written ({error.strerror}); {advice}") from None


def _description(folder: Path) -> bytes | None:
    try:
        return (folder / "prototypes.json").read_bytes()
    except OSError:
        return None


def _has_digest(path: Path, digest: str) -> bool:
    """Whether a file has this xxh128; an unchanged file is hashed only once, since indices have gigabytes."""

    def check() -> None:
        if hashlib.file_digest(file, xxhash.xxh128).hexdigest() != digest:
            raise ValueError("checksum mismatch")

    try:
        with open_regular(path) as file:
            check_once([file], digest, check, "xxh128")
    except (OSError, ValueError):
        return False
    return True
