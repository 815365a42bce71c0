"""Read a text file of classes, one a line, with or without descriptions, columns and numbers of its own.

A file can often be read in several ways ("1 tench, Tinca tinca"): the class names found in the source decide.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.label_files.text_lines import read_text, text_lines

_NUMBER_FIRST = re.compile(r"(?P<number>\d{1,9})(?:\s*[,;:]\s*|[.)]?\s+)(?P<text>.*\S)")
_NUMBER_LAST = re.compile(r"(?P<text>.*[^\s,;:=])[\s,;:=]+(?P<number>\d{1,9})")
_HEADING = re.compile(
    r"([^a-z\d]*(class|classes|category|categories|description|id|idx|index|label|labels|name|names|no|number|synset|"
    r"synsets|target|wnid|wordnet|words|classname|classid))+[^a-z\d]*"
)


@dataclass(frozen=True)
class Reading:
    """One way to read a class list: its names in label order, and the list's own number of the first, if it has any."""

    how: str
    names: list[str]
    first_number: int | None = None

    @cached_property
    def label_of(self) -> dict[str, int]:
        """Label of each name."""
        return {name: label for label, name in enumerate(self.names)}


@dataclass(frozen=True)
class ClassList:
    """The classes in order; `readings` are the possible ways to read the lines, the preferred one first."""

    path: Path
    lines: list[str]
    readings: list[Reading]
    heading: str = ""  # the first line, if it looks like one
    gap: str = ""  # why positions in it are unclear
    bad_numbers: str = ""  # what is wrong with its own numbers

    def choose(self, found: Sequence[str]) -> tuple[Reading, list[str]]:
        """Return the reading that has all classes in `found`, and a note if others would give other names.

        Raises DataError if no reading has them, or if two give them different labels.
        """
        wanted = set(found)
        if self.heading and not any(reading.names[0] in wanted for reading in self.readings):
            raise DataError(f"the class list {self.path} begins with a heading ({self.heading!r:.80}); remove it")
        if not wanted and (problem := self.gap or self.bad_numbers):
            raise DataError(f"the class list {self.path}: {problem}")
        fitting = [reading for reading in self.readings if wanted <= reading.label_of.keys()]
        if not fitting:
            known = set().union(*(reading.names for reading in self.readings))
            missing = next((name for name in found if name not in known), found[0])
            hint = self.bad_numbers or "add a line for it"
            raise DataError(f"class {missing!r:.80} is not in the class list {self.path}; {hint}")
        best, *others = fitting
        for other in others:
            for name in found:
                if (label := best.label_of[name]) != (other_label := other.label_of[name]):
                    raise DataError(
                        f"the class list {self.path} is ambiguous: class {name!r:.80} is {label} if classes are "
                        f"{best.how}, {other_label} if they are {other.how}; keep only the names in it"
                    )
        for names in [other.names for other in others] if wanted else [self.lines]:
            for name, other_name in zip(best.names, names, strict=True):
                if name != other_name:
                    return best, [f"{self.path}: classes are {best.how}: {name!r:.80}, not {other_name!r:.80}"]
        return best, []


def read_class_list(path: Path) -> ClassList:
    """Read a file with one class a line. Raises DataError."""
    raw = [line.strip() for line in text_lines(read_text(path, "class list"), path)]
    while raw and not raw[-1]:
        raw.pop()
    if not raw:
        raise DataError(f"the class list {path} is empty; give one class a line")
    lines = [line for line in raw if line]
    if lines[0][0] in "{[" and lines[-1][-1] in "}]":
        raise DataError(f"the class list {path} is JSON or Python; give a text file with one class a line")
    readings = list(_readings(lines))
    if not readings:
        ((twice, _),) = Counter(lines).most_common(1)
        raise DataError(f"the class list {path} lists {twice!r:.80} twice; list every class once")
    is_heading = _HEADING.fullmatch(lines[0].lower()) or lines[0][0] == "#" != lines[-1][0]
    gap = f"line {raw.index('') + 1} is empty, so positions in it are unclear; remove that line" if "" in raw else ""
    bad_numbers = ""
    if readings[0].first_number is None and all(map(_NUMBER_FIRST.fullmatch, lines)):
        bad_numbers = f"the numbers in its lines are not 0 to {len(lines) - 1} or 1 to {len(lines)}; remove them"
    return ClassList(path, lines, readings, lines[0] if is_heading else "", gap, bad_numbers)


def _readings(lines: list[str]) -> Iterator[Reading]:
    for pattern, where in ((_NUMBER_FIRST, "after"), (_NUMBER_LAST, "before")):
        found = [match for match in map(pattern.fullmatch, lines) if match]
        numbered = sorted((int(match["number"]), match["text"]) for match in found)
        numbers = [number for number, _ in numbered]
        for first in (0, 1):
            if numbers == list(range(first, first + len(lines))):
                for how, names in _names([text for _, text in numbered]):
                    yield Reading(f"{how} {where} the numbers", names, first)
    for how, names in _names(lines):
        yield Reading(f"{how} of its lines", names)


def _names(texts: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the ways to take a name from each text: all different, the preferred one first."""
    ways: list[tuple[str, list[str]]] = []
    if all("\t" in text for text in texts):
        ways.append(("the first columns", [text.partition("\t")[0].strip() for text in texts]))
    if not any(text.startswith('"') for text in texts):
        ways.append(("the first words", [re.split(r"[\s,]", text)[0].rstrip(":;") for text in texts]))
    ways.append(("the whole texts", texts))
    if any("," in text or '"' in text for text in texts):
        ways.append(("the texts before the first comma", [next(csv.reader([text]))[0].strip() for text in texts]))
    for how, names in ways:
        if len(set(names)) == len(names) and all(names):
            yield how, names
