"""Take the class from a text in a label file: all of the text if that is a class, else its first word."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.label_files.label_file import Rows


def class_words(rows: Rows, classes: Mapping[str, str], where: object) -> tuple[list[str], list[str]]:
    """Return the class of each row, or a number as text, and a note if only the first words were taken.

    `classes` are the known ones by how a text names them; if there are none, any name is one. Raises DataError if a
    class is missing or unknown, if a row has several, or if both the text and its first word may be meant.
    """
    if empty := [row for row in rows.rows if not row.text]:
        raise DataError(f"{where}, line {empty[0].line}: {empty[0].name!r:.120} has no class; write FILENAME CLASS")
    firsts = [row.text.split()[0] for row in rows.rows]
    pairs = list(zip(rows.rows, firsts, strict=True))
    if all(row.text in classes for row in rows.rows):
        return [classes[row.text] for row in rows.rows], []
    if all(row.text in classes or first in classes for row, first in pairs):
        for row, first in pairs:
            if row.text in classes and first in classes and row.text != first:
                raise DataError(
                    f"{where}, line {row.line} is ambiguous: class {row.text!r:.80}, or {first!r:.80} as in lines "
                    "with further words; separate these by a tab"
                )
            others = {word for word in re.split(r"[\s,;]+", row.text) if word in classes and not word.isdecimal()}
            if row.text not in classes and others - {first}:
                raise DataError(
                    f"{where}, line {row.line} has several classes ({row.text!r:.120}); give every image one"
                )
        words = [classes[row.text if row.text in classes else first] for row, first in pairs]
    elif all(first.isdecimal() for first in firsts):
        words = firsts
    elif classes:
        row = next(row for row, first in pairs if not {row.text, first} & classes.keys())
        raise DataError(f"{where}, line {row.line}: {row.text!r:.80} is not one of the {len(classes):,} classes")
    elif all(_has_boxes(row.text) for row in rows.rows):
        words = firsts
    elif rows.is_column or all(row.text == first for row, first in pairs):
        return [row.text for row in rows.rows], []
    else:
        row, first = next((row, first) for row, first in pairs if row.text != first)
        raise DataError(
            f"{where}, line {row.line} is ambiguous: class {row.text!r:.80}, or {first!r:.80} and further words; "
            "give --classes, or separate columns by tabs"
        )
    cut = [(first, row.text) for row, first in pairs if first != row.text and row.text not in classes]
    return words, [
        f"{where}: classes are the first words in {len(cut):,} of {len(pairs):,} lines, "
        f"such as {first!r:.80} of {text!r:.80}"
        for first, text in cut[:1]
    ]


def _has_boxes(text: str) -> bool:
    """Whether a text is CLASS X Y X Y, perhaps several times with the same class, like Kaggle's."""
    words = text.split()
    numbers = [word for place, word in enumerate(words) if place % 5]
    return len(words) % 5 == 0 and len(set(words[::5])) == 1 and all(re.fullmatch(r"-?[\d.]+", n) for n in numbers)
