"""Assign labels and class names: from labels beside the samples, from a class list, or from two joined sources.

In a source without class names, labels of 0 and above are the numbers that the samples came with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import Item, Source
from mimcl.pipeline.sources.label_files.class_list import ClassList, Reading

_MAX_CLASSES = 1_000_000
_NAMES_IN_NOTE = 5
NO_CLASS_FOLDERS = "{}/ has no class folders: its images have no label"  # a note about a split


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
    notes: list[str] = []
    if (_has_numbers(train) and val.classes) or (_has_numbers(val) and train.classes):
        if class_list is None:
            raise DataError(
                f"labels are numbers in one of the source and --val {where}, but names in the other; give --classes"
            )
        reading, notes = class_list.choose([*train.classes, *val.classes])  # one reading for both
        class_list = replace(class_list, readings=[reading])
        train, val = apply_class_list(train, class_list), apply_class_list(val, class_list)
        (items,) = val.splits.values()
    classes = sorted({*train.classes, *val.classes})
    joined = {
        "train": _remap_labels(train.splits["train"], train.classes, classes),
        "val": _remap_labels(items, val.classes, classes),
    }
    return Source(
        joined, classes, list(dict.fromkeys([*train.notes, *val.notes, *notes])), max(train.modified, val.modified)
    )


def _has_numbers(source: Source) -> bool:
    """Whether labels are numbers without class names."""
    return not source.classes and any(item.label >= 0 for items in source.splits.values() for item in items)


def apply_class_list(source: Source, classes: ClassList | None) -> Source:
    """Put the classes in the order of the list; labels that are numbers are positions in it, or its own numbers.

    Without a list, numbers become class names. Raises DataError if a class is not in the list, or if it is unclear
    which line a number means.
    """
    if classes is None:
        if _has_numbers(source):
            largest = max(item.label for items in source.splits.values() for item in items)
            source.classes = [str(number) for number in range(largest + 1)]
        return source
    reading, notes = classes.choose(source.classes)
    if _has_numbers(source):
        first, more = _first_number(source, reading, classes.path)
        notes += more
        if first:  # so that positions count from 0
            source.splits = {
                split: [item if item.label < 0 else replace(item, label=item.label - first) for item in items]
                for split, items in source.splits.items()
            }
    else:
        source.splits = {
            split: _remap_labels(items, source.classes, reading.names) for split, items in source.splits.items()
        }
    source.notes += [note for note in notes if note not in source.notes]
    source.classes = list(reading.names)
    return source


def _first_number(source: Source, reading: Reading, path: Path) -> tuple[int, list[str]]:
    """Return the number that means the first class of the list, and notes."""
    used = {item.label for items in source.splits.values() for item in items} - {-1}
    least, largest, count = min(used), max(used), len(reading.names)
    firsts = [first for first in sorted({0, reading.first_number or 0}) if first <= least and largest < first + count]
    if not firsts:
        raise DataError(f"label {largest} is not in the class list {path}: it has {count:,} lines, counted from 0")
    if len(firsts) > 1:
        raise DataError(
            f"labels {least} to {largest} may be positions in the class list {path}, counted from 0, or the numbers in "
            "its lines, from 1; remove these numbers, or number the lines from 0"
        )
    if firsts[0]:
        return 1, [f"labels are the numbers in the lines of {path}, from 1"]
    if least and reading.first_number is None:
        return 0, [f"no label is 0: labels are positions in {path}, counted from 0"]
    return 0, []


def classes_without_train(source: Source) -> list[str]:
    """Return a note that names the classes of val images that no train image has, if train has labels."""
    of_split = {split: {item.label for item in items} - {-1} for split, items in source.splits.items()}
    train, val = of_split.get("train", set()), of_split.get("val", set())
    if not train or not (missing := sorted(val - train)):
        return []
    names = [source.classes[label] if source.classes else str(label) for label in missing[:_NAMES_IN_NOTE]]
    more = ", ..." if len(missing) > len(names) else ""
    listed = ", ".join(f"{name:.80}" for name in names)
    return [f"classes without train images: {listed}{more} ({len(missing):,} of {len(val):,} in val)"]


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
