"""A tar of images as a source, or a tar with one tar per class like ILSVRC2012_img_train.tar; read in place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePath

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.archives.archive import archive_source
from mimcl.pipeline.sources.archives.tar_reader import Member, TarReader, tar_notes
from mimcl.pipeline.sources.item import RangeItem, Source
from mimcl.pipeline.sources.junk import is_junk
from mimcl.pipeline.sources.names import to_utf8
from mimcl.pipeline.sources.shard_files import is_compressed_tar, is_tar
from mimcl.pipeline.sources.tree import has_image_ending
from mimcl.pipeline.sources.webdataset import HEADER_THREADS, LABEL_KEY, sample_key, webdataset_images


def tar_images(path: Path, label_key: str = LABEL_KEY, unpacked: bool = False) -> Source:
    """Return the images of a tar as byte ranges of the file, in the order and with the labels of the unpacked folder.

    A tar that holds tars has one per class: each counts as a folder of its name. A tar with members KEY.cls, or any tar
    if `label_key` is not the default, is read as a shard of a webdataset unless it is to be read as `unpacked`. Raises
    DataError, also if a tar is compressed or truncated, if there are images beside the tars, if these are shards, or if
    a tar with a few KEY.cls may as well have class folders.
    """
    tar = TarReader(path)
    members = list(tar.members())
    notes = []
    if inner := _inner_tars(path, members):
        rest = set(members).difference(inner)
        if beside := sorted(member.name for member in rest if member.kind != "folder"):
            notes.append(
                f"skipped in {path.name} beside its tars: {len(beside):,} members, such as {to_utf8(beside[0])}"
            )
        with ThreadPoolExecutor(HEADER_THREADS) as pool:
            found = list(pool.map(partial(_inner_members, tar), inner))
        members = [
            member._replace(name=f"{outer.name[: -len('.tar')]}/{member.name}")
            for outer, of_outer in zip(inner, found, strict=True)
            for member in of_outer
        ]
        labels = (member.name for member in members if member.kind == "file" and member.name.endswith(".cls"))
        if not unpacked and (label := next(labels, None)):
            raise DataError(f"{path} holds shards of a webdataset ({to_utf8(label)}); unpack it and pack the folder")
    elif not unpacked and (label_key != LABEL_KEY or _is_webdataset(path, members)):
        return webdataset_images([path], label_key)
    places = (
        (member.name, member.kind, member.target if member.kind == "symbolic link" else (member.offset, member.nbytes))
        for member in members
    )
    source = archive_source(path, places, partial(_range_item, path), tar.modified)
    source.notes += notes + tar_notes(tar.oddities)
    return source


def _inner_tars(path: Path, members: list[Member]) -> list[Member]:
    """Return the tars that a tar holds. Raises DataError for images beside them, and for compressed tars instead."""
    files = [member for member in members if member.kind == "file" and not is_junk(member.name.rpartition("/")[2])]
    inner = [member for member in files if is_tar(member.name) and not is_compressed_tar(member.name)]
    image = next((member.name for member in files if has_image_ending(member.name)), None)
    if inner and image:
        raise DataError(
            f"{path} has images ({to_utf8(image)}) beside tars ({to_utf8(inner[0].name)}); unpack it, move one of the "
            "kinds elsewhere and pack the folder"
        )
    if not image and (compressed := next((member.name for member in files if is_compressed_tar(member.name)), None)):
        raise DataError(f"{path} has compressed tars ({to_utf8(compressed)}); unpack it and decompress them")
    return inner


def _is_webdataset(path: Path, members: list[Member]) -> bool:
    """Whether images have labels, KEY.cls. Raises DataError if some have none and lie in folders, as in classes."""
    files = [member.name for member in members if member.kind == "file"]
    labelled = {sample_key(name): name for name in files if name.endswith(".cls")}
    if not labelled:
        return False
    images = [name for name in files if has_image_ending(name)]
    without = [name for name in images if sample_key(name) not in labelled and PurePath(name).parent.name]
    if without:
        raise DataError(
            f"{path} has labels ({to_utf8(min(labelled.values()))}), but none for {len(without):,} of {len(images):,} "
            f"images ({to_utf8(without[0])}); give --source-kind webdataset, or tar if folders are classes"
        )
    return True


def _inner_members(tar: TarReader, outer: Member) -> list[Member]:
    return list(tar.members(outer.offset, outer.offset + outer.nbytes, outer.name))


def _range_item(path: Path, name: str, label: int, place: tuple[int, int]) -> RangeItem:
    offset, nbytes = place
    return RangeItem(name, label, nbytes, path, offset)
