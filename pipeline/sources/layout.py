"""Derive splits and classes from a tree of files, the same for folders, archives and lists.

The rules, from the top: folders around everything are removed; a folder train/ (Train, training, seg_train) makes
splits; folders in a split are its classes; a split without them has no labels. What could be meant in two ways is
refused, and everything that is not packed is named in a note.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

from mimcl.pipeline.examine import extension_of
from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.item import Item, Source
from mimcl.pipeline.sources.junk import junk_note
from mimcl.pipeline.sources.label_files.val_labels import label_val
from mimcl.pipeline.sources.labels import NO_CLASS_FOLDERS
from mimcl.pipeline.sources.names import to_utf8
from mimcl.pipeline.sources.splits import SPLIT_WORDS, split_folders
from mimcl.pipeline.sources.tree import Tree, has_image_ending, walk

MakeItem = Callable[[str, str, int], Item]
_HOLDS_ALL = {"images", "image", "imgs", "img", "jpegimages", "jpegs", "jpeg", "jpg"}  # names of no class
_NO_CLASSES = _HOLDS_ALL | SPLIT_WORDS.keys()
_METADATA = {"metadata.csv", "metadata.jsonl", "metadata.parquet"}  # of Hugging Face's image folders
_PROBED_FILES = 8  # of a folder without a file that is named like an image
_MAX_PROBED_BYTES = 64 << 20
_MAX_ANNOTATION_BYTES = 1 << 28


@dataclass
class _Split:
    """A split's images are below `root` in the folders of its classes or, if it has none, in `root`."""

    name: str
    around: str  # the folder of the split, in which its annotations are
    root: str
    classes: list[str] = field(default_factory=list)


def source_from_tree(where: object, tree: Tree, make_item: MakeItem) -> Source:
    """Return the source that a tree is, `where` in messages.

    `make_item(path, name, label)` makes an item, `name` being relative to its split. Classes include empty folders.
    Items are sorted by the parts of their paths. A val split without class folders gets its labels from
    val_annotations.txt, as in Tiny ImageNet. Raises DataError if the tree has no images or can be read in two ways.
    """
    return Layout(where, tree, make_item).source()


class Layout:
    """How a tree is read; `notes` name what is skipped and what was decided."""

    def __init__(self, where: object, tree: Tree, make_item: MakeItem) -> None:
        self._where, self._tree, self._make_item = where, tree, make_item
        self.notes: list[str] = []

    def source(self) -> Source:
        """Return the images with their splits and classes. Raises DataError."""
        known: set[str] = set()  # classes of train
        splits = []
        for name, folder in self.split_folders().items():
            split = _Split(name, folder, self._unwrapped(folder, known))
            self._find_classes(split)
            if name == "train":
                known = set(split.classes)
            elif known and len(split.classes) == 1 and not known & set(split.classes):  # Tiny ImageNet's val/images/
                split.root += f"{split.classes.pop()}/"
                self.notes.append(f"{to_utf8(split.root)} is not a class of train, so it is not read as one")
            splits.append(split)
        classes = sorted({name for split in splits for name in split.classes})
        if len(classes) == 1 and not splits[0].around:
            self.notes.append(f"all images are of one class, named by their folder: {to_utf8(classes[0])}")
        items = {split.name: self._items(split, classes) for split in splits}
        self.notes += junk_note(map(to_utf8, self._tree.skipped))
        if not any(items.values()):
            raise DataError("; ".join([f"{self._where} has no images", *self.notes, "give a folder of images"]))
        source = Source(items, [to_utf8(name) for name in classes], self.notes)
        for split in splits:
            if items[split.name] and not split.classes and not self._annotated(source, split) and classes:
                source.notes.append(NO_CLASS_FOLDERS.format(split.name))
        return source

    def split_folders(self) -> dict[str, str]:
        """Return the folder of each split, train first; without folders of splits, all of the tree is train.

        Folders around everything are looked through. Raises DataError.
        """
        tree, folder = self._tree, ""
        while not (found := split_folders(self._shown(folder), tree.folders(folder))):
            if (inner := self._only_folder(folder, set())) is None:
                return {"train": ""}
            folder = inner
        beside = [name for name in tree.folders(folder) if name not in found.values()]
        if "train" not in found:
            self._require_no_classes(folder, found, beside)
        elif len(found) == 1:
            self._require_split(folder, found["train"], beside)
        if folder:
            self._note_unwrapped(folder)
        images = sum(map(has_image_ending, tree.files(folder)))
        if skipped := [f"{to_utf8(name)}/" for name in beside] + ([f"{images:,} images"] if images else []):
            first = found.get("train") or next(iter(found.values()))
            self.notes.append(f"skipped beside {to_utf8(first)}/: {', '.join(skipped)}")
        if "test" in found and len(found) > 1:
            self.notes.append(f"skipped: {to_utf8(found.pop('test'))}/, the test split")
        return {name: f"{folder}{found[name]}/" for name in ("train", "val", "test") if name in found}

    def _require_no_classes(self, folder: str, found: dict[str, str], beside: list[str]) -> None:
        """Refuse split folders without train among folders that seem to be classes; alone, they are for --val."""
        if others := [name for name in beside if self._has_images(f"{folder}{name}/")]:
            split = to_utf8(next(iter(found.values())))
            raise DataError(
                f"{self._shown(folder)} has {split}/ beside {to_utf8(others[0])}/ but no train/; rename {split}/ if it "
                "is a class, or move the other classes into train/"
            )

    def _require_split(self, folder: str, train: str, beside: list[str]) -> None:
        """Refuse a folder train/ that may as well be a class, such as VOC's, among others."""
        inside = f"{folder}{train}/"
        if any(self._has_images(f"{inside}{name}/") for name in self._tree.folders(inside)):
            return
        if others := [name for name in beside if self._has_images(f"{folder}{name}/")]:
            raise DataError(
                f"{self._shown(inside)} has no class folders and lies beside {to_utf8(others[0])}/, so it may be the "
                f"train split or a class; give {self._shown(inside)} itself, or rename it if it is a class"
            )

    def _unwrapped(self, folder: str, known: set[str]) -> str:
        """Return the folder with a split's classes or images: below folders around everything."""
        inner = folder
        while (found := self._only_folder(inner, known)) is not None:
            inner = found
        if inner != folder:
            self._note_unwrapped(inner)
        return inner

    def _note_unwrapped(self, folder: str) -> None:
        self.notes.append(f"all files are in {to_utf8(folder)}, which is removed from their names")

    def _only_folder(self, folder: str, known: set[str]) -> str | None:
        """Return the folder with all images in this one, unless it is a class; `known` are classes."""
        if any(map(has_image_ending, self._tree.files(folder))):
            return None
        with_images = [name for name in self._tree.folders(folder) if self._has_images(f"{folder}{name}/")]
        if len(with_images) != 1:
            if general := [name for name in with_images if name.lower() in _HOLDS_ALL]:
                other = next(name for name in with_images if name != general[0])
                raise DataError(
                    f"{self._shown(folder)} has images in {to_utf8(general[0])}/ and {to_utf8(other)}/; give "
                    f"{self._shown(f'{folder}{general[0]}')} alone, or rename it if it is a class"
                )
            return None
        (name,) = with_images
        inner = f"{folder}{name}/"
        is_class = any(map(has_image_ending, self._tree.files(inner))) or not self._tree.folders(inner)
        return None if name in known or (is_class and name.lower() not in _NO_CLASSES) else inner

    def _find_classes(self, split: _Split) -> None:
        """Find the class folders of a split: those with images, and empty ones."""
        tree, root = self._tree, split.root
        empty, other, inside = [], [], []
        for name in tree.folders(root):
            inner = f"{root}{name}/"
            if self._has_images(inner):
                split.classes.append(name)
                within = [folder for folder in tree.folders(inner) if folder.lower() not in _HOLDS_ALL]
                inside += [f"{name}/{folder}/" for folder in within if self._has_images(f"{inner}{folder}/")]
                nested = split_folders(self._shown(inner), tree.folders(inner))
                if "train" in nested and len(nested) > 1:
                    raise DataError(
                        f"{self._shown(inner)} has {'/ and '.join(sorted(nested.values()))}/ in it, so it is a data "
                        "set rather than a class; give it alone, or --list with the class of each file"
                    )
            elif next(walk(tree, inner), None) is None:
                empty.append(name)
            else:
                other.append(name)
        if inside:
            self.notes.append(f"folders within a class of {split.name} are not read as classes: {_few(inside)}")
        if split.classes:
            split.classes = sorted(split.classes + empty)
        else:
            other += empty
        if other:
            self.notes.append(f"skipped in {split.name}, no images in: {_few(other)}")

    def _items(self, split: _Split, classes: list[str]) -> list[Item]:
        root, tree = split.root, self._tree
        label_of = {name: label for label, name in enumerate(classes)}
        files = tree.files(root)
        if split.classes:
            beside = sum(map(has_image_ending, files))
            paths = [path for name in split.classes for path in walk(tree, f"{root}{name}/")]
            if beside > len(paths):
                raise DataError(
                    f"{self._shown(root)} has {beside:,} images beside its class folders ({_few(split.classes)}), and "
                    f"{len(paths):,} files in them; move the images into a class folder, or those folders elsewhere"
                )
            if files:
                self.notes.append(f"skipped beside the class folders of {split.name}: {_few(files)}")
        else:
            paths = [root + name for name in files]
        if unread := [root + name for name in files if name.lower() in _METADATA]:
            self.notes.append(f"not read: {_few(unread)}; labels can be given with --list")
        paths.sort(key=lambda path: path.split("/"))
        names = [path.removeprefix(root) for path in paths]
        return [
            self._make_item(path, to_utf8(name), label_of[name.partition("/")[0]] if split.classes else -1)
            for path, name in zip(paths, names, strict=True)
        ]

    def _annotated(self, source: Source, split: _Split) -> bool:
        """Label a split without class folders by the annotations in its folder; return whether there are any."""
        found = [name for name in self._tree.files(split.around) if name.lower().endswith("_annotations.txt")]
        if len(found) != 1:
            return False
        path = split.around + found[0]
        item = self._make_item(path, path, -1)
        if item.nbytes > _MAX_ANNOTATION_BYTES:
            raise DataError(f"{self._shown(path)} is larger than {_MAX_ANNOTATION_BYTES:,} bytes; remove it")
        try:
            text = item.read()
        except OSError as error:
            raise DataError(f"{self._shown(path)} cannot be read: {error.strerror or error}") from None
        only_split = Source({"val": source.splits[split.name]}, source.classes)
        labelled = label_val(only_split, text, self._shown(path), has_class_list=False)
        source.splits = {**source.splits, split.name: labelled.splits["val"]}
        source.classes = labelled.classes
        source.notes += [f"labels of {split.name}: from {to_utf8(path)}", *labelled.notes]
        return True

    def _has_images(self, folder: str) -> bool:
        """Whether a file below a folder is named like an image or, if none is, one of the first is an image."""
        if any(has_image_ending(path) for path in walk(self._tree, folder)):
            return True
        return any(map(self._is_image, islice(walk(self._tree, folder), _PROBED_FILES)))

    def _is_image(self, path: str) -> bool:
        item = self._make_item(path, path, -1)
        try:
            return item.nbytes <= _MAX_PROBED_BYTES and extension_of(item.read()) is not None
        except OSError:
            return True  # packing reports that it cannot be read

    def _shown(self, folder: str) -> str:
        return to_utf8(f"{self._where}/{folder}".removesuffix("/")) if folder else str(self._where)


def _few(names: list[str]) -> str:
    return ", ".join(map(to_utf8, names[:5])) + (f" and {len(names) - 5:,} others" if len(names) > 5 else "")
