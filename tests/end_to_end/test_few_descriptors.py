"""All commands with 300 shards where a process may open 256 files, and where it may open too few."""

import io
import json
import os
import shlex
import tarfile

import pytest
from helpers.few_descriptors import WORDS, mimcl
from helpers.images import picture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHARDS, VAL, LIMIT = 300, 40, 64
_TRAIN = shlex.split("""train --data shards --recipe cpu_small --decoder reference --epochs 8 --online-knn 4
    --set data.batch_size=64 --set data.image_size=32 --set model.patch_size=16 --set model.decoder_width=32
    --set model.decoder_depth=1 --set curriculum.window=256 --set trainer.precision=float32 --set report=false""")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with shards/ of one image each, adopted, and their prototypes."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "shards").mkdir()
    for split, count in (("train", SHARDS), ("val", VAL)):
        for number in range(count):
            file = io.BytesIO()
            picture(number + (split == "val") * SHARDS, 16, 16).save(file, "JPEG")
            with tarfile.open(folder / "shards" / f"{split}-{number:05d}.tar", "w") as tar:
                for name, content in (("jpg", file.getvalue()), ("cls", str(number % 4).encode())):
                    member = tarfile.TarInfo(f"{number:05d}.{name}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    run(folder, "shard", "--adopt", "shards")
    run(folder, "prototypes", "build", "--data", "shards", "--features", "pixels", "--k", "4")
    return folder


def run(home, *arguments, limit: int = LIMIT) -> str:
    done = mimcl(*arguments, cwd=home, soft=limit)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_prototypes_of_all_shards(home):
    info = json.loads((home / "shards" / "prototypes" / "default" / "prototypes.json").read_text())
    assert info["samples"] == SHARDS


def test_training_and_evaluation(home):
    run(home, *_TRAIN, "--curriculum", "proto", "--out", "run")
    lines = [json.loads(line) for line in (home / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "window" in line]) >= 8
    assert any("nn" in line.get("values", line) for line in lines if line.get("evaluation") == "online_knn")
    assert "300 train and 40 val images" in run(home, "eval", "knn", "run")
    assert "300 train and 40 val images" in run(home, "eval", "linear", "run", "--epochs", "1")
    assert "300 images" in run(home, "inspect", "shards")


def test_verification(home):
    assert "340 images in 340 shards" in run(home, "verify", "shards")


def test_repacking(home):
    run(home, "repack", "shards", "--out", "repacked", "--workers", "2")
    assert json.loads((home / "repacked" / "dataset.json").read_text())["splits"]["train"]["samples"] == SHARDS


def test_packing_from_all_shards(home):
    (home / "tars").mkdir()
    for tar in (home / "shards").glob("*.tar"):
        os.link(tar, home / "tars" / tar.name)
    run(home, "shard", "tars", "--out", "packed", "--workers", "2")
    assert json.loads((home / "packed" / "dataset.json").read_text())["splits"]["train"]["samples"] == SHARDS


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "shards"],
        ["prototypes", "build", "--data", "shards", "--features", "pixels", "--k", "4", "--name", "other"],
        [*_TRAIN, "--curriculum", "none", "--out", "failed"],
    ],
)
def test_too_few_descriptors_are_named_with_the_remedy(home, arguments):
    done = mimcl(*arguments, cwd=home, soft=6)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert WORDS in last
    assert "ulimit -n 4096" in last
    # Nothing is to be packed, downloaded or built again; a build that had begun to write features may be continued.
    assert "again" not in last.removesuffix(" and run the same command again to continue")


def test_a_higher_hard_limit_is_used(home):
    done = mimcl("verify", "shards", cwd=home, soft=6, hard=LIMIT)
    assert done.returncode == 0, done.stderr
