"""Prototype sets of remote data: fetched and uploaded completely; refused where uploads are not possible."""

import json

import numpy as np
import pytest
from helpers.typed import mimcl

from mimcl.cli.prototypes.build import BuildConfig, build
from mimcl.curriculum.prototypes import PrototypeError, PrototypeSet
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.remote.remote_folder import upload

pytestmark = pytest.mark.slow


def test_a_set_is_fetched_once_and_again_when_its_local_copy_is_damaged(bucket, shards, tmp_path):
    index = ShardIndex.load(bucket.root)
    folder = index.prototypes_folder("default")
    found = PrototypeSet.load(folder, index.fingerprint)
    np.testing.assert_array_equal(
        found.distance, PrototypeSet.load(shards / "prototypes" / "default", index.fingerprint).distance
    )
    assert (folder / "gallery.png").read_bytes() == b"a picture"
    bucket.inject()
    assert index.prototypes_folder("default") == folder
    assert not bucket.requests("npy|train.arrow")
    (folder / "centroids.npy").write_bytes(b"damage")
    PrototypeSet.load(index.prototypes_folder("default"), index.fingerprint)


def test_an_incomplete_remote_set_is_refused_and_leaves_nothing(bucket, shards):
    index = ShardIndex.load(bucket.root)
    bucket.inject(dict(path=r"centroids\.npy", what="status", value=404))
    with pytest.raises(DataError, match=r"centroids\.npy.*404"):
        index.prototypes_folder("default")
    assert not (index.root / "prototypes" / "default").exists()
    assert not list((index.root / "prototypes").glob(".*"))


@pytest.mark.parametrize("name", ["../../x", "/etc/x", ".hidden"])
def test_file_names_in_a_description_must_not_be_paths(bucket, shards, tmp_path, name):
    folder = tmp_path / "hostile"
    folder.mkdir()
    (folder / "prototypes.json").write_text(json.dumps({"xxh128": {name: "0"}}))
    upload(folder, f"{bucket.root}/prototypes")
    with pytest.raises(DataError, match="is damaged"):
        ShardIndex.load(bucket.root).prototypes_folder("hostile")


def test_sets_are_built_in_a_bucket_and_refused_on_a_web_server(bucket, web, monkeypatch, tmp_path, capfd):
    words = ("prototypes", "build", "--features", "pixels", "--k", "3", "--name", "mine", "--decoder", "reference")
    with pytest.raises(PrototypeError, match="read-only"):
        build(web.root)
    assert mimcl(monkeypatch, tmp_path, *words, "--data", bucket.root) == 0
    assert f"wrote {bucket.root}/prototypes/mine/" in " ".join(capfd.readouterr().out.split())
    with pytest.raises(PrototypeError, match="exists; .*--name"):
        build(bucket.root, BuildConfig(name="mine"))
    put = [line["path"].rpartition("/")[2] for line in bucket.requests("mine/") if line["method"] == "PUT"]
    assert put[-1] == "prototypes.json"
    monkeypatch.setenv("MIMCL_CACHE", str(tmp_path / "another"))
    index = ShardIndex.load(bucket.root)
    assert PrototypeSet.load(index.prototypes_folder("mine"), index.fingerprint).info["k"] == 3


def test_scores_are_imported_into_a_bucket_and_refused_on_a_web_server(bucket, web, monkeypatch, tmp_path, capfd):
    scores = np.arange(ShardIndex.load(bucket.root).samples)
    np.save(tmp_path / "s.npy", scores)
    words = ("prototypes", "import", "s.npy", "--name", "scores", "--data")
    assert mimcl(monkeypatch, tmp_path, *words, web.root) == 1
    assert "is read-only; give a folder of yours with --out" in " ".join(capfd.readouterr().err.split())
    assert mimcl(monkeypatch, tmp_path, *words, bucket.root) == 0
    assert mimcl(monkeypatch, tmp_path, *words, bucket.root) == 1
    assert "exists; give another --name" in " ".join(capfd.readouterr().err.split())
    np.save(tmp_path / "s.npy", -scores)
    assert mimcl(monkeypatch, tmp_path, *words, bucket.root, "--overwrite") == 0
    monkeypatch.setenv("MIMCL_CACHE", str(tmp_path / "another"))
    index = ShardIndex.load(bucket.root)
    found = PrototypeSet.load(index.prototypes_folder("scores"), index.fingerprint)
    np.testing.assert_allclose(found.distance, np.linspace(1, 0, len(scores)), atol=1e-6)
