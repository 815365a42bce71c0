"""What layouts mean: the same splits, classes and refusals for folders, tars, zips and lists."""

import zipfile

import pytest
from helpers.archives import list_of, tar_of, zip_of
from helpers.images import encoded

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.archives.tars import tar_images
from mimcl.pipeline.sources.archives.zips import zip_images
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.sources.listed import listed_images, read_list

KINDS = ["folder", "tar", "zip", "list"]
IMAGE = encoded("baseline", 1, 24, 16)


def write(root, paths):
    """Write a text, an image where a path has an image's ending or none, or an empty folder where it ends with /."""
    for path in paths:
        file = root / path
        if path.endswith("/"):
            file.mkdir(parents=True)
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        is_image = "." not in file.name or file.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
        file.write_bytes(IMAGE if is_image else b"words")
    return root


def opened(kind, root):
    if kind == "folder":
        return image_folder(root)
    if kind == "tar":
        return tar_images(tar_of(root, root.parent / "x.tar"))
    if kind == "zip":
        return zip_images(zip_of(root, root.parent / "x.zip", zipfile.ZIP_STORED))
    return listed_images(root, read_list(list_of(root, root.parent / "x.txt"), root))


def read(source):
    """Return each split's items: name and class, None without a label."""
    return {
        split: {item.name: source.classes[item.label] if item.label >= 0 else None for item in items}
        for split, items in source.splits.items()
    }


CAT_DOG = {"train": {"cat/1.jpg": "cat", "dog/2.jpg": "dog"}}
WITH_VAL = {**CAT_DOG, "val": {"cat/3.jpg": "cat"}}
FLAT = {"train": {"1.jpg": None, "2.jpg": None}}
LAYOUTS = {
    "classes": (["cat/1.jpg", "dog/2.jpg"], CAT_DOG),
    "flat": (["1.jpg", "2.jpg"], FLAT),
    "splits": (["train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg"], WITH_VAL),
    "train": (["train/cat/1.jpg", "train/dog/2.jpg"], CAT_DOG),
    "around": (["pets/train/cat/1.jpg", "pets/train/dog/2.jpg", "pets/val/cat/3.jpg"], WITH_VAL),
    "readme": (["pets/train/cat/1.jpg", "pets/train/dog/2.jpg", "pets/val/cat/3.jpg", "README.txt"], WITH_VAL),
    "case": (["Train/cat/1.jpg", "Train/dog/2.jpg", "VAL/cat/3.jpg"], WITH_VAL),
    "training": (["training/cat/1.jpg", "training/dog/2.jpg", "validation/cat/3.jpg"], WITH_VAL),
    "valid": (["train/cat/1.jpg", "train/dog/2.jpg", "valid/cat/3.jpg", "test/cat/4.jpg"], WITH_VAL),
    "intel": (
        [*("seg_train/seg_train/cat/1.jpg", "seg_train/seg_train/dog/2.jpg", "seg_test/seg_test/cat/3.jpg"),
         *("seg_pred/seg_pred/4.jpg",)],
        CAT_DOG,
    ),
    "coco": (["train2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg", "annotations/instances.json"],
             {**FLAT, "val": {"3.jpg": None}}),
    "prefixed": (["flowers_train/cat/1.jpg", "flowers_train/dog/2.jpg", "flowers_valid/cat/3.jpg"], WITH_VAL),
    "camel": (["TrainImages/cat/1.jpg", "TrainImages/dog/2.jpg", "ValImages/cat/3.jpg"], WITH_VAL),
    "cub": (["CUB/images/cat/1.jpg", "CUB/images/dog/2.jpg", "CUB/attributes/a.txt", "CUB/images.txt"], CAT_DOG),
    "food": (["food/images/cat/1.jpg", "food/images/dog/2.jpg", "food/meta/classes.txt"], CAT_DOG),
    "dogs": (["Images/cat/1.jpg", "Images/dog/2.jpg", "Annotation/cat/1.xml", "lists/l.mat"], CAT_DOG),
    "yolo": (["images/train/1.jpg", "images/train/2.jpg", "images/val/3.jpg", "labels/train/1.txt"],
             {**FLAT, "val": {"3.jpg": None}}),
    "roboflow": (["train/images/1.jpg", "train/images/2.jpg", "train/labels/1.txt", "valid/images/3.jpg", "data.yaml"],
                 {**FLAT, "val": {"3.jpg": None}}),
    "kaggle": (["ILSVRC/Data/CLS-LOC/train/cat/1.jpg", "ILSVRC/Data/CLS-LOC/train/dog/2.jpg",
                "ILSVRC/Data/CLS-LOC/val/3.jpg", "ILSVRC/Data/CLS-LOC/test/4.jpg", "ILSVRC/Annotations/a.xml",
                "LOC_synset_mapping.txt"], {**CAT_DOG, "val": {"3.jpg": None}}),
    "dogs-vs-cats": (["train/train/1.jpg", "train/train/2.jpg", "test1/test1/3.jpg"], FLAT),
    "images": (["images/1.jpg", "images/2.jpg", "boxes.csv"], FLAT),
    "no endings": (["cat/1", "dog/2"], {"train": {"cat/1": "cat", "dog/2": "dog"}}),
    "one class": (["cat/1.jpg", "cat/2.jpg"], {"train": {"cat/1.jpg": "cat", "cat/2.jpg": "cat"}}),
    "nested": (["cat/deep/er/1.jpg", "dog/2.jpg"], {"train": {"cat/deep/er/1.jpg": "cat", "dog/2.jpg": "dog"}}),
    "a class called bullet_train": (["bullet_train/1.jpg", "cat/2.jpg"],
                                    {"train": {"bullet_train/1.jpg": "bullet_train", "cat/2.jpg": "cat"}}),
    "a class called v1.tar": (["v1.tar/1.jpg", "v2.tar/2.jpg"],
                              {"train": {"v1.tar/1.jpg": "v1.tar", "v2.tar/2.jpg": "v2.tar"}}),
    "texts beside classes": (["cat/1.jpg", "dog/2.jpg", "annotations/1.xml", "LICENSE"], CAT_DOG),
    "val alone": (["val/1.jpg", "val/2.jpg"], {"val": FLAT["train"]}),
    "test alone": (["test/1.jpg", "test/2.jpg"], {"test": FLAT["train"]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, kind, layout):
    paths, expected = LAYOUTS[layout]
    assert read(opened(kind, write(tmp_path / "src", paths))) == expected


JUNK = [".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", ".thumbnails", "$RECYCLE.BIN", ".git"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("place", ["", "train/", "train/cat/", "train/cat/deep/", "val/"])
def test_junk_is_skipped_with_a_note(tmp_path, kind, junk, place):
    paths = ["train/cat/1.jpg", "train/dog/2.jpg", "val/cat/3.jpg", f"{place}{junk}/cat/9.jpg"]
    source = opened(kind, write(tmp_path / "src", [*paths, "train/cat/._1.jpg", "train/dog/Thumbs.db"]))
    assert read(source) == WITH_VAL
    (note,) = [note for note in source.notes if "not part of the data" in note]
    assert f"{junk}/" in note
    assert "Thumbs.db" in note


@pytest.mark.parametrize("kind", KINDS)
def test_junk_at_the_top_is_no_class_and_does_not_shift_labels(tmp_path, kind):
    paths = ["cat/1.jpg", "dog/2.jpg", ".ipynb_checkpoints/1-checkpoint.jpg", "__MACOSX/cat/._1.jpg"]
    source = opened(kind, write(tmp_path / "src", paths))
    assert source.classes == ["cat", "dog"]
    assert [item.label for item in source.splits["train"]] == [0, 1]


REFUSED = {
    "two data sets": (["a/train/x/1.jpg", "a/val/x/2.jpg", "b/train/y/3.jpg"], "src/a has train/ and val/ in it"),
    "a split in each class": (["cat/train/1.jpg", "cat/test/2.jpg", "dog/train/3.jpg"], "test/ and train/ in it"),
    "two train folders": (["train/cat/1.jpg", "training/cat/2.jpg"], "train/ and training/ are both the train split"),
    "two val folders": (["train/cat/1.jpg", "val/cat/2.jpg", "dev/cat/2.jpg"], "dev/ and val/ are both the val split"),
    "two pairs": (["a_train/1.jpg", "a_val/2.jpg", "b_train/3.jpg", "b_val/4.jpg"], "several train splits"),
    "val among classes": (["val/1.jpg", "cat/2.jpg"], "val/ beside cat/ but no train/"),
    "test among classes": (["test/1.jpg", "cat/2.jpg", "dog/3.jpg"], "test/ beside cat/ but no train/"),
    "a class called train": (["train/1.jpg", "bus/2.jpg", "car/3.jpg"], "may be the train split or a class"),
    "pets": (["images/1.jpg", "annotations/trimaps/1.png"], "images in images/ and annotations/"),
    "images beside a folder": (["1.jpg", "2.jpg", "3.jpg", "extra/4.jpg"], "3 images beside its class folders"),
    "texts only": (["cat/1.txt", "dog/2.txt"], "no images"),
    "junk only": ([".cache/1.jpg", "@eaDir/2.jpg"], "no images"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", REFUSED)
def test_layouts_with_two_readings_are_refused(tmp_path, kind, layout):
    paths, message = REFUSED[layout]
    root = write(tmp_path / "src", paths)
    with pytest.raises(DataError) as error:
        opened(kind, root)
    assert message.replace("src/", "") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("paths", "note"),
    [
        (["train/cat/1.jpg", "test/cat/2.jpg"], "skipped: test/, the test split"),
        (["train/cat/1.jpg", "extra/2.jpg", "more/a.txt", "9.jpg"], "skipped beside train/: extra/, more/, 1 images"),
        (["pets/train/cat/1.jpg", "README"], "all files are in pets/, which is removed from their names"),
        (["cat/1.jpg", "dog/2.jpg", "docs/a.txt"], "skipped in train, no images in: docs"),
        (["cat/1.jpg", "dog/2.jpg", "a.txt", "b.zip"], "skipped beside the class folders of train: a.txt, b.zip"),
        (["train/cat/1.jpg", "train/dog/2.jpg", "val/new/3.jpg"], "val/new/ is not a class of train"),
        (["train/cat/1.jpg", "val/3.jpg"], "val/ has no class folders"),
        (["train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg", "truth/4.jpg"], "skipped beside train/: truth/"),
        (["photos/1.jpg", "photos/2.jpg"], "all images are of one class, named by their folder: photos"),
        (
            ["a/abbey/1.jpg", "a/apse/2.jpg", "b/bar/3.jpg"],
            "folders within a class of train are not read as classes",
        ),
        (["1.jpg", "metadata.csv"], "not read: metadata.csv"),
        (["train/1.jpg", "train/metadata.jsonl"], "not read: train/metadata.jsonl"),
    ],
)
def test_what_is_left_out_is_named(tmp_path, paths, note):
    assert [found for found in opened("folder", write(tmp_path / "src", paths)).notes if found.startswith(note)]


def test_an_empty_class_folder_keeps_its_label(tmp_path):
    for kind in ("folder", "tar", "zip"):
        root = write(tmp_path / kind / "src", ["cat/1.jpg", "bee/", "dog/2.jpg"])
        source = opened(kind, root)
        assert source.classes == ["bee", "cat", "dog"]
        assert [item.label for item in source.splits["train"]] == [1, 2]


TINY = ["tiny/train/n01/images/n01_0.JPEG", "tiny/train/n01/n01_boxes.txt", "tiny/train/n02/images/n02_0.JPEG",
        "tiny/val/images/val_0.JPEG", "tiny/val/images/val_1.JPEG", "tiny/test/images/test_0.JPEG",
        "tiny/wnids.txt", "tiny/words.txt"]  # fmt: skip
ANNOTATIONS = "val_0.JPEG\tn02\t0\t32\t44\t62\nval_1.JPEG\tn01\t52\t55\t57\t59\n"


@pytest.mark.parametrize("kind", KINDS)
def test_tiny_imagenet_as_it_is_distributed(tmp_path, kind):
    root = write(tmp_path / "src", TINY)
    (root / "tiny" / "val" / "val_annotations.txt").write_text(ANNOTATIONS)
    source = opened(kind, root)
    assert source.classes == ["n01", "n02"]
    assert read(source)["val"] == {"val_0.JPEG": "n02", "val_1.JPEG": "n01"}
    assert "labels of val: from tiny/val/val_annotations.txt" in source.notes
    assert not any("no class folders" in note for note in source.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_val_of_tiny_imagenet_alone(tmp_path, kind):
    root = write(tmp_path / "src", ["images/val_0.JPEG", "images/val_1.JPEG"])
    (root / "val_annotations.txt").write_text(ANNOTATIONS)
    assert read(opened(kind, root)) == {"train": {"val_0.JPEG": "n02", "val_1.JPEG": "n01"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("val_0.JPEG\tn02\n", "val_annotations.txt has no label for 1 val images"),
        ("val_0.JPEG\tn02\nval_1.JPEG\tn07\n", "n07"),
        ("", "val_annotations.txt is empty"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(tmp_path, text, message):
    root = write(tmp_path / "src", TINY)
    (root / "tiny" / "val" / "val_annotations.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        opened("folder", root)


def test_a_single_class_of_val_keeps_its_nested_folder(tmp_path):
    paths = ["train/n01/images/1.jpg", "train/n02/images/2.jpg", "val/n02/images/3.jpg"]
    assert read(opened("folder", write(tmp_path / "src", paths)))["val"] == {"n02/images/3.jpg": "n02"}


def test_a_folder_that_is_linked_into_itself_is_read_once(tmp_path):
    root = write(tmp_path / "src", ["cat/1.jpg", "dog/2.jpg"])
    (root / "cat" / "loop").symlink_to("../..", target_is_directory=True)
    assert read(opened("folder", root)) == CAT_DOG
