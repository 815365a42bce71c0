"""Packing under torchrun writes the same shards as one process, also when it is killed in between."""

import os
import sys
import time

import numpy as np
import pytest
from helpers import ranks, torchruns
from PIL import Image

from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

FLAGS = ["--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A source of 20 shards with duplicates, and the shards written by one process."""
    root = tmp_path_factory.mktemp("packed")
    (root / "src").mkdir()
    for number in range(60):
        pixels = np.random.default_rng(number % 50).integers(0, 256, (300, 400, 3), np.uint8)
        Image.fromarray(pixels).save(root / "src" / f"{number:03d}.png", compress_level=0)
    (root / "src" / "none.jpg").write_text("no image")
    config = PackConfig(shard_mb=1, workers=1, dedup=True)
    pack(image_folder(root / "src"), root / "out", config, on_progress=lambda count: None)
    return root / "src", contents(root / "out")


def torchrun(folder, log, source):
    command = ["mimcl", "shard", str(source), "--out", "out", "--shard-mb", "1", "--dedup", "--workers", "1"]
    return torchruns.start(log, FLAGS, command, folder)


def test_two_ranks_killed_and_started_again(packed, tmp_path):
    source, expected = packed
    log = tmp_path / "log"
    process = torchrun(tmp_path, log, source)
    try:
        shards, finished = tmp_path / "out" / ".packing", tmp_path / "out" / "dataset.json"
        torchruns.until(lambda: finished.exists() or len(list(shards.glob("*.rows"))) > 4, "some shards", log)
        pids = torchruns.workers(process)
    finally:
        torchruns.kill_all(process)
    while any(map(torchruns.alive, pids)):
        time.sleep(0.01)
    if not finished.exists():  # it may have been faster than this test
        assert list(shards.glob("*.rows"))
    process = torchrun(tmp_path, log, source)
    try:
        assert process.wait(200) == 0, log.read_text()
    finally:
        torchruns.kill_all(process)
    assert contents(tmp_path / "out") == expected
    said = log.read_text()
    assert said.count("packed into out/") == 1
    assert said.count("skipped: 10 exact duplicates") == 1


def test_an_error_of_rank_0_is_printed_once(packed, tmp_path):
    source, _ = packed
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    ranks.run(tmp_path, "shard", str(source), "--out", "out", size=2, code=1)
    refused = "mimcl: out is not empty"
    first, second = ranks.output(tmp_path, 2).split("--- rank 1\n")
    assert (first.count(refused), second) == (1, "")
    assert contents(tmp_path / "out") == {"notes.txt": b"mine"}


def test_ranks_that_see_different_sources(packed, tmp_path):
    source, _ = packed
    for rank in (0, 1):
        (tmp_path / f"src-{rank}").mkdir()
        (tmp_path / f"src-{rank}" / "a.png").write_bytes((source / f"{rank:03d}.png").read_bytes() + bytes(rank))
    processes = ranks.start(tmp_path, "shard", "src", "--out", "out", size=2, before=own_source)
    ranks.finish(tmp_path, processes, code=1)
    assert "differ" in ranks.output(tmp_path, 2)
    assert not (tmp_path / "out").exists()


def own_source() -> None:
    """Give each rank another folder src."""
    sys.argv[2] = f"src-{os.environ['RANK']}"
