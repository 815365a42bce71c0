"""A tar of images as a source, or a tar with one tar per class like ILSVRC2012_img_train.tar; read in place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from mimcl.pipeline.sources.archive import archive_source
from mimcl.pipeline.sources.item import RangeItem, Source
from mimcl.pipeline.sources.tar_headers import Member, TarReader
from mimcl.pipeline.sources.webdataset import HEADER_THREADS, LABEL_KEY, has_labels, webdataset_images


def tar_images(path: Path, label_key: str = LABEL_KEY) -> Source:
    """Return the images of a tar as byte ranges of the file, in the order and with the labels of the unpacked folder.

    A tar that holds only tars has one per class: each counts as a folder of its name. A tar with members KEY.cls, or
    any tar if `label_key` is not the default, is read as a shard of a webdataset. Raises DataError, also if the tar is
    compressed or truncated.
    """
    tar = TarReader(path)
    members = list(tar.members())
    files = [member for member in members if member.kind == "file"]
    if files and all(member.name.endswith(".tar") for member in files):
        with ThreadPoolExecutor(HEADER_THREADS) as pool:
            inner = list(pool.map(partial(_inner_members, tar), files))
        members = [
            Member(f"{outer.name.removesuffix('.tar')}/{member.name}", *member[1:])
            for outer, found in zip(files, inner, strict=True)
            for member in found
        ]
    elif label_key != LABEL_KEY or has_labels(member.name for member in files):
        return webdataset_images([path], label_key)
    places = ((member.name, member.kind, (member.offset, member.nbytes)) for member in members)
    return archive_source(path, places, partial(_range_item, path), tar.modified)


def _inner_members(tar: TarReader, outer: Member) -> list[Member]:
    return list(tar.members(outer.offset, outer.offset + outer.nbytes, outer.name))


def _range_item(path: Path, name: str, label: int, place: tuple[int, int]) -> RangeItem:
    offset, nbytes = place
    return RangeItem(name, label, nbytes, path, offset)
