"""Find the samples in shards of a webdataset by reading headers only, and use them as a source."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.archives.tar_reader import Member, TarReader, tar_notes
from mimcl.pipeline.sources.item import RangeItem, Source
from mimcl.pipeline.sources.labels import label_items
from mimcl.pipeline.sources.names import from_fs, to_utf8
from mimcl.pipeline.sources.shard_files import require_shards
from mimcl.pipeline.sources.splits import group_by_split

IMAGES = ("jpg", "jpeg", "png", "webp")  # extensions of a sample's image
HEADER_THREADS = 16  # they mostly wait for the disk: headers are far apart
_SHOWN_EXTENSIONS = 5
_MAX_LABEL_BYTES = 1 << 20  # of a member with a label
LABEL_KEY = "label"


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of a shard: key, name and byte range of its image, and its label as written, if any."""

    key: str
    name: str  # of the image's member
    offset: int
    nbytes: int
    label: int | str | None


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that cannot be used, with the reason."""

    name: str
    reason: str


def iter_samples(tar: TarReader, label_key: str = LABEL_KEY) -> Iterator[Sample | BadSample]:
    """Yield the samples of a shard in order: consecutive members with the same name up to the first dot.

    Members without a name before a dot (README, macOS's ._0001.jpg) are ignored, as webdataset does. A hard link is the
    file that it links to, so offsets may descend. The label comes from KEY.cls, else from the field `label_key` of
    KEY.json; a `label_key` that is not the default comes first. Raises DataError if the file is not a tar.
    """
    key = ""
    group: list[Member] = []
    seen: set[str] = set()
    for member in tar.members():
        own = sample_key(member.name)
        if member.kind == "folder" or own is None:
            continue
        if own != key and group:
            yield _sample(tar, key, group, label_key, seen)
            group = []
        key = own
        group.append(member)
    if group:
        yield _sample(tar, key, group, label_key, seen)


def sample_key(name: str) -> str | None:
    """Return the key as webdataset does: the path up to the first dot of its last part; None if nothing precedes it."""
    folder, slash, base = name.rpartition("/")
    stem, dot, _ = base.partition(".")
    return folder + slash + stem if stem and dot else None


def _extension(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def _sample(tar: TarReader, key: str, group: list[Member], label_key: str, seen: set[str]) -> Sample | BadSample:
    by_extension = {_extension(member.name): member for member in reversed(group)}  # the first of each extension counts
    image = next((member for member in group if _extension(member.name) in IMAGES), None)
    if image is None:
        found = ", ".join(map(to_utf8, list(by_extension)[::-1][:_SHOWN_EXTENSIONS]))
        return BadSample(
            to_utf8(group[0].name),
            f"no image in the sample: after the first dot its names have {found}, not {', '.join(IMAGES)}",
        )
    name = to_utf8(image.name)
    if image.kind != "file":
        return BadSample(name, f"a {image.kind}, not a file")
    if key in seen:
        return BadSample(name, f"its key {to_utf8(key)!r} occurs twice in this shard")
    seen.add(key)
    if image.nbytes < 1:
        return BadSample(name, "empty file")
    label = None
    holders = ("cls", "json") if label_key == LABEL_KEY else ("json", "cls")
    if holder := next((by_extension[kind] for kind in holders if kind in by_extension), None):
        try:
            label = _label(tar, holder, label_key)
        except (ValueError, RecursionError):
            return BadSample(name, f"cannot read its label from {to_utf8(holder.name)}")
    return Sample(to_utf8(key), name, image.offset, image.nbytes, label)


def _label(tar: TarReader, member: Member, label_key: str) -> int | str | None:
    """Return the label, or None if the json lacks the field. Raises ValueError if it cannot be read."""
    if member.kind != "file" or member.nbytes > _MAX_LABEL_BYTES:
        raise ValueError
    text = tar.read(member.offset, member.nbytes).decode()
    if _extension(member.name) == "cls":
        text = text.strip()
        return int(text) if text.removeprefix("-").isdecimal() else text
    content = json.loads(text)
    label = content.get(label_key) if isinstance(content, dict) else None
    if label is not None and type(label) not in (int, str):
        raise ValueError
    return label


def webdataset_images(paths: Sequence[Path], label_key: str = LABEL_KEY, where: Path | None = None) -> Source:
    """Return the samples of the shards at `paths`; splits come from the words train, val, ... in the shards' names.

    An item is named SHARD/MEMBER, relative to the folder `where` if that is given. Samples without a usable image or
    label are skipped with a note. Raises DataError if a shard is missing or not a tar.
    """
    require_shards(paths)
    names = {path: from_fs(path.relative_to(where).as_posix() if where else path.name) for path in paths}
    splits, notes = group_by_split(where or paths[0], ((names[path], path) for path in paths))
    items: dict[str, list[RangeItem]] = {}
    labels: dict[str, list[int | str | None]] = {}
    modified = 0
    bad: list[str] = []
    oddities: list[tuple[str, str]] = []
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        for split, shards in splits.items():
            items[split], labels[split] = [], []
            for path, (found, changed, odd) in zip(
                shards, pool.map(partial(_read_headers, label_key), shards), strict=True
            ):
                modified = max(modified, changed)
                oddities += odd
                for sample in found:
                    if isinstance(sample, BadSample):
                        bad.append(f"{to_utf8(names[path])}/{sample.name}: {sample.reason}")
                    else:
                        name = f"{to_utf8(names[path])}/{sample.name}"
                        items[split].append(RangeItem(name, -1, sample.nbytes, path, sample.offset))
                        labels[split].append(sample.label)
    if not any(items.values()):
        raise DataError("; ".join([f"{where or paths[0]} has no samples with images", *bad[:1]]))
    if bad:
        notes.append(f"skipped: {len(bad):,} samples, for example {bad[0]}")
    source = label_items(items, labels, where or paths[0])
    if len(paths) > 1 and not any(label is not None for of_split in labels.values() for label in of_split):
        notes.append("no shard has labels; if each of these tars is a class, put them into one tar and pack that")
    source.notes[:0] = notes + tar_notes(oddities)
    source.modified = modified
    return source


def _read_headers(label_key: str, path: Path) -> tuple[list[Sample | BadSample], int, list[tuple[str, str]]]:
    tar = TarReader(path)
    return list(iter_samples(tar, label_key)), tar.modified, tar.oddities
