"""Rows stored in chunks: mapped without descriptors, computed again where they are missing or damaged."""

import os

import numpy as np
import pytest
from helpers.few_descriptors import descriptors_of

from mimcl.cli.encoders.feature_store import ChunkedArray
from mimcl.pipeline.files import DataError


@pytest.fixture
def store(tmp_path):
    chunks = [range(first, first + 3) for first in range(0, 900, 3)]
    store = ChunkedArray(tmp_path / "features", chunks, np.float32, (4,))
    for chunk in range(300):
        store.write(chunk, np.full((3, 4), chunk))
    return store


def test_mapped_chunks_keep_no_descriptor(store):
    chunks = [store.read(chunk) for chunk in range(300)]
    assert descriptors_of(store.folder) == 0
    assert np.array_equal(np.concatenate(chunks), np.repeat(np.arange(300, dtype=np.float32), 3)[:, None] * np.ones(4))
    assert not chunks[0].flags.owndata


def test_a_chunk_outlives_its_file(store):
    rows = store.read(7)
    store.write(7, np.zeros((3, 4)))
    assert (rows == 7).all()
    assert not store.read(7).any()


def test_rows_stored_by_column(tmp_path):
    store = ChunkedArray(tmp_path / "features", [range(3)], np.float32)
    rows = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    store.write(0, rows)
    assert np.array_equal(store.read(0), rows)


def remove(path):
    path.unlink()


def shorten(path):
    os.truncate(path, path.stat().st_size - 1)


def empty(path):
    os.truncate(path, 0)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def replace_by_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [remove, shorten, empty, flip, replace_by_a_pipe])
def test_a_missing_or_damaged_chunk_is_computed_again(store, damage):
    path = store.folder / "000000006.npy"
    damage(path)
    assert store.read(2) is None
    store.write(2, np.full((3, 4), 5))
    assert (store.read(2) == 5).all()


def test_a_chunk_that_cannot_be_opened_is_named_with_the_reason(store):
    path = store.folder / "000000006.npy"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(DataError, match=r"006.npy cannot be read \(Too many levels of symbolic links\); remove it"):
        store.read(2)
