"""Building prototypes: one and two processes write the same bytes, also after a kill in the middle."""

import os
import shutil
import signal
import time

import pytest
from helpers import ranks, torchruns
from helpers.images import write_flat

from mimcl.cli.data.shard import shard
from mimcl.cli.prototypes.build import BuildConfig, build
from mimcl.cli.prototypes.workspace import parts_of
from mimcl.pipeline.index import ShardIndex

IMAGES = 90
SIFT = BuildConfig(features="sift", k=6, decoder="reference")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """shards/ with several shards, and the set `one`, built by one process."""
    folder = tmp_path_factory.mktemp("home")
    write_flat(folder / "images", IMAGES, width=340, height=260)
    shard(folder / "images", folder / "shards", shard_mb=1, workers=2)
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


BUILD = ["prototypes", "build", "--features", "sift", "--k", "6", "--decoder", "reference"]


def slow_writes():
    """Slow down writing features, so that a kill leaves some written and others missing."""
    from mimcl.cli.encoders.feature_store import ChunkedArray

    write = ChunkedArray.write
    ChunkedArray.write = lambda self, part, rows: (write(self, part, rows), time.sleep(0.6))


def test_two_processes_write_what_one_writes_even_after_a_kill(home, data):
    parts = parts_of(ShardIndex.load(data))
    assert len(parts) >= 5
    assert [row for part in parts for row in part] == list(range(IMAGES))
    features = data / "prototypes" / ".default.building" / "features"
    processes = ranks.start(data.parent, *BUILD, size=2, before=slow_writes)
    try:
        torchruns.until(lambda: len(list(features.glob("*.npy"))) >= 2, "two parts", data.parent / "rank-0.log")
        os.kill(processes[1].pid, signal.SIGKILL)
        processes[0].join(60)
        assert processes[0].exitcode == 1
    finally:
        for process in processes:
            process.kill()
    made = sorted(path.name for path in features.glob("*.npy"))
    assert 2 <= len(made) < len(parts)
    assert os.listdir(data / "prototypes") == [".default.building"]

    log, python = data.parent / "log", str(torchruns.BIN / "python")
    process = torchruns.start(log, ["--nproc-per-node", "2"], [python, "-c", SEEN, *BUILD], data.parent)
    try:
        assert process.wait(120) == 0, log.read_text()
    finally:
        torchruns.kill_all(process)
    wrote = [line.split()[1:] for line in log.read_text().splitlines() if line.startswith("WROTE")]
    kinds = [kind for kind, _, _ in wrote]
    assert kinds.count("features") == len(parts) - len(made)
    assert kinds.count("assigned") == len(parts)
    assert all(int(part) % 2 == int(rank) for _, part, rank in wrote)
    assert f"{len(made)} of {len(parts)} parts have features" in log.read_text()
    assert bytes_of(data) == bytes_of(home / "shards")
    assert os.listdir(data / "prototypes") == ["default"]


def test_two_processes_measure_the_losses_that_one_measures(data):
    small = ("data.batch_size=16", "data.image_size=32", "model.decoder_depth=1", "model.decoder_width=32")
    settings = [word for setting in (*small, "report=false") for word in ("--set", setting)]
    ranks.run(
        data.parent,
        "train",
        "--recipe",
        "cpu_small",
        "--decoder",
        "reference",
        "--epochs",
        "1",
        *settings,
        "--out",
        "run",
    )
    loss = ["prototypes", "build", "--difficulty", "loss:run", "--decoder", "reference"]
    ranks.run(data.parent, *loss)
    one = bytes_of(data)
    ranks.run(data.parent, *loss, "--overwrite", size=2)
    assert bytes_of(data) == one
    assert os.listdir(data / "prototypes") == ["default"]


SEEN = """
import os
from mimcl.cli.encoders.feature_store import ChunkedArray
write = ChunkedArray.write
def noting(self, part, rows):
    write(self, part, rows)
    line = f"WROTE {self.folder.name} {part} {os.environ['RANK']}\\n"
    os.write(1, line.encode())  # in one piece, since both processes write to this file
ChunkedArray.write = noting
from mimcl.cli.main import main
main()
"""


def test_an_error_of_the_first_process_is_one_line_on_all(data):
    ranks.run(data.parent, *BUILD, "--features", "pixels", "--min-cluster", "1000", size=2, code=1)
    for rank in range(2):
        (line,) = [
            line for line in (data.parent / f"rank-{rank}.log").read_text().splitlines() if line.startswith("mimcl: ")
        ]
        assert "all distances are equal" in line


def test_two_processes_repack_as_one_does(home, tmp_path):
    shards = home / "shards"
    ranks.run(tmp_path, "repack", str(shards), "--out", "one", "--shard-mb", "1")
    ranks.run(tmp_path, "repack", str(shards), "--out", "two", "--shard-mb", "1", size=2)
    one, two = (
        {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
    )
    assert "prototypes/default/train.arrow" in one
    assert one == two
