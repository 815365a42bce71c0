"""A tar of images as a source, or a tar of a tar for each class, as ILSVRC2012_img_train.tar: read in place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePath

from mimcl.pipeline.sources.archive import archived
from mimcl.pipeline.sources.item import RangeItem, Source
from mimcl.pipeline.sources.tar_headers import Member, OpenTar
from mimcl.pipeline.sources.webdataset import LABEL_KEY, has_labels, webdataset

_THREADS = 16  # that wait for the disk: headers lie far apart


def tar_images(path: Path, label_key: str = LABEL_KEY) -> Source:
    """The images of a tar: byte ranges of the file, in the order and with the labels that the unpacked folder has.

    If all that it holds are tars, each of these is the folder of a class, called as the tar is, and in the tar's own
    folder where train/ holds some of them but not all. If it has members KEY.cls, or `label_key` is not the usual one,
    it is taken for a shard of a webdataset. Raises DataError, also for a tar that is compressed or cut off.
    """
    tar = OpenTar(path)
    members = list(tar.members())
    files = [member for member in members if member.kind == "file"]
    if files and all(member.name.endswith(".tar") for member in files):
        with ThreadPoolExecutor(_THREADS) as pool:
            inner = list(pool.map(lambda member: _within(tar, member), files))
        members = [
            Member(f"{folder}/{member.name}", *member[1:])
            for folder, found in zip(_unpacked([outer.name for outer in files]), inner, strict=True)
            for member in found
        ]
    elif label_key != LABEL_KEY or has_labels(member.name for member in files):
        return webdataset([path], label_key)
    places = ((member.name, member.kind, (member.offset, member.nbytes)) for member in members)
    return archived(path, places, partial(_range, path), tar.modified)


def _within(tar: OpenTar, outer: Member) -> list[Member]:
    return list(tar.members(outer.offset, outer.offset + outer.nbytes, outer.name))


def _unpacked(names: list[str]) -> list[str]:
    """The folder that each tar is taken for."""
    folders = [PurePath(name.removesuffix(".tar")) for name in names]
    has_splits = len({"train" in folder.parent.parts for folder in folders}) > 1
    return [str(folder) if has_splits else folder.name for folder in folders]


def _range(path: Path, name: str, label: int, place: tuple[int, int]) -> RangeItem:
    offset, nbytes = place
    return RangeItem(name, label, nbytes, path, offset)
