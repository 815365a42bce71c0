"""Assign labels and class names: from labels beside the samples, from a class list, or from two joined sources.

In a source without class names, labels of 0 and above are the numbers that the samples came with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import Item, Source
from mimcl.pipeline.sources.text_lines import read_text, text_lines

_MAX_CLASSES = 1_000_000
NO_CLASS_FOLDERS = "{}/ has no class folders: its images have no label"  # a note about a split


@dataclass(frozen=True)
class ClassList:
    """The classes in order: the first word of each line, and the whole lines."""

    path: Path
    first: list[str]
    whole: list[str]

    def names(self, found: Sequence[str]) -> list[str]:
        """Return the first words or the whole lines, whichever include all of `found`. Raises DataError if neither."""
        for names in (self.first, self.whole):
            if set(found) <= set(names):
                return names
        missing = next(name for name in found if name not in set(self.first))
        raise DataError(f"class {missing!r:.80} is not in the class list {self.path}; add a line for it")


def read_class_list(path: Path) -> ClassList:
    """Read a file with one class a line: its name is the first word, the rest describes it. Raises DataError."""
    lines = [line for line in text_lines(read_text(path, "class list"), path) if line]
    if not lines:
        raise DataError(f"the class list {path} is empty; give one class a line")
    first = [line.split()[0] for line in lines]
    whole = lines
    if len(set(first)) < len(first):
        if len(set(whole)) < len(whole):
            twice = next(line for place, line in enumerate(whole) if line in whole[:place])
            raise DataError(f"the class list {path} lists {twice!r:.80} twice; list every class once")
        first = whole  # first words are ambiguous: names have several words
    return ClassList(path, first, whole)


def label_items(
    items: Mapping[str, Sequence[Item]], labels: Mapping[str, Sequence[int | str | None]], where: object
) -> Source:
    """Return a source of items with their labels, which are names or numbers; None, "" and negatives are no label.

    Raises DataError if names and numbers are mixed, or a number is too large for a class.
    """
    distinct = {label for of_split in labels.values() for label in of_split if label not in (None, "")}
    classes = sorted(label for label in distinct if isinstance(label, str))
    numbers = [label for label in distinct if isinstance(label, int)]
    if classes and numbers:
        raise DataError(f"{where}: some labels are numbers and some are names; pack them separately")
    if numbers and max(numbers) >= _MAX_CLASSES:
        raise DataError(f"{where}: label {max(numbers)} is too large; labels must be below {_MAX_CLASSES:,}")
    label_of: dict[int | str | None, int] = {None: -1, "": -1}
    label_of.update({name: number for number, name in enumerate(classes)})
    label_of.update({number: max(number, -1) for number in numbers})
    found = {
        split: [replace(item, label=label_of[label]) for item, label in zip(items[split], labels[split], strict=True)]
        for split in items
    }
    source = Source(found, classes)
    if unlabelled := sum(item.label < 0 for of_split in found.values() for item in of_split):
        source.notes.append(f"without a label: {unlabelled:,} images")
    return source


def join_val(train: Source, val: Source, where: object, class_list: ClassList | None = None) -> Source:
    """Join `train` and the only split of `val`, which comes from `where`, as train and val of one source.

    If one has numbers and the other names as labels, a class list is needed. Raises DataError.
    """
    if "val" in train.splits:
        raise DataError(f"the source already has a val split; leave out --val {where}")
    if len(val.splits) > 1:
        raise DataError(f"--val {where} has {' and '.join(val.splits)}; give one split only")
    (items,) = val.splits.values()
    if (_has_numbers(train) and val.classes) or (_has_numbers(val) and train.classes):
        if class_list is None:
            raise DataError(
                f"labels are numbers in one of the source and --val {where}, but names in the other; give --classes"
            )
        train, val = apply_class_list(train, class_list), apply_class_list(val, class_list)
        (items,) = val.splits.values()
    classes = sorted({*train.classes, *val.classes})
    joined = {
        "train": _remap_labels(train.splits["train"], train.classes, classes),
        "val": _remap_labels(items, val.classes, classes),
    }
    return Source(joined, classes, [*train.notes, *val.notes], max(train.modified, val.modified))


def _has_numbers(source: Source) -> bool:
    """Whether labels are numbers without class names."""
    return not source.classes and any(item.label >= 0 for items in source.splits.values() for item in items)


def apply_class_list(source: Source, classes: ClassList | None) -> Source:
    """Put the classes in the order of the list; labels that are numbers are positions in it.

    Without a list, numbers become class names. Raises DataError if a class is not in the list.
    """
    if classes is None:
        if _has_numbers(source):
            largest = max(item.label for items in source.splits.values() for item in items)
            source.classes = [str(number) for number in range(largest + 1)]
        return source
    names = classes.names(source.classes)
    if _has_numbers(source):
        largest = max(item.label for items in source.splits.values() for item in items)
        if largest >= len(names):
            raise DataError(
                f"label {largest} is not in the class list {classes.path}: it has {len(names):,} lines, counted from 0"
            )
    else:
        source.splits = {split: _remap_labels(items, source.classes, names) for split, items in source.splits.items()}
    source.classes = list(names)
    return source


def relabel(items: Sequence[Item], label_of: Callable[[int], int]) -> list[Item]:
    """Return the items with labels `label_of(position)`."""
    return [
        item if item.label == (label := label_of(place)) else replace(item, label=label)
        for place, item in enumerate(items)
    ]


def _remap_labels(items: Sequence[Item], old: Sequence[str], new: Sequence[str]) -> list[Item]:
    if list(old) == list(new[: len(old)]):
        return list(items)
    label_of = {name: number for number, name in enumerate(new)}
    moved = [label_of[name] for name in old]
    return relabel(items, lambda n: moved[items[n].label] if items[n].label >= 0 else -1)
