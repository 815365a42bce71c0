"""Checkpoints are complete or absent, verified when read, and run no code."""

import io
import json
import os
import pickle
import shutil
import subprocess
from contextlib import contextmanager

import pytest
import torch
from helpers.damage import flip, seal_checkpoint
from helpers.full_disk import limit_file_size

from mimcl.model import checkpoint
from mimcl.model.checkpoint import CheckpointError, DamagedError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "masker.b": torch.tensor(3)}
FILES = ("weights.safetensors", "state.pt", "meta.json")


def save(folder, step, keep_last=3, tensors=TENSORS, **options):
    state = {"position": step * 8, "optimizers": [{"state": {0: {"step": torch.tensor(1.0)}}}]}
    return checkpoint.save(folder, step, tensors, state, {"position": step * 8}, keep_last=keep_last, **options)


def steps(folder):
    return [int(path.name) for path in sorted(folder.glob("*")) if path.is_dir()]


def found(folder, read=checkpoint.load):
    """The step of the checkpoint that a resume would load, and the warnings."""
    said = []
    loaded = checkpoint.newest(folder, read, said.append)
    return (loaded if isinstance(loaded, dict) else loaded.meta)["step"], said


@pytest.mark.parametrize("name", [b"run", "é 日".encode(), b"raw\xe9"])
def test_what_is_saved_is_loaded(tmp_path, name):
    folder = tmp_path / os.fsdecode(name)
    path = save(folder, 5)
    assert path == folder / "00000005"
    loaded = checkpoint.load(path)
    assert torch.equal(loaded.tensors["a"], TENSORS["a"])
    assert torch.equal(loaded.tensors["masker.b"], TENSORS["masker.b"])
    assert loaded.state["position"] == 40
    assert loaded.state["optimizers"][0]["state"][0]["step"] == 1
    assert loaded.meta["step"] == 5
    assert set(loaded.meta["sha256"]) == {"weights.safetensors", "state.pt"}
    assert checkpoint.read_meta(path) == loaded.meta


def test_what_meta_json_can_hold_comes_back(tmp_path):
    meta = {"betas": (0.9, 0.95), "window": float("inf"), "root": "données/\udcff", "nothing": None, "lr": 1e-5}
    path = checkpoint.save(tmp_path, 1, {}, {}, meta, keep_last=1)
    assert meta.items() <= (checkpoint.read_meta(path) | {"betas": (0.9, 0.95)}).items()


def test_candidates_begin_with_latest_then_the_newest(tmp_path):
    assert checkpoint.candidates(tmp_path) == []
    for step in (1, 2, 10, 11):
        save(tmp_path, step, keep_last=4)
    assert (tmp_path / "latest").read_text() == "00000011\n"
    (tmp_path / "latest").write_text("00000002\n")
    assert [int(path.name) for path in checkpoint.candidates(tmp_path)] == [2, 11, 10, 1]
    for broken in (b"", b"\xff\xfe", b"00000099\n", b"../../etc\n"):
        (tmp_path / "latest").write_bytes(broken)
        assert [int(path.name) for path in checkpoint.candidates(tmp_path)] == [11, 10, 2, 1]
    (tmp_path / "latest").unlink()
    assert found(tmp_path) == (11, [])


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10, 11):
        save(tmp_path, step, keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000010", "00000011", "latest"]


def test_the_first_of_each_interval_is_kept_permanently(tmp_path):
    for step in range(20, 400, 20):
        save(tmp_path, step, keep_last=2, keep_every_steps=100)
    assert steps(tmp_path) == [100, 200, 300, 360, 380]


def test_an_interval_without_a_checkpoint_at_its_start_keeps_its_first_one(tmp_path):
    for step in (90, 130, 160, 190, 220):
        save(tmp_path, step, keep_last=1, keep_every_steps=100)
    assert steps(tmp_path) == [130, 220]


@pytest.mark.parametrize("keep_last", [1, 3])
def test_a_save_after_a_resume_deletes_later_checkpoints_only(tmp_path, keep_last):
    for step in (1, 2, 30):
        save(tmp_path, step)
    flip(tmp_path / "00000030" / "state.pt", 30)
    assert found(tmp_path)[0] == 2
    save(tmp_path, 3, keep_last=keep_last)
    assert steps(tmp_path) == [1, 2, 3][-keep_last:]
    assert found(tmp_path) == (3, [])


def test_a_step_saved_twice_is_replaced(tmp_path):
    save(tmp_path, 1)
    checkpoint.save(tmp_path, 1, {"a": torch.zeros(1)}, {}, {}, keep_last=3)
    assert checkpoint.load(tmp_path / "00000001").tensors.keys() == {"a"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "latest"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    f"{what} {name}": lambda path, do=do, name=name: do(path / name)
    for name in FILES
    for what, do in {
        "missing": lambda file: file.unlink(),
        "truncated": truncate,
        "emptied": lambda file: file.write_bytes(b""),
        "flipped": lambda file: flip(file, file.stat().st_size // 2),
        "folder for": lambda file: (file.unlink(), file.mkdir()),
    }.items()
}


@pytest.mark.parametrize(
    "damage",
    [
        *DAMAGES.values(),
        lambda path: [file.unlink() for file in path.iterdir()],
        lambda path: (path / "meta.json").write_text("[]"),
        lambda path: (path / "meta.json").write_text('{"format": "mimcl-checkpoint/1", "sha256": {}}'),
        lambda path: change_meta(path, position=9),
    ],
    ids=[*DAMAGES, "empty folder", "list for meta", "no checksums", "another position"],
)
def test_a_damaged_checkpoint_is_one_warning_and_the_previous_one_is_used(tmp_path, damage):
    for step in (1, 2):
        save(tmp_path, step)
    damage(tmp_path / "00000002")
    step, said = found(tmp_path)
    assert step == 1
    (line,) = said
    assert line.startswith(f"checkpoint {tmp_path}/00000002 ")
    assert line.endswith("; trying the previous one")
    assert "\n" not in line
    damage(tmp_path / "00000001")
    with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path} "):
        found(tmp_path)


def change_meta(path, **values):
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | values))


def test_no_changed_byte_of_meta_json_passes_for_another_meta(tmp_path):
    path = save(tmp_path, 1)
    meta, size = checkpoint.read_meta(path), (path / "meta.json").stat().st_size
    found = 0
    for byte in range(size):
        flip(path / "meta.json", byte)
        try:
            assert checkpoint.read_meta(path) == meta  # white space
        except CheckpointError:
            found += 1
        flip(path / "meta.json", byte)
    assert found > 0.8 * size


def test_meta_alone_is_verified_without_the_payload(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    flip(tmp_path / "00000002" / "state.pt", 30)
    assert found(tmp_path, checkpoint.read_meta) == (2, [])
    change_meta(tmp_path / "00000002", step=4)
    step, (line,) = found(tmp_path, checkpoint.read_meta)
    assert step == 1
    assert "the checksum of meta.json differs" in line


def test_a_newer_format_is_an_error_and_not_skipped(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    change_meta(tmp_path / "00000002", format="mimcl-checkpoint/2")
    with pytest.raises(CheckpointError, match=r"00000002 has format 'mimcl-checkpoint/2'.*upgrade") as raised:
        found(tmp_path)
    assert not isinstance(raised.value, DamagedError)


LARGE = {"a": torch.zeros(20_000)}  # 80 KB; with small tensors, the state is the largest file, then meta.json


@pytest.mark.parametrize(
    ("tensors", "room", "left"),
    [(LARGE, 40_000, 0), (TENSORS, 1_000, 1), (TENSORS, 0, 0)],
    ids=["weights", "state", "anything"],
)
def test_a_full_disk_while_writing_keeps_the_earlier_one(tmp_path, tensors, room, left):
    save(tmp_path, 1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    message = "00000002 cannot be written"
    with limit_file_size(room), pytest.raises(CheckpointError, match=message):
        save(tmp_path, 2, tensors=tensors)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert steps(tmp_path) == [1]
    save(tmp_path, 2, tensors=tensors)
    assert found(tmp_path) == (2, [])


def test_meta_json_that_does_not_fit_keeps_the_earlier_one(tmp_path):
    save(tmp_path, 1)
    with limit_file_size(20_000), pytest.raises(CheckpointError, match="00000002 cannot be written"):
        checkpoint.save(tmp_path, 2, TENSORS, {}, {"note": "x" * 30_000}, keep_last=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "latest"]


def test_when_latest_cannot_be_replaced_the_earlier_one_is_kept(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "latest.tmp").mkdir()  # in the way
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(tmp_path, 2, keep_last=1)
    assert found(tmp_path) == (1, [])
    checkpoint.clean(tmp_path)
    save(tmp_path, 2, keep_last=1)
    assert found(tmp_path) == (2, [])


@contextmanager
def mounted(folder, options):
    """A small disk of its own, where the user may mount one."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount")
@pytest.mark.parametrize("in_the_way", [0, 700_000, 705_000, 720_000, 1_000_000, 1_040_000])
def test_a_disk_without_room_keeps_what_it_has(tmp_path, in_the_way):
    disk = tmp_path / "disk"
    with mounted(disk, "size=1m"):
        save(disk / "c", 1)
        with open(disk / "filler", "wb", buffering=0) as file:
            file.write(bytes(in_the_way))
        with pytest.raises(CheckpointError, match="00000002 cannot be written"):
            save(disk / "c", 2, tensors={"a": torch.zeros(300_000 if not in_the_way else 80_000)})
        assert sorted(p.name for p in (disk / "c").iterdir()) == ["00000001", "latest"]
        (disk / "filler").unlink()
        assert found(disk / "c") == (1, [])
        save(disk / "c", 2)
        assert found(disk / "c") == (2, [])


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount")
def test_a_disk_that_became_read_only_keeps_what_it_has(tmp_path):
    disk = tmp_path / "disk"
    with mounted(disk, "size=1m"):
        save(disk / "c", 1)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(CheckpointError, match="Read-only file system"):
            save(disk / "c", 2)
        assert found(disk / "c") == (1, [])


def test_files_of_a_killed_writer_are_no_checkpoint_and_are_removed(tmp_path):
    path = save(tmp_path, 1)
    shutil.copytree(path, tmp_path / "00000002.tmp")
    shutil.copytree(path, tmp_path / "00000000.old.tmp")
    (tmp_path / "latest.tmp").write_text("00000002\n")
    assert found(tmp_path) == (1, [])
    checkpoint.clean(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "latest"]
    checkpoint.clean(tmp_path / "not there")


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


def test_a_pickled_payload_with_the_right_checksum_is_not_run(tmp_path):
    path, file = save(tmp_path, 1), io.BytesIO()
    torch.save(Bomb(), file)
    for payload in (pickle.dumps(Bomb(), protocol=2), file.getvalue()):
        seal_checkpoint(path, "state.pt", payload)
        with pytest.raises(DamagedError, match="cannot be read"):
            checkpoint.load(path)
