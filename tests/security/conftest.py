"""A tiny data set with a prototype set and a run, copied for each test that damages it."""

import shutil
import sys

import pytest
from helpers.images import write_classes

from mimcl.cli.main import main

TRAIN = [
    *("--data", "shards", "--curriculum", "proto", "--decoder", "reference", "--recipe", "cpu_small", "--epochs", "2"),
    *("--set", "data.image_size=16", "--set", "data.batch_size=16", "--set", "model.patch_size=8"),
    *("--set", "report=false"),
]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with src/, shards/ (24 images) and run/."""
    folder = tmp_path_factory.mktemp("made")
    write_classes(folder / "src", {"ant": 12, "bee": 12})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (
            ["shard", "src"],
            ["prototypes", "build", "--features", "pixels", "--k", "3", "--decoder", "reference"],
            ["train", *TRAIN, "--out", "run"],
        ):
            patch.setattr(sys, "argv", ["mimcl", *command])
            with pytest.raises(SystemExit) as stopped:
                main()
            assert stopped.value.code == 0
    return folder


@pytest.fixture
def home(made, tmp_path, monkeypatch):
    """A copy of `made` without the run, which is large; the working directory of the test."""
    shutil.copytree(made, tmp_path / "home", ignore=shutil.ignore_patterns("run"))
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def checkpoint(made, home):
    """The folder of the run's checkpoint; also copies the run into `home`."""
    shutil.copytree(made / "run", home / "run")
    (folder,) = (path.parent for path in (home / "run" / "checkpoints").glob("*/meta.json"))
    return folder
