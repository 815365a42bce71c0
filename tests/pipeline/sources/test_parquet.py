"""Parquet as on the Hugging Face hub: columns, splits and names are found, row groups are read once."""

import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.archives import pictures, write_parquet

from mimcl.pipeline.files import DataError
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources import parquet
from mimcl.pipeline.sources.parquet import parquet_images

NAMES = ["ant", "bee", "zebra, striped"]


def test_the_hub_s_layout(tmp_path):
    train, val = pictures(7), pictures(2, 50)
    for number, rows in enumerate((slice(0, 4), slice(4, 7))):
        path = tmp_path / "data" / f"train-{number:05d}-of-00002.parquet"
        write_parquet(path, train[rows], [2, 0, 1, -1][: len(train[rows])], names=NAMES)
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", val, [1, 1], names=NAMES)
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", val, [-1, -1], names=NAMES)
    source = parquet_images(tmp_path)
    assert source.classes == NAMES
    assert [item.read() for item in source.splits["train"]] == train
    assert [item.read() for item in source.splits["val"]] == val
    assert [item.label for item in source.splits["train"]] == [2, 0, 1, -1, 2, 0, 1]
    names = [item.name for item in source.splits["train"]]
    assert names[4] == "data/train-00001-of-00002.parquet/000000000/picture_0.JPEG"
    assert names == sorted(set(names))
    skipped, unlabelled = source.notes
    assert "test: 1 files" in skipped
    assert "label: 1 images" in unlabelled
    newest = max(path.stat().st_mtime_ns for path in (tmp_path / "data").glob("[tv][ra]*"))
    assert source.modified == newest


def test_names_that_are_not_utf8(tmp_path):
    path = write_parquet(tmp_path / "images.parquet", pictures(3), [0, 1, 1])
    raw = path.rename(tmp_path / os.fsdecode(b"raw\xe9.parquet"))
    for root in (raw, tmp_path):
        source = parquet_images(root)
        assert [item.read() for item in source.splits["train"]] == pictures(3)
        assert source.splits["train"][0].name.startswith("raw\\xe9.parquet/000000000")


@pytest.mark.parametrize("labels", [["b", "a", "c"], [2, 1, 0]])
def test_one_file_with_names_or_numbers(tmp_path, labels):
    path = write_parquet(tmp_path / "images.parquet", pictures(3), labels)
    source = parquet_images(path)
    assert source.classes == (["a", "b", "c"] if labels[0] == "b" else [])
    assert [item.label for item in source.splits["train"]] == ([1, 0, 2] if labels[0] == "b" else [2, 1, 0])


def test_plain_bytes_dictionaries_and_large_types(tmp_path):
    images = pictures(3)
    table = pa.table(
        {
            "jpeg": pa.array(images, pa.large_binary()),
            "class": pa.array(["x", None, "y"]).dictionary_encode(),
            "url": pa.array(["a", "b", "c"]),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    source = parquet_images(tmp_path / "x.parquet")
    assert [item.read() for item in source.splits["train"]] == images
    assert [item.label for item in source.splits["train"]] == [0, -1, 1]
    assert source.splits["train"][0].name == "x.parquet/000000000"


def test_a_dot_in_a_column_s_name(tmp_path):
    images = pictures(3)
    values = [{"bytes": image, "path": f"{number}.jpg"} for number, image in enumerate(images)]
    pq.write_table(pa.table({"the.image": values, "label": [2, 0, 1]}), tmp_path / "x.parquet")
    (*_, last) = items = parquet_images(tmp_path / "x.parquet").splits["train"]
    assert [item.read() for item in items] == images
    assert (last.name, last.label) == ("x.parquet/000000002/2.jpg", 1)


def test_estimated_sizes_add_up(tmp_path):
    images = pictures(9)
    items = parquet_images(write_parquet(tmp_path / "x.parquet", images)).splits["train"]
    assert not items[0].exact
    assert 1 <= sum(item.nbytes for item in items) / sum(map(len, images)) < 2  # the group's statistics are included


def test_a_row_group_is_read_once(tmp_path, monkeypatch):
    images = pictures(9)
    items = parquet_images(write_parquet(tmp_path / "x.parquet", images)).splits["train"]
    groups = []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, group, **more: groups.append(group) or read(self, group, **more)
    )
    parquet._images.cache_clear()
    assert [pickle.loads(pickle.dumps(item)).read() for item in items] == images
    assert groups == [0, 1, 2]


def test_rows_without_an_image_are_rejected(tmp_path):
    one, two = pictures(2)
    source = parquet_images(write_parquet(tmp_path / "x.parquet", [one, None, two], [0, 0, 1], names=["a", "b"]))
    description = pack(source, tmp_path / "out", PackConfig(workers=1), on_progress=lambda count: None)
    assert description["splits"]["train"]["samples"] == 2
    assert "no image in this row" in (tmp_path / "out" / "rejected.jsonl").read_text()


@pytest.mark.parametrize(
    ("kind", "label"),
    [
        (pa.binary(), pa.string()),
        (pa.large_binary(), pa.large_string()),
        (pa.binary_view(), pa.string_view()),
        (pa.dictionary(pa.int32(), pa.binary()), pa.dictionary(pa.int8(), pa.string())),
        (pa.struct({"bytes": pa.binary_view(), "path": pa.string_view()}), pa.string()),
        (pa.struct({"path": pa.string(), "data": pa.large_binary()}), pa.string()),
        (pa.struct({"bytes": pa.binary(), "thumbnail": pa.binary()}), pa.string()),
    ],
    ids=str,
)
def test_every_type_of_bytes_and_text(tmp_path, kind, label):
    images = pictures(4)
    values = images
    if pa.types.is_struct(kind):
        held = "data" if "data" in kind.names else "bytes"
        values = [{name: image if name == held else None for name in kind.names} for image in images]
    column = pa.array(images).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(values, kind)
    names = pa.array(["b", "a", None, "b"])
    names = names.dictionary_encode() if pa.types.is_dictionary(label) else names.cast(label)
    pq.write_table(pa.table({"picture": column, "label": names}), tmp_path / "x.parquet")
    source = parquet_images(tmp_path / "x.parquet")
    assert [item.read() for item in source.splits["train"]] == images
    assert (source.classes, [item.label for item in source.splits["train"]]) == (["a", "b"], [1, 0, -1, 1])


def test_columns_whose_names_look_like_fields(tmp_path):
    image, other = pictures(2)
    table = pa.table({"image.bytes": [other], "image": [{"bytes": image, "path": "a.jpg"}], "label.path": ["x"]})
    pq.write_table(table, tmp_path / "x.parquet")
    (item,) = parquet_images(tmp_path / "x.parquet").splits["train"]
    assert (item.read(), item.name) == (image, "x.parquet/000000000/a.jpg")
    (item,) = parquet_images(tmp_path / "x.parquet", "image.bytes").splits["train"]
    assert item.read() == other


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        (pa.array([0.0, 1.0]), r"type double, .*; cast it to int64, with null"),
        (pa.array([0, 1]).cast(pa.float16()), "type halffloat"),
        (pa.array([True, False]), "type bool, .*; cast it to int8 or to names"),
        (pa.array([[1], [2, 3]]), "type list<.*; keep one number or name per image"),
        (pa.array([{"id": 1}, {"id": 2}]), "type struct<.*; keep one"),
        (pa.array([0, 1]).cast(pa.decimal128(30, 2)), "type decimal128.*; cast it to int64"),
        (pa.array([0, 1], pa.date32()), r"type date32.*; cast it to int64 or string"),
        (pa.nulls(2), "type null, .*; it has no values"),
        (pa.array([b"cat", b"dog"]), "type binary, .*; cast it to string"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_labels_of_other_types_are_refused(tmp_path, values, hint):
    """By their name or by --label-column; they would otherwise be lost without a word."""
    for name, given in (("label", None), ("class", None), ("score", "score")):
        pq.write_table(pa.table({"image": pictures(2), name: values}), tmp_path / "x.parquet")
        with pytest.raises(DataError, match=f"x.parquet: column '{name}' has {hint}.*--label-column none") as error:
            parquet_images(tmp_path / "x.parquet", label_column=given)
        assert "\n" not in str(error.value)
        source = parquet_images(tmp_path / "x.parquet", label_column="none")
        assert [item.label for item in source.splits["train"]] == [-1, -1]


def test_a_column_that_is_no_label_gives_way(tmp_path):
    """To one that is, and segmentation masks are not labels."""
    table = pa.table({"image": pictures(2), "labels": [[1], [2]], "label": [4, 3]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert [item.label for item in parquet_images(tmp_path / "x.parquet").splits["train"]] == [4, 3]
    masks = [{"bytes": mask, "path": None} for mask in pictures(2)]
    pq.write_table(pa.table({"image": pictures(2), "label": masks}), tmp_path / "x.parquet")
    source = parquet_images(tmp_path / "x.parquet")
    assert [item.label for item in source.splits["train"]] == [-1, -1]
    assert source.notes == ["without a label: 2 images"]


@pytest.mark.parametrize(
    "image", [[[1, 2]] * 2, ["a.jpg", "b.jpg"], pa.array([b"ab"] * 2, pa.binary(2))], ids=["list", "text", "fixed"]
)
def test_columns_that_hold_no_images_are_refused(tmp_path, image):
    pq.write_table(pa.table({"image": image, "label": [0, 1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x.parquet has no column of images \(bytes\); its columns are image \("):
        parquet_images(tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"column 'image' does not hold images \(bytes\)"):
        parquet_images(tmp_path / "x.parquet", "image")


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.table([pa.array(pictures(1)), pa.array([1]), pa.array([2])], names=["image", "label", "label"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match="several columns named 'label'"):
        parquet_images(tmp_path / "x.parquet")


def test_a_file_without_an_image_column_is_refused(tmp_path):
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "x.parquet")
    message = r"no column of images.*text \(string\), label \(int64\)"
    with pytest.raises(DataError, match=message) as error:
        parquet_images(tmp_path / "x.parquet")
    assert "\n" not in str(error.value)


def test_an_ambiguous_image_column_has_to_be_chosen(tmp_path):
    one, two = pictures(2)
    table = pa.table({"left": [one], "right": [two], "fine": [3], "coarse": [1]})
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match="--image-column.*left.*right"):
        parquet_images(tmp_path / "x.parquet")
    (item,) = parquet_images(tmp_path / "x.parquet", "right", "coarse").splits["train"]
    assert (item.read(), item.label) == (two, 1)
    with pytest.raises(DataError, match="no column 'middle'.*--image-column"):
        parquet_images(tmp_path / "x.parquet", "middle")
    with pytest.raises(DataError, match="'fine' does not hold"):
        parquet_images(tmp_path / "x.parquet", "fine")
    with pytest.raises(DataError, match="'left' has type binary, not numbers or names; cast it"):
        parquet_images(tmp_path / "x.parquet", "right", "left")


def test_an_ambiguous_label_column_has_to_be_chosen(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", pictures(2), [0, 1], labels_too=[1, 0])
    pq.write_table(pq.read_table(path).rename_columns(["image", "label", "labels"]), path)
    with pytest.raises(DataError, match="--label-column"):
        parquet_images(path)


def test_a_label_beyond_the_classes_in_the_metadata_is_refused(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", pictures(2), [0, 5], names=["a", "b"])
    with pytest.raises(DataError, match="label 5 .* 2 classes"):
        parquet_images(path)


@pytest.mark.parametrize(
    "content", [b"PAR1", b"PAR1" + b"rubbish" * 50 + b"PAR1", b""], ids=["mark", "rubbish", "empty"]
)
def test_an_invalid_parquet_file_is_refused(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(DataError, match="x.parquet is not a readable parquet") as error:
        parquet_images(tmp_path / "x.parquet")
    assert "\n" not in str(error.value)


def test_a_row_group_that_is_damaged_is_rejected(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", pictures(6), [0, 1, 0, 1, 0, 1])
    items = parquet_images(path).splits["train"]
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(content)
    parquet._images.cache_clear()
    with pytest.raises(OSError, match="row group"):
        items[0].read()
