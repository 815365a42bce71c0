"""Memory maps without descriptors, and arrays in them."""

import io
import os

import numpy as np
import pyarrow as pa
import pytest
from helpers.few_descriptors import descriptors_of, no_descriptors

from mimcl.pipeline.files import DataError, open_regular
from mimcl.pipeline.map_file import map_file, npy_view


def mapped(path) -> pa.Buffer:
    with open_regular(path) as file:
        return map_file(file)


@pytest.mark.parametrize("name", ["plain", "caf\u00e9", "\u65e5\u672c", "caf\udce9"])
def test_many_maps_keep_no_descriptor(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"content")
    maps = [mapped(path) for _ in range(300)]
    assert descriptors_of(tmp_path) == 0
    assert {bytes(one) for one in maps} == {b"content"}


def test_the_open_file_is_mapped_even_if_its_path_is_replaced(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"first")
    with open_regular(path) as file:
        (tmp_path / "new").write_bytes(b"second")
        os.replace(tmp_path / "new", path)
        assert bytes(map_file(file)) == b"first"


def test_an_empty_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert bytes(mapped(tmp_path / "file")) == b""


def test_no_descriptor_left(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    refused = pytest.raises(DataError, match=r"file cannot be mapped \(Too many open files\); raise the limit")
    with open_regular(tmp_path / "file") as file, refused, no_descriptors():
        map_file(file)


def npy(array: np.ndarray, **options) -> pa.Buffer:
    file = io.BytesIO()
    np.save(file, array, **options)
    return pa.py_buffer(file.getvalue())


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.zeros((0, 4), np.int64),
        np.array(3.5),
        np.array([(1, 2.5)], [("cluster", "<i4"), ("raw_distance", "<f4")]),
    ],
)
def test_views_of_npy_files(array):
    view = npy_view(npy(array))
    assert view.dtype == array.dtype
    assert view.shape == array.shape
    assert np.array_equal(view, array)
    assert not view.flags.owndata


@pytest.mark.parametrize(
    "content",
    [
        pa.py_buffer(b""),
        pa.py_buffer(b"PK\3\4" + bytes(200)),
        npy(np.arange(9)).slice(0, 60),
        npy(np.arange(9)).slice(0, 150),
        npy(np.array([{}], object), allow_pickle=True),
    ],
)
def test_damaged_npy_files_are_refused(content):
    with pytest.raises(ValueError):
        npy_view(content)
