"""Shards of a webdataset: their samples, found by the headers alone, and these as a source to be packed anew."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import RangeItem, Source
from mimcl.pipeline.sources.labels import labels_of
from mimcl.pipeline.sources.layout import recordable
from mimcl.pipeline.sources.splits import by_split
from mimcl.pipeline.sources.tar_headers import Member, OpenTar

IMAGES = ("jpg", "jpeg", "png", "webp")  # what an image's member is called after the key
_THREADS = 16  # that wait for the disk: headers lie far apart
_MOST_LABEL = 1 << 20  # bytes of a member that holds a label
LABEL_KEY = "label"


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of a shard: key, name and place of its image, and its label as it is written, if it has one."""

    key: str
    name: str  # of the image's member
    offset: int
    nbytes: int
    label: int | str | None


@dataclass(frozen=True, slots=True)
class Flaw:
    """A sample that cannot be used, and why."""

    name: str
    reason: str


def samples(tar: OpenTar, label_key: str = LABEL_KEY) -> Iterator[Sample | Flaw]:
    """The samples of a shard in its order: members that follow one another with the same name up to the first dot.

    Members without a name before a dot belong to no sample, as webdataset has it: README, macOS's ._0001.jpg.
    The label is what KEY.cls says or, without one, the field `label_key` of KEY.json; the other way round where that is
    another field than the usual one, which somebody asked for. Raises DataError for no tar.
    """
    key, group = "", []
    seen: set[str] = set()
    for member in tar.members():
        own = key_of(member.name)
        if member.kind != "file" or own is None:
            continue
        if own != key and group:
            yield _sample(tar, key, group, label_key, seen)
            group = []
        key = own
        group.append(member)
    if group:
        yield _sample(tar, key, group, label_key, seen)


def key_of(name: str) -> str | None:
    """As webdataset has it: the path up to the first dot of its last part; None where nothing is before a dot."""
    folder, slash, base = name.rpartition("/")
    stem, dot, _ = base.partition(".")
    return folder + slash + stem if stem and dot else None


def _extension(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def _sample(tar: OpenTar, key: str, group: list[Member], label_key: str, seen: set[str]) -> Sample | Flaw:
    by_extension = {_extension(member.name): member for member in reversed(group)}  # the first of a name counts
    image = next((member for member in group if _extension(member.name) in IMAGES), None)
    if image is None:
        return Flaw(recordable(group[0].name), f"a sample without an image ({', '.join(IMAGES)})")
    name = recordable(image.name)
    if key in seen:
        return Flaw(name, f"its key {recordable(key)!r} has been in this shard before")
    seen.add(key)
    if image.nbytes < 1:
        return Flaw(name, "empty file")
    label = None
    holders = ("cls", "json") if label_key == LABEL_KEY else ("json", "cls")
    if holder := next((by_extension[kind] for kind in holders if kind in by_extension), None):
        try:
            label = _label(tar, holder, label_key)
        except (ValueError, RecursionError):
            return Flaw(name, f"its label cannot be read from {recordable(holder.name)}")
    return Sample(recordable(key), name, image.offset, image.nbytes, label)


def _label(tar: OpenTar, member: Member, label_key: str) -> int | str | None:
    """Raises ValueError where there is none to be read; None for a json without the field."""
    if member.nbytes > _MOST_LABEL:
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


def has_labels(names: Iterable[str]) -> bool:
    """Whether members of these names are of a webdataset: some are called KEY.cls."""
    return any(name.endswith(".cls") for name in names)


def missing(paths: Sequence[Path]) -> None:
    """Raises DataError for the first shard that does not exist."""
    for path in paths:
        if not path.exists():
            raise DataError(f"shard {path} does not exist; take it out of the list, or bring it back")


def webdataset(paths: Sequence[Path], label_key: str = LABEL_KEY, where: Path | None = None) -> Source:
    """The samples of shards at `paths`, to be packed anew: splits by the words train, val, ... in the shards' names.

    Names are relative to `where`, a folder, if it is given; an item is called SHARD/MEMBER. Samples without a usable
    image or label are passed over with a note. Raises DataError for a shard that is missing or no tar.
    """
    missing(paths)
    called = {path: path.relative_to(where).as_posix() if where else path.name for path in paths}
    splits, notes = by_split(where or paths[0], ((called[path], path) for path in paths))
    items: dict[str, list[RangeItem]] = {}
    labels: dict[str, list[int | str | None]] = {}
    modified, flaws = 0, []
    with ThreadPoolExecutor(_THREADS) as pool:
        for split, shards in splits.items():
            items[split], labels[split] = [], []
            for path, (found, changed) in zip(shards, pool.map(partial(_listed, label_key), shards), strict=True):
                modified = max(modified, changed)
                for sample in found:
                    if isinstance(sample, Flaw):
                        flaws.append(f"{recordable(called[path])}/{sample.name}: {sample.reason}")
                    else:
                        name = f"{recordable(called[path])}/{sample.name}"
                        items[split].append(RangeItem(name, -1, sample.nbytes, path, sample.offset))
                        labels[split].append(sample.label)
    if not any(items.values()):
        raise DataError("; ".join([f"{where or paths[0]} holds no samples with images", *flaws[:1]]))
    if flaws:
        notes.append(f"passed over: samples, {len(flaws):,} in number, for example {flaws[0]}")
    source = labels_of(items, labels, where or paths[0])
    if len(paths) > 1 and not any(label is not None for of_split in labels.values() for label in of_split):
        notes.append("no shard has labels; if each of these tars is a class, pack one tar that holds them all")
    source.notes[:0] = notes
    source.modified = modified
    return source


def _listed(label_key: str, path: Path) -> tuple[list[Sample | Flaw], int]:
    tar = OpenTar(path)
    return list(samples(tar, label_key)), tar.modified
