"""Adopted shards work with every command like packed ones."""

import pytest
from helpers.archives import write_shards
from helpers.small_runs import FEW_PATCHES, steps_of, train
from helpers.typed import mimcl

COUNTS = {"some-train-00.tar": 20, "some-train-01.tar": 12, "some-val-00.tar": 4}


@pytest.fixture(scope="module")
def adopted(tmp_path_factory):
    home = tmp_path_factory.mktemp("adopted")
    write_shards(home / "wds", COUNTS, classes=2)
    with pytest.MonkeyPatch.context() as patch:
        assert mimcl(patch, home, "shard", "wds", "--adopt") == 0
        build = ["prototypes", "build", "--data", "wds", "--features", "pixels", "--k", "2", "--decoder", "reference"]
        assert mimcl(patch, home, *build) == 0
    return home


def test_adoption_is_reported_and_verified(adopted, monkeypatch, capfd):
    assert mimcl(monkeypatch, adopted, "shard", "wds", "--adopt") == 0
    output = capfd.readouterr().out
    assert "already adopted" in output
    assert "train: 32 images, 2 classes" in output
    assert "next: mimcl prototypes build --data wds" in output
    assert mimcl(monkeypatch, adopted, "inspect", "wds") == 0
    assert "adopted in place" in capfd.readouterr().out
    assert mimcl(monkeypatch, adopted, "verify", "wds") == 0
    assert "36 images in 3 shards and 1 prototype set: all checks passed" in capfd.readouterr().out


@pytest.mark.parametrize("decoder", ["reference", "dali-cpu"])
def test_training_and_evaluation_on_adopted_shards(adopted, monkeypatch, capfd, decoder):
    arguments = train(decoder, "data.root=wds", "data.batch_size=16", FEW_PATCHES, steps=2, decoder=decoder)
    assert mimcl(monkeypatch, adopted, *arguments) == 0
    assert len(steps_of(adopted / decoder)) > 1
    assert not (adopted / decoder / "quarantine.jsonl").exists()
    evaluation = ["eval", "knn", decoder, "--data", "wds", "--decoder", "reference"]
    assert mimcl(monkeypatch, adopted, *evaluation) == 0
