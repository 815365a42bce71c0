"""A small packed data set with prototypes."""

import pytest
from helpers import ranks
from helpers.images import write_classes
from helpers.small_runs import IMAGES


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A folder with shards/ in which commands run."""
    folder = tmp_path_factory.mktemp("home")
    write_classes(folder / "imagenet", {"ant": IMAGES // 2, "bee": IMAGES // 2})
    ranks.run(folder, "shard", "imagenet")
    ranks.run(folder, "prototypes", "build", "--features", "sift", "--k", "3")
    return folder
