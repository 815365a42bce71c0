"""A loop of one's own with scores that move: killed, it continues to the same draws, on any number of processes."""

import sys
from pathlib import Path

import pytest
from helpers import torchruns
from helpers.images import write_classes

from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]
PROGRAM = Path(__file__).parents[1] / "helpers" / "scored_loop.py"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    home = tmp_path_factory.mktemp("scored")
    write_classes(home / "images", {"a": 20, "b": 20, "c": 20})
    pack(image_folder(home / "images"), home / "shards", PackConfig(), on_progress=lambda count: None)
    return home / "shards"


def run(shards, folder, processes, *arguments):
    """Run the loop to its end, or until one of the processes is killed; return the exit code."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(PROGRAM), str(shards), str(folder), *arguments]
    process = torchruns.start(folder / "log", ["--standalone", f"--nproc-per-node={processes}"], command, folder)
    try:
        return process.wait(200)
    finally:
        torchruns.kill_all(process)


def drawn(folder) -> dict[int, int]:
    """The sample of each draw, by all processes; a draw that was made again has the same one."""
    found: dict[int, int] = {}
    for file in folder.glob("drawn-*"):
        for line in file.read_text().splitlines():
            draw, sample_id = map(int, line.split())
            assert found.setdefault(draw, sample_id) == sample_id
    return found


def test_a_loop_that_is_killed_and_resumed_on_other_processes_draws_the_same(shards, tmp_path):
    whole = tmp_path / "whole"
    assert run(shards, whole, 1) == 0, (whole / "log").read_text()
    expected = drawn(whole)
    assert sorted(expected) == list(range(480))
    assert len({*expected.values()}) > 40
    pieces = tmp_path / "pieces"
    for processes, kill_at in ((3, 8), (1, 17), (2, 29)):
        assert run(shards, pieces, processes, "--kill-at", str(kill_at)) != 0
    assert run(shards, pieces, 2) == 0, (pieces / "log").read_text()
    assert drawn(pieces) == expected


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_draw_what_one_draws(shards, tmp_path, processes):
    one, several = tmp_path / "one", tmp_path / "several"
    assert run(shards, one, 1) == run(shards, several, processes) == 0
    assert drawn(several) == drawn(one)
