"""The index describes the shards; any other or damaged index is refused in one line."""

import json
import os
import shutil
import struct
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from helpers.damage import edit_dataset, seal_index
from helpers.images import write_flat
from PIL import Image

from mimcl.pipeline.dataset_json import read_dataset
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex, file_digest
from mimcl.pipeline.index_writer import table_of, write_index
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

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
def test_columns_match_the_shards(labelled, split):
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
    assert write_index(tmp_path / "a.arrow", table_of(ROWS)) == xxhash.xxh128_hexdigest(packed)
    assert write_index(tmp_path / "b.arrow", table_of(ROWS[::-1])) != xxhash.xxh128_hexdigest(packed)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("row", [0, 2])
def test_fingerprint_is_sensitive_to_what_it_covers(tmp_path, column, row):
    place = COLUMNS.index(column)
    changed = [list(values) for values in ROWS]
    value = changed[row][place]
    changed[row][place] = value[:-1] + "9" if isinstance(value, str) else value - 1
    same = write_index(tmp_path / "a.arrow", table_of(ROWS)) == write_index(
        tmp_path / "b.arrow", table_of([tuple(v) for v in changed])
    )
    assert same == (column not in ("key", "nbytes", "xxh64", "label"))


def test_no_data_set(tmp_path):
    assert "no dataset.json" in refused(tmp_path)
    assert "no dataset.json" in refused(tmp_path / "missing")


def test_a_missing_split_is_named_with_the_existing_ones(labelled):
    assert "test split" in (message := refused(labelled[1], "test"))
    assert "train, val" in message


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
def test_a_damaged_dataset_json(copy, text):
    (copy / "dataset.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "dataset.json cannot be read" in refused(copy)


def test_dataset_json_nested_too_deeply(copy):
    (copy / "dataset.json").write_text("[" * 200_000)
    assert "dataset.json cannot be read" in refused(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": -1}, "not an integer"),
        ({"samples": 40.0}, "not an integer"),
        ({"samples": True}, "not an integer"),
        ({"samples": 39}, "do not add up"),
        ({"fingerprint": 7}, "not a string"),
        ({"classes": [1, 2]}, "not a string"),
        ({"shards": {}}, "do not add up"),
        ({"shards": [{"name": "train-000000.tar", "bytes": -5, "samples": 40, "xxh128": ""}]}, "not an integer"),
        ({"shards": [{"name": "train-000000.tar", "bytes": 2**63, "samples": 40, "xxh128": ""}]}, "not an integer"),
    ],
)
def test_dataset_json_with_impossible_values(copy, changes, message):
    edit_dataset(copy, **changes)
    assert message in refused(copy)
    with pytest.raises(DataError):  # also for the other split
        ShardIndex.load(copy, "val")


@pytest.mark.parametrize(
    "name",
    [
        "../train-000000.tar",
        "/etc/passwd",
        "train-000000.tar\n",
        "train-00000٠.tar",  # a digit, though not an ASCII one
        "train-000001.tar",
        "val-000000.tar",
        "pipe:touch x",
        "s3://bucket/train-000000.tar",
        "",
        None,
    ],
)
def test_a_shard_has_the_name_that_packing_gives(copy, name):
    shards = read_dataset(copy)["splits"]["train"]["shards"]
    edit_dataset(copy, shards=[shards[0] | {"name": name}, *shards[1:]])
    assert "a shard called" in refused(copy)


def test_splits_are_train_and_val(copy):
    description = json.loads((copy / "dataset.json").read_text())
    description["splits"]["../x"] = description["splits"].pop("val")
    (copy / "dataset.json").write_text(json.dumps(description))
    assert "a split called '../x'" in refused(copy)


def test_a_data_set_packed_before_indices_had_checksums(copy):
    description = json.loads((copy / "dataset.json").read_text())
    del description["splits"]["train"]["index_xxh128"]
    (copy / "dataset.json").write_text(json.dumps(description))
    message = refused(copy)
    assert "earlier version of mimcl" in message
    assert "pack the images again" in message


@pytest.mark.parametrize("root", ["pipe:cat x", "pipe:/bin/cat", "PIPE:cat", "pipe:cat http://x | sh"])
def test_pipes_are_refused(root):
    message = refused(Path(root))
    assert "pipe: is not supported" in message


@pytest.mark.parametrize("root", ["s3:/bucket/x", "ftp://host/x", "ssh://x/y", "memory://x", "file:///tmp/x"])
def test_other_schemes_are_not_supported(root):
    assert f"{root.partition(':')[0]}: is not supported" in refused(root)


def test_files_that_are_not_regular_do_not_block(copy):
    for name in ("train.arrow", "dataset.json"):
        (copy / name).unlink()
        os.mkfifo(copy / name)
        assert f"{name} is not a regular file" in refused(copy)
        (copy / name).unlink()
        (copy / name).symlink_to("/dev/zero")
        assert f"{name} is not a regular file" in refused(copy)


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


def test_every_damage_to_the_index_is_found(copy):
    whole = (copy / "train.arrow").read_bytes()
    for size in [*range(0, 16), *range(16, len(whole), 97), *range(len(whole) - 16, len(whole))]:
        (copy / "train.arrow").write_bytes(whole[:size])
        assert "train.arrow" in refused(copy)
    for start in range(0, len(whole), 61):
        flipped = bytes([whole[start] ^ 1])
        (copy / "train.arrow").write_bytes(whole[:start] + flipped + whole[start + 1 :])
        assert "does not match dataset.json" in refused(copy)
    (copy / "train.arrow").write_bytes(whole[:-10] + bytes(10))
    edit_dataset(copy, index_xxh128=file_digest(copy / "train.arrow"))
    assert "train.arrow cannot be read" in refused(copy)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("shard", -1, "in no shard"),
        ("shard", 1000, "in no shard"),
        ("offset", 511, "inside its shard"),
        ("offset", -(2**63), "inside its shard"),
        ("offset", 2**63 - 1, "inside its shard"),
        ("offset", 512, "out of order"),
        ("nbytes", 0, "inside its shard"),
        ("nbytes", -1, "inside its shard"),
        ("nbytes", 2**31, "inside its shard"),
        ("nbytes", 2**63 - 1, "inside its shard"),
        ("nbytes", 900_000, "inside its shard"),  # of the last row
        ("width", 0, "impossible size"),
        ("height", -1, "impossible size"),
        ("width", 2**31 - 1, "impossible size"),
        ("label", -2, "impossible label"),
        ("label", 3, "impossible label"),
        ("label", None, "missing"),
        ("key", None, "missing"),
    ],
)
def test_rows_that_were_never_packed(copy, column, value, message):
    index = ShardIndex.load(copy)
    values = index.keys() if column == "key" else getattr(index, column).tolist()
    assert len(values) == index.samples
    values[-1] = value
    if column == "width":
        seal_index(copy, height=[*index.height[:-1].tolist(), 2**31 - 1])
    seal_index(copy, **{column: values})
    said = refused(copy)
    assert "train.arrow" in said
    assert message in said
    assert value is None or f"row {index.samples - 1} " in said
    assert said.endswith("pack the images again, with --overwrite")


@pytest.mark.parametrize("rows", [40, 7])
def test_rows_out_of_order(copy, monkeypatch, rows):
    index = ShardIndex.load(copy)
    monkeypatch.setattr("mimcl.pipeline.index._CHUNK", rows)  # also if the order breaks between two chunks
    offsets = index.offset.tolist()
    offsets[6:8] = offsets[7], offsets[6]
    seal_index(copy, offset=offsets, nbytes=[1] * len(offsets))
    message = refused(copy)
    assert "row 7 " in message
    assert "out of order" in message


def test_strings_that_point_outside_the_index(copy):
    content = bytearray((copy / "train.arrow").read_bytes())
    offsets = np.arange(0, 9 * 41, 9, dtype="<i8").tobytes()  # of the keys
    place = content.index(offsets) + 8 * 20
    content[place : place + 8] = struct.pack("<q", 2**40)
    (copy / "train.arrow").write_bytes(content)
    edit_dataset(copy, index_xxh128=file_digest(copy / "train.arrow"))
    assert "train.arrow cannot be read" in refused(copy)


def test_a_table_of_another_format(copy):
    fingerprint = ShardIndex.load(copy).fingerprint
    table = pa.table({"key": ["a"]}).replace_schema_metadata({"fingerprint": fingerprint})
    with pa.ipc.new_file(str(copy / "train.arrow"), table.schema) as writer:
        writer.write_table(table)
    edit_dataset(copy, index_xxh128=file_digest(copy / "train.arrow"))
    assert "format" in refused(copy)


def test_the_index_of_another_data_set(copy, tmp_path):
    shutil.copy(copy / "val.arrow", copy / "train.arrow")
    assert "does not match dataset.json" in refused(copy)
    edit_dataset(copy, index_xxh128=file_digest(copy / "train.arrow"))
    assert "does not match dataset.json" in refused(copy)
    write_flat(tmp_path / "src", 40, seed=9)  # as many samples
    pack(image_folder(tmp_path / "src"), tmp_path / "out", PackConfig(), on_progress=lambda count: None)
    shutil.copy(tmp_path / "out" / "train.arrow", copy / "train.arrow")
    assert "does not match dataset.json" in refused(copy)
