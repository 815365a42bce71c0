"""A process without a free file descriptor says so: it blames no file, and takes none for missing or damaged."""

import errno
import os
import re

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.archives import pictures, write_parquet, zip_of
from helpers.few_descriptors import WORDS, no_descriptors
from helpers.images import encoded

from mimcl.cli.encoders.feature_store import ChunkedArray
from mimcl.cli.errors import with_remedy
from mimcl.cli.inspect.run import _counts
from mimcl.cli.prototypes.workspace import _read_json, _read_tensors
from mimcl.cli.run import trackers
from mimcl.curriculum.prototypes import PrototypeError, PrototypeSet
from mimcl.curriculum.timm_weights import load_weights
from mimcl.model import checkpoint
from mimcl.pipeline.dataset_json import read_dataset
from mimcl.pipeline.files import DataError, open_regular, remedy, write_json
from mimcl.pipeline.index import ShardIndex, file_digest
from mimcl.pipeline.packing.jobs import HashJob, hash_items
from mimcl.pipeline.packing.pack_config import PackConfig
from mimcl.pipeline.packing.sample import prepare
from mimcl.pipeline.remote.shard_cache import ShardCache
from mimcl.pipeline.sources.archives.zips import zip_images
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.sources.item import RangeItem
from mimcl.pipeline.sources.parquet import parquet_images
from mimcl.pipeline.store import ShardStore
from mimcl.pipeline.verify import verify

WRONG = re.compile(r"damaged|again|restore|check|make room|free some|delete|not a |download|trying", re.IGNORECASE)


def told(act, error: type[Exception] = DataError) -> str:
    """Return how `act`, which succeeds, fails without descriptors."""
    act()
    with pytest.raises(error) as raised, no_descriptors():
        act()
    message = with_remedy(str(raised.value))
    assert WORDS in message
    assert "ulimit -n" in message
    assert not WRONG.search(message), message
    assert len(message.splitlines()) == 1
    return message


def test_data_sets(home):
    shards = home / "shards"
    index = ShardIndex.load(shards)
    assert "dataset.json" in told(lambda: read_dataset(shards))
    told(lambda: ShardIndex.load(shards))
    assert "train-000000.tar" in told(lambda: ShardStore(index).read(np.array([0])))
    told(lambda: file_digest(shards / "train.arrow"))


def test_verify_finds_no_fault_in_the_data(home):
    told(lambda: verify(home / "shards", False, 1, lambda count: None))


def test_packing_rejects_no_image(home, tmp_path):
    images = home.parent / "images"
    images.mkdir(exist_ok=True)
    for number in range(3):
        (images / f"{number}.jpg").write_bytes(encoded("baseline", number))
    zipped = zip_images(zip_of(images, tmp_path / "images.zip")).splits["train"]
    plain = image_folder(images).splits["train"]
    tar = home / "shards" / "train-000000.tar"
    index = ShardIndex.load(home / "shards")
    member = RangeItem("0.jpg", -1, int(index.nbytes[0]), tar, int(index.offset[0]))
    table = parquet_images(write_parquet(tmp_path / "train.parquet", pictures(6), [0] * 6, rows=1)).splits["train"]
    rows = iter(table)  # one group each, of which the last two stay in memory
    for item in (plain[0], zipped[0], member):
        told(lambda item=item: prepare(item, PackConfig()))
    prepare(next(rows), PackConfig())
    with pytest.raises(DataError, match=WORDS), no_descriptors():
        prepare(next(rows), PackConfig())
    job = HashJob(tmp_path / "hashes.npy", [0], [plain[0]])
    told(lambda: hash_items(job, lambda count: None))


def test_intermediate_results_are_not_computed_again(tmp_path):
    store = ChunkedArray(tmp_path / "features", [range(3)], np.float32)
    store.write(0, np.ones((3, 2)))
    told(lambda: store.read(0))
    write_json(tmp_path / "settings.json", {"a": 1})
    told(lambda: _read_json(tmp_path / "settings.json"))
    (tmp_path / "places.safetensors").write_bytes(safetensors.torch.save({"a": torch.ones(2)}))
    told(lambda: _read_tensors(tmp_path / "places"))


def test_cached_shards_are_not_fetched_again(tmp_path):
    cache = ShardCache(tmp_path, 10**6)
    cache.open("key", 100, 1)
    told(lambda: cache.find("key", 100, 1))
    told(lambda: cache.open("key", 100, 1))


def test_prototype_sets(tmp_path):
    column = np.zeros(4, np.float32)
    PrototypeSet(np.zeros(4, np.int32), column, column, np.zeros((1, 2), np.float32), {
        "format": "mimcl-prototypes/1", "index_fingerprint": "x", "features": "pixels"
    }).save(tmp_path / "set")  # fmt: skip
    told(lambda: PrototypeSet.load(tmp_path / "set", "x"), PrototypeError)


def test_training_does_not_resume_from_an_older_checkpoint(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"w": torch.ones(2)}, {"s": 1}, {}, keep_last=2)
    lines: list[str] = []
    with pytest.raises(checkpoint.CheckpointError, match=WORDS) as raised, no_descriptors():
        checkpoint.load(tmp_path / "00000002")
    assert not isinstance(raised.value, checkpoint.DamagedError)
    assert checkpoint.newest(tmp_path, checkpoint.load, lines.append).path.name == "00000002"
    assert not lines


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match=WORDS) as raised, no_descriptors():
        checkpoint.save(tmp_path, 1, {"w": torch.ones(2)}, {"s": 1}, {}, keep_last=2)
    assert "room" not in str(raised.value)
    assert "room" in checkpoint.room_advice(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def test_files_of_runs(tmp_path):
    np.save(tmp_path / "draw_counts.npy", np.ones(3, np.uint32))
    told(lambda: _counts(tmp_path / "draw_counts.npy"))
    write_json(tmp_path / "trackers.json", {"id": "a"})
    told(lambda: trackers._read(tmp_path / "trackers.json"))


def test_weights_of_an_extractor(tmp_path):
    model = torch.nn.Linear(2, 2)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    told(lambda: load_weights(model, tmp_path / "weights.pth"), ValueError)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EMFILE, "raise the limit of open files"),
        (errno.ENFILE, "end other programs"),
        (errno.ENOMEM, "free some memory"),
        (errno.EACCES, "check the permissions, or pack again"),
        (errno.EIO, "check the disk, or pack again"),
        (errno.ENOENT, "pack again"),
        (errno.ENOSPC, "pack again"),
    ],
)
def test_what_to_do_depends_on_the_reason(number, advice):
    assert remedy(OSError(number, os.strerror(number)), "pack again").startswith(advice)


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("cannot open shared memory: Too many open files (24)", "; raise the limit of open files"),
        ("x: Too many open files in system", "; end other programs"),
        ("Cannot allocate memory", "; free some memory"),
        ("no shards", ""),
    ],
)
def test_messages_of_libraries_get_the_advice_once(message, advice):
    said = with_remedy(message)
    assert said.startswith(message + advice)
    assert with_remedy(said) == said


def test_a_pipe_is_still_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "pipe")
