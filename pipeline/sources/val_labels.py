"""Labels of val images from a file of their own, as ImageNet's come: by file name, or in the order of file names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import Item, Source
from mimcl.pipeline.sources.labels import read_lines, relabelled


def label_val(source: Source, path: Path, has_class_list: bool) -> Source:
    """The source, its classes named, with labels of its val split from the file at `path`.

    Lines are FILENAME CLASS or FILENAME,CLASS (a file's name with or without folders and ending; of several words after
    the name the first counts; a comma-separated file may have a line of headings), or CLASS alone, in the sorted order
    of the file names. CLASS is a name, or a position in the class list, from 0 if there is a 0, else from 1: which, a
    note says. Every image needs a label. Raises DataError.
    """
    if "val" not in source.splits:
        raise DataError(f"there is no val split that --val-labels {path} could belong to; give one with --val")
    items = source.splits["val"]
    lines = [line for line in read_lines(path, "label file") if line]
    if not lines:
        raise DataError(f"the label file {path} is empty")
    classes = set(source.classes)
    alone = all(line in classes or line.isdecimal() for line in lines) or not any(_pair(line)[1] for line in lines)
    words = _in_order(items, lines, path) if alone else _by_name(items, lines, path)
    numbers, notes = _numbers(words, source.classes, path, has_class_list)
    if not source.classes:
        source.classes = sorted(set(words))
        label_of = {name: number for number, name in enumerate(source.classes)}
        numbers = [label_of[word] for word in words]
    source.splits["val"] = relabelled(items, numbers.__getitem__)
    source.notes = [note for note in source.notes if not note.startswith("val/ has no class folders")] + notes
    return source


def _pair(line: str) -> tuple[str, str]:
    """File name and class of a line; the class is empty where it has one word."""
    mark = next((mark for mark in ("\t", ",") if mark in line), None)
    name, rest = [*line.split(mark, 1), ""][:2]
    return name.strip(), [*rest.split(), ""][0]


def _in_order(items: Sequence[Item], lines: list[str], path: Path) -> list[str]:
    if len(lines) != len(items):
        raise DataError(f"{path} has {len(lines):,} labels, but there are {len(items):,} val images")
    return lines


def _by_name(items: Sequence[Item], lines: list[str], path: Path) -> list[str]:
    places: dict[str, int] = {}
    twice = set()
    for place, item in enumerate(items):
        base = item.name.rpartition("/")[2]
        for name in {item.name, base, item.name.rpartition(".")[0], base.rpartition(".")[0]}:
            twice |= {name} & places.keys()
            places[name] = place
    found: list[str | None] = [None] * len(items)
    for number, line in enumerate(lines, 1):
        name, word = _pair(line)
        if name not in places:
            if number == 1 and "," in line:
                continue  # headings
            raise DataError(f"{path}, line {number}: there is no val image called {name!r:.120}")
        if name in twice:
            raise DataError(f"{path}, line {number}: several val images are called {name!r:.120}; give their folders")
        if not word:
            raise DataError(f"{path}, line {number}: {name!r:.120} has no class")
        if found[places[name]] not in (None, word):
            raise DataError(f"{path}, line {number}: {name!r:.120} has been given another class before")
        found[places[name]] = word
    if None in found:
        lacking = found.index(None)
        raise DataError(
            f"{path} has no label for {found.count(None):,} val images, for example {items[lacking].name!r:.120}"
        )
    return found


def _numbers(words: list[str], classes: list[str], path: Path, has_class_list: bool) -> tuple[list[int], list[str]]:
    """Positions in the classes, and notes; an empty list where the words are names and no classes are known yet."""
    label_of = {name: number for number, name in enumerate(classes)}
    unknown = next((word for word in words if word not in label_of), None)
    if unknown is None:
        return [label_of[word] for word in words], []
    if not all(word.isdecimal() for word in words):
        if not classes:
            return [], []
        unknown = next(word for word in words if word not in label_of)
        raise DataError(f"{path}: class {unknown!r:.80} is not one of the {len(classes):,} classes")
    if not has_class_list:
        raise DataError(f"{path} has numbers, which are positions in a list of classes; give that list with --classes")
    try:
        numbers = [int(word) for word in words]
    except ValueError:  # thousands of digits
        raise DataError(f"{path} has a number that is no class") from None
    first = 0 if 0 in numbers else 1
    if max(numbers) >= len(classes) + first:
        raise DataError(f"{path}: {max(numbers)} is not a position in the class list of {len(classes):,} lines")
    return [number - first for number in numbers], [
        f"{path.name}: its numbers are lines of the class list, counted from {first}"
    ]
