"""Folders of parquet files: what is one data set, what is refused, and labels in the names of folders."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.archives import pictures, write_parquet

from mimcl.pipeline.files import DataError
from mimcl.pipeline.sources.parquet import parquet_images


def write(root, *names, **more):
    for name in names:
        write_parquet(root / name, pictures(1), **more)


def splits(root):
    source = parquet_images(root)
    return {split: [item.name.split(".parquet/0")[0] for item in found] for split, found in source.splits.items()}


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (["data/train-00000-of-00002", "data/train-00001-of-00002"], ["data/validation-00000-of-00001"]),
        (["train/0000", "train/0001"], ["val/0000"]),
        (["default/train/0000"], ["default/validation/0000"]),
        (["train.parquet/part-00000-9f8e7d6c-c000.snappy"], ["val.parquet/part-00000-1a2b3c4d-c000.snappy"]),
        (["data/train-00000-of-00001-0f1e2d3c4b5a6978"], ["data/val-00000-of-00001-8796a5b4c3d2e1f0"]),
        (["x_train"], ["x_val"]),
        (["Train/x"], ["Valid/x"]),
    ],
)
def test_layouts_of_one_data_set(tmp_path, train, val):
    write(tmp_path, *(f"{name}.parquet" for name in train + val))
    (tmp_path / "_SUCCESS").touch()
    assert splits(tmp_path) == {"train": train, "val": val}
    assert parquet_images(tmp_path).notes == [f"without a label: {len(train + val)} images"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["en/train-0", "fr/train-0"], "files in en/ and fr/, perhaps different data sets; give the folder of one"),
        (["data/en/train-0", "data/en/val-0", "data/fr/train-0"], "data/en/ and data/fr/"),
        (["train/en/0", "train/fr/0"], "train/en/ and train/fr/"),
        (["train_en/0", "train_fr/0", "val_en/0"], "train_en/ and train_fr/"),
        (["v1/train", "v2/train"], "v1/ and v2/"),
        (["224/train", "512/train"], "224/ and 512/"),
        (["cat/0", "dog/0"], "cat/ and dog/"),
        (["a", "old/a"], "SRC itself and old/"),
        (["part-0/a", "part-2/a"], "part-0/ and part-2/"),
    ],
)
def test_folders_that_may_be_different_data_sets_are_refused(tmp_path, names, message):
    write(tmp_path / "SRC", *(f"{name}.parquet" for name in names))
    with pytest.raises(DataError, match=message) as error:
        parquet_images(tmp_path / "SRC")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "note"),
    [
        (["part-0/a", "part-1/a"], "part-0/, part-1/"),
        (["000/a", "001/a", "002/a"], "000/, 001/, 002/"),
        (["lang=en/a", "lang=fr/a"], "lang=en/, lang=fr/"),
        (["en", "fr"], "en.parquet, fr.parquet"),
        (["data/cats-train-0", "data/dogs-train-0"], "data/cats-train-0.parquet, data/dogs-train-0.parquet"),
    ],
)
def test_what_is_joined_is_noted(tmp_path, names, note):
    write(tmp_path, *(f"{name}.parquet" for name in names))
    assert splits(tmp_path) == {"train": names}
    assert parquet_images(tmp_path).notes[0] == f"joined as one data set: {note}"


def test_labels_in_the_names_of_folders(tmp_path):
    """Hive's and Spark's partitions: the column is not in the files."""
    names = ["label=great%20owl/a", "label=bee/a", "label=__HIVE_DEFAULT_PARTITION__/a"]
    write(tmp_path, *(f"{name}.parquet" for name in names))
    source = parquet_images(tmp_path)
    assert source.classes == ["bee", "great owl"]
    assert {item.name.split("/")[0]: item.label for item in source.splits["train"]} == {
        "label=great%20owl": 1,
        "label=bee": 0,
        "label=__HIVE_DEFAULT_PARTITION__": -1,
    }
    source = parquet_images(tmp_path, label_column="none")
    assert {item.label for item in source.splits["train"]} == {-1}


def test_numbers_in_the_names_of_folders(tmp_path):
    write(tmp_path, *(f"train/fine={number}/a.parquet" for number in (3, 10)))
    source = parquet_images(tmp_path, label_column="fine")
    assert sorted(item.label for item in source.splits["train"]) == [3, 10]
    assert {item.label for item in parquet_images(tmp_path).splits["train"]} == {-1}


def test_labels_in_folders_and_in_a_column_are_refused(tmp_path):
    write(tmp_path, "class=3/a.parquet", labels=[1])
    with pytest.raises(DataError, match="folder's name and in column 'label'; choose with --label-column"):
        parquet_images(tmp_path)
    for column, expected in (("class", 3), ("label", 1), ("none", -1)):
        (item,) = parquet_images(tmp_path, label_column=column).splits["train"]
        assert item.label == expected


def test_files_with_other_columns(tmp_path):
    write(tmp_path, "a.parquet", labels=[1])
    write_parquet(tmp_path / "b.parquet", pictures(1), labels_too=[0], target=[5])
    with pytest.raises(DataError, match="b.parquet has label column 'target', but .*a.parquet has 'label'"):
        parquet_images(tmp_path)
    pq.write_table(pa.table({"image": pictures(1)}), tmp_path / "b.parquet")
    source = parquet_images(tmp_path)
    assert [item.label for item in source.splits["train"]] == [1, -1]
    assert "b.parquet has no column 'label'" in source.notes
    pq.write_table(pa.table({"picture": pictures(1), "label": [1]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="b.parquet has image column 'picture', but .*a.parquet has 'image'"):
        parquet_images(tmp_path)
    pq.write_table(pa.table({"image": pictures(1), "label": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="some labels are numbers and some are names"):
        parquet_images(tmp_path)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="b.parquet has no column of images"):
        parquet_images(tmp_path)


def test_files_without_rows_are_skipped(tmp_path):
    write(tmp_path, "part-0.parquet", labels=[1])
    pq.write_table(pa.table({"image": pa.nulls(0), "label": pa.nulls(0)}), tmp_path / "part-1.parquet")
    source = parquet_images(tmp_path)
    assert [item.label for item in source.splits["train"]] == [1]
    assert source.notes == ["skipped, no rows: part-1.parquet"]
    (tmp_path / "part-0.parquet").unlink()
    with pytest.raises(DataError, match="has no rows"):
        parquet_images(tmp_path)
