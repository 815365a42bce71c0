"""Read labels of val images from a separate file, like ImageNet's: by file name, or in the order of file names."""

from __future__ import annotations

from collections.abc import Sequence

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import Item, Source
from mimcl.pipeline.sources.labels import NO_CLASS_FOLDERS, relabel
from mimcl.pipeline.sources.text_lines import text_lines


def label_val(source: Source, text: bytes, where: object, has_class_list: bool) -> Source:
    """Label the val split by the text of a file, `where` in messages; the source's classes have names already.

    Lines are FILENAME CLASS or FILENAME,CLASS (with or without folders and ending; further words are ignored; a
    comma-separated file may start with headings), or CLASS alone, in the sorted order of the file names. CLASS is a
    name, or a position in the class list counted from 0 if a 0 occurs, else from 1; a note says which. Every image
    needs a label. Raises DataError.
    """
    if "val" not in source.splits:
        raise DataError(f"the label file {where} needs a val split, and the source has none; give one with --val")
    items = source.splits["val"]
    lines = [line.strip() for line in text_lines(text, where) if line.strip()]
    if not lines:
        raise DataError(f"the label file {where} is empty; give one label a line")
    classes = set(source.classes)
    alone = all(line in classes or line.isdecimal() for line in lines) or not any(_pair(line)[1] for line in lines)
    words = _in_order(items, lines, where) if alone else _by_name(items, lines, where)
    numbers, notes = _numbers(words, source.classes, where, has_class_list)
    if not source.classes:
        source.classes = sorted(set(words))
        label_of = {name: number for number, name in enumerate(source.classes)}
        numbers = [label_of[word] for word in words]
    source.splits = {**source.splits, "val": relabel(items, numbers.__getitem__)}
    source.notes = [note for note in source.notes if note != NO_CLASS_FOLDERS.format("val")] + notes
    return source


def _pair(line: str) -> tuple[str, str]:
    """Split a line into file name and class; the class is empty if the line is one word."""
    separator = next((separator for separator in ("\t", ",") if separator in line), None)
    name, rest = [*line.split(separator, 1), ""][:2]
    return name.strip(), [*rest.split(), ""][0]


def _in_order(items: Sequence[Item], lines: list[str], where: object) -> list[str]:
    if len(lines) != len(items):
        raise DataError(f"{where} has {len(lines):,} labels for {len(items):,} val images; give one line per image")
    return lines


def _by_name(items: Sequence[Item], lines: list[str], where: object) -> list[str]:
    places: dict[str, int] = {}
    ambiguous: set[str] = set()
    for place, item in enumerate(items):
        base = item.name.rpartition("/")[2]
        for name in {item.name, base, item.name.rpartition(".")[0], base.rpartition(".")[0]}:
            ambiguous |= {name} & places.keys()
            places[name] = place
    found = [""] * len(items)
    for number, line in enumerate(lines, 1):
        name, word = _pair(line)
        if name not in places:
            if number == 1 and "," in line:
                continue  # headings
            raise DataError(f"{where}, line {number}: {name!r:.120} is not a val image")
        if name in ambiguous:
            raise DataError(f"{where}, line {number}: {name!r:.120} names several val images; give it with its folder")
        if not word:
            raise DataError(f"{where}, line {number}: {name!r:.120} has no class; write FILENAME CLASS")
        if found[places[name]] not in ("", word):
            raise DataError(f"{where}, line {number}: {name!r:.120} already has class {found[places[name]]!r:.80}")
        found[places[name]] = word
    if "" in found:
        example = items[found.index("")].name
        raise DataError(f"{where} has no label for {found.count(''):,} val images, for example {example!r:.120}")
    return found


def _numbers(words: list[str], classes: list[str], where: object, has_class_list: bool) -> tuple[list[int], list[str]]:
    """Return positions in the classes, and notes; no positions if the words are names and no classes are known yet."""
    label_of = {name: number for number, name in enumerate(classes)}
    unknown = next((word for word in words if word not in label_of), None)
    if unknown is None:
        return [label_of[word] for word in words], []
    if not all(word.isdecimal() for word in words):
        if not classes:
            return [], []
        unknown = next(word for word in words if word not in label_of)
        raise DataError(f"{where}: class {unknown!r:.80} is not one of the {len(classes):,} classes")
    if not has_class_list:
        raise DataError(f"{where} has numbers, which are positions in a class list; give that list with --classes")
    try:
        numbers = [int(word) for word in words]
    except ValueError:  # thousands of digits
        raise DataError(f"{where} has a number that is too large for a class") from None
    first = 0 if 0 in numbers else 1
    if max(numbers) >= len(classes) + first:
        raise DataError(f"{where}: {max(numbers)} is not a position in the class list of {len(classes):,} lines")
    return [number - first for number in numbers], [
        f"{where}: its numbers are positions in the class list, counted from {first}"
    ]
