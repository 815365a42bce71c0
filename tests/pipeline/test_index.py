"""The index says what is in the shards; what is not that index is refused in one line."""

import contextlib
import json
import shutil
import struct
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from images import write_flat
from PIL import Image

from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex, write_index
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources import image_folder

ROWS = [
    ("000000000", "a/x.jpg", 0, 512, 1000, 2**64 - 1, 64, 48, 3),
    ("000000001", "b/y.jpg", 0, 2048, 999, 3, 32, 32, -1),
    ("000000002", "\\xff\n'.jpg", 1, 512, 5_000_000_000, 2**53 + 1, 500, 1, 0),
]
COLUMNS = ["key", "path", "shard", "offset", "nbytes", "xxh64", "width", "height", "label"]


def refused(root, split="train") -> str:
    with pytest.raises(DataError) as error:
        ShardIndex.load(root, split)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def copy(labelled, tmp_path):
    shutil.copytree(labelled[1], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("split", ["train", "val"])
def test_columns_equal_reality(labelled, split):
    src, out = labelled
    index = ShardIndex.load(out, split)
    items = image_folder(src).splits[split]
    assert index.samples == len(items)
    assert index.classes == ["ant", "bee", "cat"]
    assert len(set(index.shard.tolist())) == len(index.shards)
    for row, item in enumerate(items):
        assert (index.key(row), index.path(row), index.label[row]) == (f"{row:09d}", item.name, item.label)
        raw = (out / index.shards[index.shard[row]]["name"]).read_bytes()
        data = raw[index.offset[row] : index.offset[row] + index.nbytes[row]]
        assert data == (src / split / item.name).read_bytes()
        assert int(index.xxh64[row]) == xxhash.xxh64_intdigest(data)
        with Image.open(src / split / item.name) as image:
            assert (index.width[row], index.height[row]) == image.size


def test_columns_are_views_of_the_mapped_file(labelled):
    index = ShardIndex.load(labelled[1])
    before = pa.total_allocated_bytes()
    again = ShardIndex.load(labelled[1])
    assert pa.total_allocated_bytes() - before < 1000
    for field in fields(ShardIndex):
        column = getattr(again, field.name)
        if isinstance(column, np.ndarray):
            assert not column.flags.owndata
            assert not column.flags.writeable
            np.testing.assert_array_equal(column, getattr(index, field.name))


def test_the_file_is_what_is_documented(labelled):
    with pa.memory_map(str(labelled[1] / "train.arrow")) as file:
        reader = pa.ipc.open_file(file)
        assert reader.num_record_batches == 1
        assert reader.schema.names == COLUMNS
        kinds = ["large_string", "large_string", "int32", "int64", "int64", "uint64", "int32", "int32", "int32"]
        assert [str(kind) for kind in reader.schema.types] == kinds


def test_fingerprint_is_of_key_nbytes_xxh64_and_label_in_row_order(tmp_path):
    packed = b"".join(struct.pack("<9sqQi", row[0].encode(), row[4], row[5], row[8]) for row in ROWS)
    assert write_index(tmp_path / "a.arrow", ROWS) == xxhash.xxh128_hexdigest(packed)
    assert write_index(tmp_path / "b.arrow", ROWS[::-1]) != xxhash.xxh128_hexdigest(packed)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", [0, 2])
def test_fingerprint_is_sensitive_to_what_it_covers(tmp_path, column, row):
    place = COLUMNS.index(column)
    changed = [list(values) for values in ROWS]
    value = changed[row][place]
    changed[row][place] = value[:-1] + "9" if isinstance(value, str) else value - 1
    same = write_index(tmp_path / "a.arrow", ROWS) == write_index(tmp_path / "b.arrow", [tuple(v) for v in changed])
    assert same == (column not in ("key", "nbytes", "xxh64", "label"))


def test_a_split_without_images_is_not_packed(tmp_path):
    (tmp_path / "src" / "val").mkdir(parents=True)
    (tmp_path / "src" / "val" / "text.jpg").write_text("no image")
    write_flat(tmp_path / "src" / "train", 2)
    with pytest.raises(DataError, match="none of the 1 files of val is a usable image, for example text.jpg"):
        pack(image_folder(tmp_path / "src"), tmp_path / "out", PackConfig(), on_progress=lambda count: None)
    assert not (tmp_path / "out").exists()


def test_no_data_set(tmp_path):
    assert "no dataset.json" in refused(tmp_path)
    assert "no dataset.json" in refused(tmp_path / "missing")


def test_missing_split_is_named_with_those_there_are(labelled):
    assert "no test split; it has train, val" in refused(labelled[1], "test")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"format": "mimcl-shards/1"}',
        '{"format": "mimcl-shards/1", "splits": []}',
        "\udcff",
    ],
)
def test_dataset_json_that_is_none(copy, text):
    (copy / "dataset.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "dataset.json cannot be read" in refused(copy)


@pytest.mark.parametrize("key", ["samples", "fingerprint", "classes", "shards"])
def test_dataset_json_with_something_missing(copy, key):
    description = json.loads((copy / "dataset.json").read_text())
    del description["splits"]["train"][key]
    (copy / "dataset.json").write_text(json.dumps(description))
    assert "cannot be read" in refused(copy)


def test_other_format(copy):
    description = json.loads((copy / "dataset.json").read_text()) | {"format": "mimcl-shards/2"}
    (copy / "dataset.json").write_text(json.dumps(description))
    message = refused(copy)
    assert "mimcl-shards/2" in message
    assert "mimcl-shards/1" in message


def test_missing_index(copy):
    (copy / "train.arrow").unlink()
    assert "train.arrow cannot be read" in refused(copy)


def test_damaged_index(copy):
    whole = (copy / "train.arrow").read_bytes()
    for size in [*range(0, 16), *range(16, len(whole), 97), *range(len(whole) - 16, len(whole))]:
        (copy / "train.arrow").write_bytes(whole[:size])
        assert "train.arrow" in refused(copy)
    for start in range(0, len(whole), 61):
        (copy / "train.arrow").write_bytes(whole[:start] + b"\xff" * 10 + whole[start + 10 :])
        with contextlib.suppress(DataError):  # and nothing else; damage to the columns is found when samples are read
            ShardIndex.load(copy)
    (copy / "train.arrow").write_bytes(whole[:-10] + bytes(10))
    refused(copy)


def test_a_table_of_another_format(copy):
    fingerprint = ShardIndex.load(copy).fingerprint
    table = pa.table({"key": ["a"]}).replace_schema_metadata({"fingerprint": fingerprint})
    with pa.ipc.new_file(str(copy / "train.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert "not an index of this program's format" in refused(copy)


def test_the_index_of_another_data_set(copy, tmp_path):
    shutil.copy(copy / "val.arrow", copy / "train.arrow")
    assert "not the index that dataset.json describes" in refused(copy)
    write_flat(tmp_path / "src", 40, seed=9)  # as many samples
    pack(image_folder(tmp_path / "src"), tmp_path / "out", PackConfig(), on_progress=lambda count: None)
    shutil.copy(tmp_path / "out" / "train.arrow", copy / "train.arrow")
    assert "not the index that dataset.json describes" in refused(copy)
