"""Building prototypes: one and two processes write the same bytes, also after a kill in the middle."""

import os
import shutil
import signal

import pytest
import torchruns
from images import write_flat

from mimcl.cli.building import parts_of
from mimcl.cli.prototypes import BuildConfig, build
from mimcl.cli.shard import shard
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig

IMAGES = 90
SIFT = BuildConfig(features="sift", k=6, decoder="reference")
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """shards/ with several shards, and the set `one`, built by one process."""
    folder = tmp_path_factory.mktemp("home")
    write_flat(folder / "images", IMAGES, width=340, height=260)
    shard(folder / "images", folder / "shards", PackConfig(shard_mb=1, workers=2))
    build(folder / "shards", SIFT)
    return folder


@pytest.fixture
def data(home, tmp_path):
    """A copy of the shards without the set."""
    shutil.copytree(home / "shards", tmp_path / "shards", ignore=shutil.ignore_patterns("prototypes"))
    return tmp_path / "shards"


def bytes_of(shards):
    folder = shards / "prototypes" / "default"
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def command(*more):
    python = str(torchruns.BIN / "python")
    words = ["prototypes", "build", "--features", "sift", "--k", "6", "--decoder", "reference", *more]
    return [python, "-m", "mimcl.cli.main", *words]


def test_two_processes_write_what_one_writes_after_a_kill_as_well(home, data):
    parts = parts_of(ShardIndex.load(data))
    assert len(parts) >= 5
    assert [row for part in parts for row in part] == list(range(IMAGES))
    log = data.parent / "log"
    slow = "import time; from mimcl.cli.row_parts import RowParts as R; w = R.write; "
    slow += "R.write = lambda self, part, rows: (w(self, part, rows), time.sleep(0.6)); "
    slow += "from mimcl.cli.main import main; main()"
    words = [str(torchruns.BIN / "python"), "-c", slow, *command()[3:]]
    features = data / "prototypes" / ".default.building" / "features"
    process = torchruns.start(log, ["--nproc-per-node", "2"], words, data.parent)
    try:
        torchruns.until(lambda: len(list(features.glob("*.npy"))) >= 2, "two parts", log)
        os.kill(torchruns.workers(process)[1], signal.SIGKILL)
        assert process.wait(60) != 0
    finally:
        torchruns.kill_all(process)
    made = {path.name: path.stat().st_mtime_ns for path in features.glob("*.npy")}
    assert 2 <= len(made) < len(parts)
    assert os.listdir(data / "prototypes") == [".default.building"]

    seen = "import sys; from mimcl.cli.row_parts import RowParts as R; w = R.write; R.write = lambda self, part, rows: "
    seen += '(w(self, part, rows), print("WROTE", self.folder.name, part)); from mimcl.cli.main import main; main()'
    process = torchruns.start(log, ["--nproc-per-node", "2"], [words[0], "-c", seen, *words[3:]], data.parent)
    try:
        assert process.wait(120) == 0, log.read_text()
    finally:
        torchruns.kill_all(process)
    wrote = [line.split()[1:] for line in log.read_text().splitlines() if line.startswith("WROTE")]
    assert len([part for kind, part in wrote if kind == "features"]) == len(parts) - len(made)
    assert len([part for kind, part in wrote if kind == "assigned"]) == len(parts)
    assert f"{len(made)} of {len(parts)} parts have features" in log.read_text()
    assert bytes_of(data) == bytes_of(home / "shards")
    assert os.listdir(data / "prototypes") == ["default"]


def test_an_error_of_the_first_process_is_one_line_on_all(home, data):
    log = data.parent / "log"
    few = ["--features", "pixels", "--min-cluster", "1000"]
    process = torchruns.start(log, ["--nproc-per-node", "2"], command(*few), data.parent)
    try:
        assert process.wait(120) != 0
    finally:
        torchruns.kill_all(process)
    said = [line for line in log.read_text().splitlines() if line.startswith("mimcl: ")]
    assert len(said) == 2
    assert all("all distances are equal" in line for line in said)
