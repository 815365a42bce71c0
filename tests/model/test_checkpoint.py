"""Checkpoints are whole or not there, verified when read, and run no code."""

import json
import pickle
import shutil

import pytest
import torch

from mimcl.model import checkpoint
from mimcl.model.checkpoint import CheckpointError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "masker.b": torch.tensor(3)}


def save(folder, step, keep_last=3):
    state = {"position": step * 8, "optimizers": [{"state": {0: {"step": torch.tensor(1.0)}}}]}
    return checkpoint.save(folder, step, TENSORS, state, {"position": step * 8}, keep_last=keep_last)


def test_what_is_saved_is_loaded(tmp_path):
    path = save(tmp_path, 5)
    assert path == tmp_path / "00000005"
    loaded = checkpoint.load(path)
    assert torch.equal(loaded.tensors["a"], TENSORS["a"])
    assert torch.equal(loaded.tensors["masker.b"], TENSORS["masker.b"])
    assert loaded.state["position"] == 40
    assert loaded.state["optimizers"][0]["state"][0]["step"] == 1
    assert loaded.meta["step"] == 5
    assert set(loaded.meta["sha256"]) == {"weights.safetensors", "state.pt"}


def test_latest_is_the_last_saved_and_old_ones_go(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    for step in (1, 2, 10, 11):
        save(tmp_path, step, keep_last=2)
    assert checkpoint.latest(tmp_path) == tmp_path / "00000011"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000010", "00000011", "latest"]


def test_without_the_one_that_latest_names_the_newest_left_is_taken(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    shutil.rmtree(tmp_path / "00000002")
    assert checkpoint.latest(tmp_path) == tmp_path / "00000001"


def test_a_step_saved_twice_is_replaced(tmp_path):
    save(tmp_path, 1)
    checkpoint.save(tmp_path, 1, {"a": torch.zeros(1)}, {}, {}, keep_last=3)
    assert checkpoint.load(tmp_path / "00000001").tensors.keys() == {"a"}


def test_a_failure_while_writing_leaves_the_earlier_one_in_force(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match="00000002 cannot be written .*No space.*--resume"):
        save(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001", "latest"]
    assert checkpoint.load(checkpoint.latest(tmp_path)).meta["step"] == 1


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt"])
def test_a_changed_byte_is_found(tmp_path, name):
    path = save(tmp_path, 1)
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        checkpoint.load(path)


def test_missing_parts_and_newer_formats_are_named(tmp_path):
    path = save(tmp_path, 1)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"format": "mimcl-checkpoint/2"}))
    with pytest.raises(CheckpointError, match=r"mimcl-checkpoint/2.*upgrade"):
        checkpoint.load(path)
    (path / "meta.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(path)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


def test_a_pickled_payload_is_not_run(tmp_path):
    path = save(tmp_path, 1)
    (path / "state.pt").write_bytes(pickle.dumps(Bomb()))
    meta = json.loads((path / "meta.json").read_text())
    meta["sha256"]["state.pt"] = checkpoint._sha256(path / "state.pt")
    (path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(path)


def test_resolve_takes_runs_and_checkpoints(tmp_path):
    path = save(tmp_path / "run" / "checkpoints", 7)
    assert checkpoint.resolve(path) == path
    assert checkpoint.resolve(tmp_path / "run") == path
    with pytest.raises(CheckpointError, match="neither a run"):
        checkpoint.resolve(tmp_path)
