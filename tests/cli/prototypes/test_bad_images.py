"""Bad images do not stop `prototypes build`: each is named by its path, in no cluster, and at the largest distance."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from helpers.bad_samples import broken_png, flip_byte
from helpers.images import write_flat
from helpers.typed import mimcl

from mimcl.cli.inspect.inspect import inspect
from mimcl.cli.prototypes import workspace
from mimcl.cli.prototypes.build import BuildConfig, build
from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.pipeline.data_config import bad_allowed
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

pytestmark = pytest.mark.slow  # builds sets of prototypes

IMAGES, ROWS = 70, 30  # of a part: 3 of them
BROKEN, FLIPPED = {0, 31}, {29, 45, 69}  # undecodable; other bytes than the index says
CONFIG = BuildConfig("pixels", 4, decoder="reference")


@pytest.fixture(autouse=True, scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspace, "MAX_PART_ROWS", ROWS)
        yield


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    paths = write_flat(folder / "images", IMAGES)
    for number in BROKEN:
        paths[number].write_bytes(broken_png(number))
    pack(image_folder(folder / "images"), folder / "shards", PackConfig(workers=1), on_progress=id)
    return folder / "shards"


@pytest.fixture
def data(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "shards")
    index = ShardIndex.load(tmp_path / "shards")
    for number in FLIPPED:
        flip_byte(index, number)
    return tmp_path / "shards"


@pytest.mark.parametrize("features", ["pixels", "sift"])
@pytest.mark.parametrize("decoder", ["reference", "dali-cpu"])
@pytest.mark.parametrize("singletons", ["far", "near"])
def test_they_are_in_no_cluster_and_last(data, features, decoder, singletons, capsys):
    folder, found = build(data, replace(CONFIG, features=features, decoder=decoder, singletons=singletons))
    index, bad = ShardIndex.load(data), sorted(BROKEN | FLIPPED)
    assert np.flatnonzero(found.cluster < 0).tolist() == bad
    assert (found.distance[bad] == 1).all()
    assert np.isnan(found.raw_distance[bad]).all()
    good = np.setdiff1d(np.arange(IMAGES), bad)
    assert np.isfinite(found.raw_distance[good]).all()
    assert found.distance[good].min() == 0
    assert found.info["cluster_sizes"] == [f(np.bincount(found.cluster[good], minlength=4)) for f in (min, max)]
    assert found.info["bad"] == [{"key": index.key(row), "path": index.path(row)} for row in bad]
    assert dict(inspect(folder).lines())["bad images"] == "5, in no cluster, at distance 1"
    said = capsys.readouterr().err
    for row in bad:
        assert said.count(f"{index.path(row)} (sample {index.key(row)} of train-000000.tar) is bad") == 1


def test_the_others_are_as_if_the_bad_ones_were_not_there(packed, tmp_path):
    """The clusters of all good images are those of a data set without the bad ones."""
    _, found = build(packed, replace(CONFIG, out=tmp_path / "with"))
    folder = tmp_path / "images"
    shutil.copytree(packed.parent / "images", folder)
    for number in BROKEN:
        next(folder.glob(f"{number:05d}.*")).unlink()
    pack(image_folder(folder), tmp_path / "shards", PackConfig(workers=1), on_progress=id)
    _, expected = build(tmp_path / "shards", CONFIG)
    good = found.cluster >= 0
    np.testing.assert_array_equal(found.cluster[good], expected.cluster)
    np.testing.assert_allclose(found.distance[good], expected.distance, atol=1e-5)


def test_too_many_are_an_error_and_the_same_build_resumes_with_more_allowed(data, monkeypatch, capsys):
    index = ShardIndex.load(data)
    for number in range(50, 57):  # 12 in all
        flip_byte(index, number)
    build_words = ("prototypes", "build", "--features", "pixels", "--k", "4", "--decoder", "reference")
    assert mimcl(monkeypatch, data.parent, *build_words) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "mimcl: 11 bad images of 70 are more than the 10 allowed (11 in train-000000.tar); repair the shards (`mimcl "
        "verify shards --decode` lists what is wrong), or raise --max-bad"
    )
    assert mimcl(monkeypatch, data.parent, *build_words, "--max-bad", "0.2") == 0
    captured = capsys.readouterr()
    assert "resuming in shards/prototypes/.default.building/: 1 of 3 parts have features" in captured.out
    assert "bad images: 12, in no cluster, at distance 1; prototypes.json lists them" in captured.out
    assert json.loads((data / "prototypes" / "default" / "prototypes.json").read_text())["bad"][0]["key"] == "000000000"


def test_features_of_an_earlier_build_count_as_well(data, monkeypatch):
    """The limit is the same however often a build was stopped, and for any number of processes."""
    index = ShardIndex.load(data)
    for number in range(50, 57):
        flip_byte(index, number)
    with monkeypatch.context() as patch:
        patch.setattr(workspace.BuildFolder, "compute_clusters", lambda *a: (_ for _ in ()).throw(DataError("stop")))
        with pytest.raises(Exception, match="stop"):
            build(data, replace(CONFIG, max_bad=0.5))
    with pytest.raises(Exception, match="12 bad images of 70 are more than the 10 allowed"):
        build(data, CONFIG)


def test_the_share_is_that_of_training():
    assert [bad_allowed(0.001, count) for count in (100, 10_000, 1_000_000)] == [10, 10, 1000]


def test_a_set_with_bad_images_is_trained_on_and_checked(data, monkeypatch, capsys):
    folder, _ = build(data, CONFIG)
    assert PrototypeSet.load(folder, ShardIndex.load(data).fingerprint).distance.max() == 1
    words = ("--recipe", "cpu_small", "--curriculum", "proto", "--decoder", "reference", "--epochs", "1")
    small = ("data.batch_size=16", "data.image_size=16", "model.patch_size=8", "model.decoder_depth=1", "report=false")
    settings = [word for setting in small for word in ("--set", setting)]
    assert mimcl(monkeypatch, data.parent, "train", *words, *settings, "--out", "run") == 0
    assert mimcl(monkeypatch, data.parent, "masks", "run", "--images", "70") == 0
    assert "00000.jpg (sample 000000000 of train-000000.tar) is bad and shown black" in capsys.readouterr().err
