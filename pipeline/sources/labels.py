"""Labels and the names of classes: of two sources joined, by a class list, by the order that samples say.

In a source without names of classes a label of 0 or more is a number that the samples themselves have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mimcl.pipeline.files import DataError, open_regular
from mimcl.pipeline.sources.item import Item, Source

_MOST_TEXT = 1 << 30  # bytes of a list
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class ClassList:
    """The classes in order: the first word of each line, and the whole lines."""

    path: Path
    first: list[str]
    whole: list[str]

    def names(self, found: Sequence[str]) -> list[str]:
        """First words, or whole lines if the classes found are called so. Raises DataError for one that is lacking."""
        for names in (self.first, self.whole):
            if set(found) <= set(names):
                return names
        lacking = next(name for name in found if name not in set(self.first))
        raise DataError(f"class {lacking!r:.80} is not in the class list {self.path}; add a line for it")


def read_classes(path: Path) -> ClassList:
    """A file with a class a line; what follows its first word is its description. Raises DataError."""
    lines = [line for line in read_lines(path, "class list") if line]
    if not lines:
        raise DataError(f"the class list {path} is empty; give a class a line")
    first = [line.split()[0] for line in lines]
    whole = lines
    if len(set(first)) < len(first):
        if len(set(whole)) < len(whole):
            twice = next(line for place, line in enumerate(whole) if line in whole[:place])
            raise DataError(f"the class list {path} has {twice!r:.80} twice; give every class once")
        first = whole  # names of several words
    return ClassList(path, first, whole)


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a text file, stripped; `what` it is, for the DataError where it cannot be read."""
    try:
        with open_regular(path) as file:
            text = file.read(_MOST_TEXT + 1)
    except OSError as error:
        raise DataError(f"the {what} {path} cannot be read: {error.strerror or error}") from None
    if len(text) > _MOST_TEXT:
        raise DataError(f"the {what} {path} is larger than 1 GiB; it is no list")
    try:
        return [line.strip() for line in text.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError:
        raise DataError(f"the {what} {path} is not text in UTF-8") from None


def labels_of(
    items: Mapping[str, Sequence[Item]], labels: Mapping[str, Sequence[int | str | None]], where: object
) -> Source:
    """A source of items, split by split, with the labels that stand beside them: names, numbers or none.

    An empty name is none. Raises DataError for a mixture, and for numbers too large to be classes.
    """
    labels = {split: [None if label == "" else label for label in of_split] for split, of_split in labels.items()}
    kinds = {type(label) for of_split in labels.values() for label in of_split} - {type(None)}
    if kinds == {int, str}:
        raise DataError(f"{where}: some labels are numbers and some are names; pack them apart")
    if kinds == {str}:
        classes = sorted({label for of_split in labels.values() for label in of_split if label is not None})
        label_of: dict[int | str | None, int] = {name: number for number, name in enumerate(classes)}
    else:
        classes = []
        numbers = {label for of_split in labels.values() for label in of_split if label is not None}
        if max(numbers, default=0) >= _MOST_CLASSES:
            raise DataError(f"{where}: label {max(numbers)} is no class; more than {_MOST_CLASSES:,} are not taken")
        label_of = {number: max(number, -1) for number in numbers}
    label_of[None] = -1
    found = {
        split: [replace(item, label=label_of[label]) for item, label in zip(items[split], labels[split], strict=True)]
        for split in items
    }
    source = Source(found, classes)
    none = sum(item.label < 0 for of_split in found.values() for item in of_split)
    if none:
        source.notes.append(f"without a label: {none:,} images")
    return source


def join(train: Source, val: Source, where: object, given: ClassList | None = None) -> Source:
    """`train` with the one split of `val`, which comes from `where`, as its val split.

    Numbers on one side and names on the other go together where a class list is given. Raises DataError.
    """
    if "val" in train.splits:
        raise DataError(f"the source has a val split of its own beside --val {where}; leave --val out")
    if len(val.splits) > 1:
        raise DataError(f"--val {where} has {' and '.join(val.splits)}; give what holds the val images alone")
    (items,) = val.splits.values()
    if (numbered(train) and val.classes) or (numbered(val) and train.classes):
        if given is None:
            raise DataError(
                f"labels are numbers in one of the source and --val {where}, names in the other; give --classes"
            )
        train, val = named(train, given), named(val, given)
        (items,) = val.splits.values()
    classes = sorted({*train.classes, *val.classes})
    joined = {
        "train": _relabelled(train.splits["train"], train.classes, classes),
        "val": _relabelled(items, val.classes, classes),
    }
    return Source(joined, classes, [*train.notes, *val.notes], max(train.modified, val.modified))


def numbered(source: Source) -> bool:
    """Whether labels are numbers without names."""
    return not source.classes and any(item.label >= 0 for items in source.splits.values() for item in items)


def named(source: Source, classes: ClassList | None) -> Source:
    """The source with classes in the order of the list; numbers are positions in it, or without a list names.

    Raises DataError where the list lacks a class.
    """
    if classes is None:
        if numbered(source):
            most = max(item.label for items in source.splits.values() for item in items)
            source.classes = [str(number) for number in range(most + 1)]
        return source
    names = classes.names(source.classes)
    if numbered(source):
        most = max(item.label for items in source.splits.values() for item in items)
        if most >= len(names):
            raise DataError(
                f"label {most} is not in the class list {classes.path}: its {len(names):,} lines count from 0"
            )
    else:
        source.splits = {split: _relabelled(items, source.classes, names) for split, items in source.splits.items()}
    source.classes = list(names)
    return source


def relabelled(items: Sequence[Item], label_of: Callable[[int], int]) -> list[Item]:
    """The items with the labels that `label_of` gives for their positions."""
    return [
        item if item.label == (label := label_of(place)) else replace(item, label=label)
        for place, item in enumerate(items)
    ]


def _relabelled(items: Sequence[Item], old: Sequence[str], new: Sequence[str]) -> list[Item]:
    if list(old) == list(new[: len(old)]):
        return list(items)
    place = {name: number for number, name in enumerate(new)}
    moved = [place[name] for name in old]
    return relabelled(items, lambda n: moved[items[n].label] if items[n].label >= 0 else -1)
