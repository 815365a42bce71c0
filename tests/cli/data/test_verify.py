"""`mimcl verify`: what it prints, and its exit code."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.damage import flip
from helpers.images import write_classes

from mimcl.cli.data.prototype_sets import prototype_set_folders, verify_prototype_sets
from mimcl.curriculum.prototypes import build_prototypes
from mimcl.pipeline.dataset_json import read_dataset
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

SCRIPT = Path(sys.executable).parent / "mimcl"


@pytest.fixture
def shards(tmp_path):
    """40 images with a prototype set."""
    write_classes(tmp_path / "src", {"ant": 25, "bee": 15})
    out = tmp_path / "shards"
    description = pack(image_folder(tmp_path / "src"), out, PackConfig(workers=2), on_progress=lambda count: None)
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    about = dict(features_name="pixels", features_reason="requested")
    fingerprint = description["splits"]["train"]["fingerprint"]
    build_prototypes([features], 4, 0, index_fingerprint=fingerprint, **about).save(out / "prototypes" / "default")
    return out


def run(folder, *arguments) -> subprocess.CompletedProcess:
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(
        [SCRIPT, "verify", *arguments], cwd=folder, capture_output=True, text=True, timeout=120, env=environment
    )


def test_an_intact_data_set_passes_and_the_first_findings_are_listed(shards):
    done = run(shards.parent, "--decode", "--workers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "40 images in 1 shard and 1 prototype set: all checks passed"
    (shards / "train-000000.tar").write_bytes(bytes((shards / "train-000000.tar").stat().st_size))
    flip(shards / "prototypes" / "default" / "centroids.npy", 200)
    done = run(shards.parent, str(shards))
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert any("train-000000.tar: checksum" in line for line in lines)
    assert "sample 000000000: its bytes do not match the index" in done.stdout
    assert "more" in lines[-1]
    assert len([line for line in lines if "sample 0" in line]) == 19
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mimcl: {shards}: ")
    assert "findings" in line


def test_every_prototype_set_is_checked(shards):
    train = read_dataset(shards)["splits"]["train"]
    assert verify_prototype_sets(prototype_set_folders(shards), shards, train) == []
    flip(shards / "prototypes" / "default" / "train.arrow", 400)
    (shards / "prototypes" / "empty").mkdir()
    first, second = verify_prototype_sets(prototype_set_folders(shards), shards, train)
    assert "default is damaged" in first
    assert "no prototypes in" in second
    assert (
        "was made for index"
        in verify_prototype_sets(prototype_set_folders(shards), shards, train | {"fingerprint": "other"})[0]
    )
    (without, *_) = verify_prototype_sets(prototype_set_folders(shards), shards, None)
    assert "made for a train split, which the data set lacks" in without
