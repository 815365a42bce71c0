"""A loader that was made before the processes were connected, or differently on each, is refused."""

import pytest
from helpers.gloo_ranks import early_loader, loader_of_seed, run_ranks
from helpers.images import write_classes

from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    home = tmp_path_factory.mktemp("early")
    write_classes(home / "images", {"a": 20})
    pack(image_folder(home / "images"), home / "shards", PackConfig(), on_progress=lambda count: None)
    return home / "shards"


def test_it_is_refused_in_a_line_on_every_process(shards, tmp_path):
    for rank, result in enumerate(run_ranks(2, early_loader, shards, tmp_path / "store", {})):
        assert result == (
            f"ConfigError: the loader was made for rank 0 of 1, but this is rank {rank} of 2; make it after the "
            "processes are connected (with Lightning, in train_dataloader)"
        )


def test_a_rank_that_is_given_is_the_callers_business(shards, tmp_path):
    alone = {"rank": 0, "world_size": 1}
    assert run_ranks(2, early_loader, shards, tmp_path / "store", alone) == [[*range(12)]] * 2


def test_loaders_that_differ_are_refused_on_every_process(shards):
    assert run_ranks(2, loader_of_seed, shards, [5, 5]) == [[*range(6)], [*range(6, 12)]]
    for result in run_ranks(2, loader_of_seed, shards, [5, 6]):
        assert result.startswith("DistributedError: what loaders draw differs between the processes")
