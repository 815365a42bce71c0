"""A small packed data set, for tests that only read it."""

import pytest
from helpers.images import write_flat, write_train_val

from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """(source folder, packed folder): 40 + 6 images of all formats in three classes, several shards."""
    root = tmp_path_factory.mktemp("labelled")
    write_train_val(root / "src", {"ant": 15, "bee": 12}, {"cat": 4, "ant": 2})
    write_flat(root / "src" / "train" / "cat", 13, seed=77, width=800, height=600)
    pack(image_folder(root / "src"), root / "out", PackConfig(shard_mb=1, workers=2), on_progress=lambda count: None)
    assert len(list((root / "out").glob("train-*.tar"))) >= 3
    return root / "src", root / "out"
