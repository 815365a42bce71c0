"""Label val images from a separate file, like ImageNet's: by file name, or in the order of file names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import Item, Source
from mimcl.pipeline.sources.label_files.class_words import class_words
from mimcl.pipeline.sources.label_files.label_file import ImageNames, Lines, Row, Rows, possible_rows
from mimcl.pipeline.sources.label_files.text_lines import text_lines
from mimcl.pipeline.sources.labels import NO_CLASS_FOLDERS, relabel


def label_val(source: Source, text: bytes, where: object, has_class_list: bool) -> Source:
    """Label the val split by the text of a file, `where` in messages; the source's classes have names already.

    Lines are FILENAME CLASS, separated by tabs, commas (CSV with or without headings) or spaces, or CLASS alone, in the
    sorted order of the file names. File names may lack folders and extension; further columns are ignored. CLASS is all
    of the text if that is a class, else its first word. It is a name, or a position in the class list counted from 0 if
    a 0 occurs, else from 1; a note says which. Every image needs a label. Raises DataError, also where two readings
    give different labels.
    """
    if "val" not in source.splits:
        raise DataError(f"the label file {where} needs a val split, and the source has none; give one with --val")
    items = source.splits["val"]
    words, notes = _words_of_images(items, text, _by_text(source.classes, where), where)
    numbers, more = _numbers(words, source.classes, where, has_class_list)
    if not source.classes:
        source.classes = sorted(set(words))
        label_of = {name: number for number, name in enumerate(source.classes)}
        numbers = [label_of[word] for word in words]
        examples = ", ".join(f"{name:.80}" for name in source.classes[:5])
        more = [f"{where}: its {len(label_of):,} classes are in the order of their names: {examples}"]
    source.splits = {**source.splits, "val": relabel(items, numbers.__getitem__)}
    source.notes = [note for note in source.notes if note != NO_CLASS_FOLDERS.format("val")] + notes + more
    return source


def _by_text(classes: Sequence[str], where: object) -> dict[str, str]:
    """Return the classes by how a text names them: without spaces around them."""
    found: dict[str, str] = {}
    for name in classes:
        if (other := found.setdefault(name.strip(), name)) != name:
            raise DataError(f"{where} cannot tell the classes {other!r:.80} and {name!r:.80} apart; rename one of them")
    return found


def _words_of_images(
    items: Sequence[Item], text: bytes, classes: Mapping[str, str], where: object
) -> tuple[list[str], list[str]]:
    """Return the class, or number as text, of each image, and notes, from the only consistent reading of the file."""
    lines = [(n, line.strip()) for n, line in enumerate(text_lines(text, where), 1) if line.strip()]
    if not lines:
        raise DataError(f"the label file {where} is empty; give one label a line")
    images = ImageNames(items)
    readings: list[tuple[str, list[str], list[str]]] = []  # how, words, notes
    errors: list[DataError] = []
    for rows in _readings(lines, images, classes, where, errors):
        try:
            words, notes = class_words(rows, classes, where)
            if rows.rows[0].name:
                words = _by_name(items, images, rows.rows, words, where)
            elif len(words) != len(items):
                raise DataError(
                    f"{where} has {len(words):,} labels for {len(items):,} val images; give one line per image"
                )
            readings.append((rows.how, words, notes))
        except DataError as error:
            errors.append(error)
    if not readings:
        raise errors[0]
    how, words, notes = readings[0]
    for other, instead, _ in readings[1:]:
        for item, word, other_word in zip(items, words, instead, strict=True):
            if word != other_word:
                raise DataError(
                    f"{where} is ambiguous: {item.name!r:.80} is {word!r:.80} if {how}, {other_word!r:.80} if "
                    f"{other}; separate file name and class by a tab"
                )
    return words, notes


def _readings(
    lines: Lines, images: ImageNames, classes: Mapping[str, str], where: object, errors: list[DataError]
) -> Iterator[Rows]:
    """Yield the possible readings of the lines; append to `errors` why there are none by file name."""

    def is_label(text: str) -> bool:
        first = text.split()[0] if text else ""
        return text in classes or first in classes or first.isdecimal()

    texts = [text for _, text in lines]
    in_order = Rows("its lines are in the order of the file names", [Row(number, "", text) for number, text in lines])
    if all(text in classes or text.isdecimal() for text in texts):
        yield in_order
    try:
        yield from possible_rows(lines, images, is_label, where)
    except DataError as error:
        if not any(text in images or set(text) & set("\t ,") for text in texts):
            yield in_order
        errors.append(error)


def _by_name(
    items: Sequence[Item], images: ImageNames, rows: Sequence[Row], words: Sequence[str], where: object
) -> list[str]:
    """Return the word of each image, in the order of the images."""
    found = [""] * len(items)
    for row, word in zip(rows, words, strict=True):
        place = images.place(row, where)
        if found[place] not in ("", word):
            raise DataError(f"{where}, line {row.line}: {row.name!r:.120} already has class {found[place]!r:.80}")
        found[place] = word
    if "" in found:
        example = items[found.index("")].name
        raise DataError(f"{where} has no label for {found.count(''):,} val images, for example {example!r:.120}")
    return found


def _numbers(words: list[str], classes: list[str], where: object, has_class_list: bool) -> tuple[list[int], list[str]]:
    """Return positions in the classes, and notes; no positions if the words are names and no classes are known yet."""
    label_of = {name: number for number, name in enumerate(classes)}
    if all(word in label_of for word in words):
        return [label_of[word] for word in words], []
    if not all(word.isdecimal() for word in words):
        return [], []
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
