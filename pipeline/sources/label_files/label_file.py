"""Read the lines of a label file as rows of a file name and a class, separated by tabs, commas or spaces.

Every way of reading in which all file names are those of images is one reading; the caller decides between them.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import Item

_LABEL_HEADINGS = frozenset({"category", "class", "class_name", "label", "predictionstring", "target", "wnid"})


Lines = Sequence[tuple[int, str]]  # their numbers, counted from 1, and their texts


class Row(NamedTuple):
    """A line with a label: its number (from 1), the file name in it, which may be empty, and the text of its class."""

    line: int
    name: str
    text: str


@dataclass(frozen=True)
class Rows:
    """One way to read the lines; `is_column` if `text` is a whole column, so that words in it belong together."""

    how: str
    rows: list[Row]
    is_column: bool = False


class ImageNames:
    """Find images by their names: with or without folders and extension."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._places: dict[str, int] = {}
        self._ambiguous: set[str] = set()
        for place, item in enumerate(items):
            base = item.name.rpartition("/")[2]
            for name in {item.name, base, item.name.rpartition(".")[0], base.rpartition(".")[0]} - {""}:
                self._ambiguous |= {name} & self._places.keys()
                self._places[name] = place

    def __contains__(self, name: str) -> bool:
        return _plain(name) in self._places

    def place(self, row: Row, where: object) -> int:
        """Return the position of the image that a row names. Raises DataError if several images have that name."""
        if _plain(row.name) in self._ambiguous:
            raise DataError(
                f"{where}, line {row.line}: {row.name!r:.120} names several val images; give it with its folder"
            )
        return self._places[_plain(row.name)]


def _plain(name: str) -> str:
    return name.removeprefix("./").removeprefix("val/")


def possible_rows(lines: Lines, images: ImageNames, is_label: Callable[[str], bool], where: object) -> list[Rows]:
    """Return the readings of the lines in which all file names are images, without headings.

    One separator counts for the whole file: tabs, else commas, else spaces. `is_label(text)` tells whether a text can
    be a label; a line with one is not a heading. Raises DataError if no reading is possible, or if file names with
    spaces are ambiguous.
    """
    found: list[Rows] = []
    for separator, name in (("\t", "tabs"), (",", "commas")):
        if all(separator in text for _, text in lines) and not found:
            cells = [_cells(text, separator) for _, text in lines]
            found += _columns(lines, cells, f"its columns are separated by {name}", images, is_label)
            if found and separator == "," and max(map(len, cells)) > 2:
                found += _after_first_comma(lines, images, is_label)
    return found or [_spaces(lines, images, is_label, where)]


def _cells(text: str, separator: str) -> list[str]:
    cells = text.split(separator)
    if '"' in text:
        with suppress(csv.Error):  # such as a quote that is not closed
            cells = next(csv.reader([text], delimiter=separator, skipinitialspace=True, strict=True))
    return [cell.strip() for cell in cells]


def _columns(
    lines: Lines, cells: list[list[str]], how: str, images: ImageNames, is_label: Callable[[str], bool]
) -> Iterator[Rows]:
    width = min(map(len, cells))
    for column in range(width):
        has_heading = cells[0][column] not in images
        body = cells[has_heading:]
        if not body or not all(row[column] in images for row in body):
            continue
        label = column + 1 if column + 1 < width else column - 1
        if has_heading:
            if is_label(cells[0][label]):
                continue  # an image that is not among the others
            named = [place for place, cell in enumerate(cells[0][:width]) if cell.lower() in _LABEL_HEADINGS]
            label = named[0] if len(named) == 1 and named[0] != column else label
        rows = zip(lines[has_heading:], body, strict=True)
        yield Rows(how, [Row(number, row[column], row[label]) for (number, _), row in rows], is_column=True)


def _after_first_comma(lines: Lines, images: ImageNames, is_label: Callable[[str], bool]) -> Iterator[Rows]:
    cells = [[part.strip() for part in text.partition(",")[::2]] for _, text in lines]
    yield from _columns(lines, cells, "the class is everything after the first comma", images, is_label)


def _spaces(lines: Lines, images: ImageNames, is_label: Callable[[str], bool], where: object) -> Rows:
    rows = []
    for place, (number, text) in enumerate(lines):
        ways = [Row(number, text[: gap.start()], text[gap.end() :]) for gap in re.finditer(r"\s+", text)]
        found = [row for row in ways if row.name in images]
        found = [row for row in found if is_label(row.text)] or found
        if len(found) > 1:
            raise DataError(
                f"{where}, line {number} is ambiguous: {found[0].name!r:.80} has class {found[0].text!r:.80}, or "
                f"{found[1].name!r:.80} has {found[1].text!r:.80}; separate them by a tab"
            )
        if found:
            rows.append(found[0])
        elif text in images:
            raise DataError(f"{where}, line {number}: {text!r:.120} has no class; write FILENAME CLASS")
        elif place or not ways or is_label(ways[0].text) or len(lines) == 1:
            number, text = (number, text) if rows else lines[0]
            name = re.split(r"[\t,]" if re.search(r"[\t,]", text) else r"\s", text)[0]
            raise DataError(f"{where}, line {number}: {name!r:.120} is not a val image")
    return Rows("its columns are separated by spaces", rows)
