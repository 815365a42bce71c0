"""A packing that is killed at any point and restarted writes the same bytes; a finished one is not touched."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.exhaustive import exhaustive
from helpers.full_disk import limit_file_size
from helpers.images import encoded, write_flat
from PIL import Image

from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.verify import verify

CONFIG = PackConfig(shard_mb=1, workers=1)
HELPER = Path(__file__).parents[2] / "helpers" / "killed_packing.py"
SCRIPT = """
import signal
import sys
from pathlib import Path
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
source, out, workers = sys.argv[1:]
config = PackConfig(shard_mb=1, workers=int(workers))
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
pack(image_folder(Path(source)), Path(out), config, on_progress=lambda count: None)
"""


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def packed(source, out, config=CONFIG, **options):
    options = {"on_progress": lambda count: None} | options
    return pack(image_folder(source), out, config, **options)


def write_noise(folder, count, seed=0):
    """Write PNGs of about 300 KB: three fill a shard of 1 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (300, 400, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png", compress_level=0)


def interrupted(source, out, config=CONFIG, *, finished=2):
    """Pack until `finished` shards are finished, then interrupt."""

    def stop(_count):
        if len(list(out.glob(".packing/*.rows"))) >= finished:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed(source, out, config, on_progress=stop)
    assert len(list(out.glob(".packing/*.tar"))) >= finished


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Two splits, several shards."""
    root = tmp_path_factory.mktemp("source")
    write_noise(root / "train", 14)
    write_flat(root / "val", 5)
    return root


@pytest.fixture
def small(tmp_path):
    """A source with unusable files, a duplicate in train and images of train in val."""
    root = tmp_path / "small"
    write_flat(root / "train", 8)
    for name in ("00002.jpg", "00003.jpg"):
        (root / "train" / name).write_text(f"no image {name}")
    (root / "train" / "00006b.png").write_bytes((root / "train" / "00005.png").read_bytes())
    write_flat(root / "val", 2)
    return root


def killed_everywhere(source, folder, over="-", first=1):
    done = subprocess.run(
        [sys.executable, HELPER, source, folder, over, str(first)],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) > 20
    assert [died for _, died, _ in lines] == [True] * (len(lines) - 1) + [False]
    assert [place for place, _, same in lines if not same] == []


@pytest.mark.slow
def test_killed_at_every_write(small, tmp_path):
    killed_everywhere(small, tmp_path)
    description = json.loads((tmp_path / "unbroken" / "dataset.json").read_text())
    names = [shard["name"] for shard in description["splits"]["train"]["shards"]]
    assert names == [f"train-{number:06d}.tar" for number in range(3)]
    assert [description["packed"][what] for what in ("rejected", "duplicates", "across_splits")] == [2, 1, 2]
    assert verify(tmp_path / "unbroken", True, 1, lambda count: None) == []
    index = ShardIndex.load(tmp_path / "unbroken")
    assert index.keys() == [f"{key:09d}" for key in (0, 1, 4, 5, 6, 7)]


@pytest.mark.slow
def test_killed_at_every_write_while_replacing_an_older_packing(small, tmp_path):
    write_flat(tmp_path / "older", 12, seed=100)
    killed_everywhere(small, tmp_path, str(tmp_path / "older"), first=36)  # earlier writes do not differ


def test_an_older_packing_can_be_read_until_all_is_packed(source, tmp_path):
    out = tmp_path / "out"
    write_flat(tmp_path / "older", 4)
    packed(tmp_path / "older", out)

    def read(_count):
        assert ShardIndex.load(out).samples == 4

    packed(source, out, overwrite=True, on_progress=read)
    assert ShardIndex.load(out).samples > 4


def start(script, *arguments) -> subprocess.Popen:
    command = [sys.executable, script, *map(str, arguments)]
    return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)


def until_finished(out, shards, process) -> None:
    deadline = time.monotonic() + 60
    while len(list(out.glob(".packing/*.rows"))) < shards:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)


def in_session(session) -> list[int]:
    """Living processes of a session."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "shards"), [(signal.SIGINT, 2), *exhaustive((signal.SIGKILL, 1), (signal.SIGKILL, 4))]
)
def test_workers_exit_with_their_parent(tmp_path, number, shards):
    out, script = tmp_path / "out", tmp_path / "script.py"
    script.write_text(SCRIPT)
    write_noise(tmp_path / "src", 200)  # far more than a busy machine packs while it delivers a signal
    process = start(script, tmp_path / "src", out, 2)
    try:
        until_finished(out, shards, process)
        assert len(in_session(process.pid)) >= 3
        process.send_signal(number)
        process.wait(20)
        deadline = time.monotonic() + 20
        while in_session(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        for pid in in_session(process.pid):
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == (1 if number == signal.SIGINT else -number) or number == signal.SIGINT
    assert process.stderr.read().count("Traceback") == (number == signal.SIGINT)  # workers print nothing
    assert not (out / "dataset.json").exists()
    messages = []
    packed(tmp_path / "src", out, on_message=messages.append)
    assert messages[0].startswith("resuming: ")
    packed(tmp_path / "src", tmp_path / "unbroken", PackConfig(shard_mb=1, workers=3))
    assert contents(out) == contents(tmp_path / "unbroken")


def test_a_killed_worker_is_reported_in_one_line(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    write_noise(tmp_path / "src", 60)
    process = start(script, tmp_path / "src", tmp_path / "out", 2)
    until_finished(tmp_path / "out", 1, process)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    os.kill(int(workers[0]), signal.SIGKILL)
    assert "a worker process was killed" in process.communicate(timeout=30)[1].splitlines()[-1]
    assert not list((tmp_path / "out").glob("*.tar"))


# Finished packings


def test_a_finished_packing_is_not_touched(source, tmp_path):
    out, messages, counts = tmp_path / "out", [], []
    description = packed(source, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    config = PackConfig(shard_mb=1, workers=2)
    again = packed(source, out, config, on_message=messages.append, on_progress=counts.append)
    assert again == description
    (message,) = messages
    assert message.startswith(f"already packed into {out}")
    assert counts == []
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_a_finished_packing_with_a_damaged_file_is_refused(source, tmp_path):
    out = tmp_path / "out"
    packed(source, out)
    whole = contents(out)
    for name, content in (("train-000001.tar", None), ("val-000000.tar", b"short"), ("train.arrow", b"other")):
        (out / name).unlink() if content is None else (out / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is damaged or missing.*--overwrite"):
            packed(source, out)
        packed(source, out, overwrite=True)
        assert contents(out) == whole


def test_a_finished_shard_that_was_damaged_is_packed_again(source, tmp_path):
    interrupted(source, tmp_path / "out", finished=3)
    (tmp_path / "out" / ".packing" / "train-000000.tar").write_bytes(b"short")
    (tmp_path / "out" / ".packing" / "train-000001.idx").unlink()
    packed(source, tmp_path / "out")
    packed(source, tmp_path / "unbroken")
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


# Changed sources and settings


def added(folder):
    (folder / "new.jpg").write_bytes(encoded("baseline"))


def resized(folder):
    with open(folder / "003.png", "ab") as file:
        file.write(b"\0")


def rewritten(folder):
    (folder / "003.png").write_bytes((folder / "003.png").read_bytes())


@pytest.mark.parametrize("change", [added, resized, rewritten])
def test_resuming_with_a_changed_source_is_refused(tmp_path, change):
    src, out = tmp_path / "src", tmp_path / "out"
    write_noise(src, 8)
    interrupted(src, out)
    before = contents(out)
    change(src)
    with pytest.raises(DataError, match="the source has changed.*--overwrite") as error:
        packed(src, out)
    assert "\n" not in str(error.value)
    assert contents(out) == before
    packed(src, out, overwrite=True)
    packed(src, tmp_path / "unbroken")
    assert contents(out) == contents(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("change", "message"),
    [(added, "not empty"), (resized, "not empty"), (rewritten, "changed since")],
)
def test_a_finished_packing_of_a_changed_source_is_refused(tmp_path, change, message):
    src, out = tmp_path / "src", tmp_path / "out"
    write_noise(src, 8)
    packed(src, out)
    before = contents(out)
    change(src)
    with pytest.raises(DataError, match=f"{message}.*--overwrite"):
        packed(src, out)
    assert contents(out) == before


def test_a_source_that_changes_during_packing_is_refused(tmp_path):
    write_noise(tmp_path / "src", 8)
    source = image_folder(tmp_path / "src")
    resized(tmp_path / "src")
    with pytest.raises(DataError, match=r"003\.png had .* bytes .*--overwrite"):
        pack(source, tmp_path / "out", CONFIG, on_progress=lambda count: None)
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert not list(tmp_path.glob("out/.packing/.*"))


@pytest.mark.parametrize(
    ("config", "flag"),
    [
        (PackConfig(shard_mb=2), "--shard-mb 1, now it is 2"),
        (PackConfig(shard_mb=1, short_side=9), "--short-side 0, now it is 9"),
        (PackConfig(shard_mb=1, decode=True), "--decode False, now it is True"),
        (PackConfig(shard_mb=1, dedup=True), "--dedup False, now it is True"),
    ],
)
def test_resuming_with_other_settings_is_refused(source, tmp_path, config, flag):
    interrupted(source, tmp_path / "out")
    with pytest.raises(DataError, match=f"{flag}.*--overwrite"):
        packed(source, tmp_path / "out", config)
    packed(source, tmp_path / "out")
    with pytest.raises(DataError, match="--out.*--overwrite"):
        packed(source, tmp_path / "out", config)


def test_two_packings_at_once_are_refused(source, tmp_path):
    out, refused = tmp_path / "out", []

    def another(_count):
        with pytest.raises(DataError, match=f"another process is packing into {out}"):
            packed(source, out)
        refused.append(True)

    packed(source, out, on_progress=another)
    assert refused
    packed(source, tmp_path / "unbroken")
    assert contents(out) == contents(tmp_path / "unbroken")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk(source, tmp_path, workers):
    out = tmp_path / "out"
    config = PackConfig(shard_mb=1, workers=workers)
    with (
        limit_file_size(500_000),
        pytest.raises(DataError, match=f"packing into {out} failed .File too large") as error,
    ):
        packed(source, out, config)
    assert "\n" not in str(error.value)
    assert not list(out.glob(".packing/.*"))
    packed(source, out, config)
    packed(source, tmp_path / "unbroken")
    assert contents(out) == contents(tmp_path / "unbroken")


def test_a_full_disk_while_the_index_is_written(tmp_path):
    write_flat(tmp_path / "src", 60, width=16, height=16)
    out, messages = tmp_path / "out", []
    fail = pytest.raises(DataError, match=f"packing into {out} failed .File too large")
    with limit_file_size(0), fail:
        packed(tmp_path / "src", out)
    assert not out.exists()
    interrupted(tmp_path / "src", out, finished=1)
    with limit_file_size(500), fail:
        packed(tmp_path / "src", out)
    packed(tmp_path / "src", out, on_message=messages.append)
    (message,) = messages
    assert message.startswith("resuming: 1 of 1 ")


@pytest.mark.parametrize("seconds", [0, 1_000_000_000, 4_000_000_000])
def test_files_with_any_time_are_packed_once(tmp_path, seconds):
    """Also files of the future, or of today on a machine whose clock is in 1970: dataset.json is not older."""
    for path in write_flat(tmp_path / "source", 5):
        os.utime(path, (seconds, seconds))
    said: list[str] = []
    for _ in range(2):
        pack(image_folder(tmp_path / "source"), tmp_path / "out", CONFIG, on_progress=id, on_message=said.append)
    assert said == [f"already packed into {tmp_path / 'out'}: nothing to do"]
    os.utime(path, (seconds, 2**32))  # in 2106
    with pytest.raises(DataError, match="the source changed since it was packed"):
        pack(image_folder(tmp_path / "source"), tmp_path / "out", CONFIG, on_progress=id)
