"""Saving in the background: the state at the start is written, one checkpoint at a time, failures warn once."""

import threading

import numpy as np
import pytest
import torch
from helpers.full_disk import limit_file_size

from mimcl.model import checkpoint
from mimcl.model.async_checkpoint import AsyncCheckpointer
from mimcl.model.checkpoint import CheckpointError


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def saver(tmp_path, warnings):
    saver = AsyncCheckpointer(tmp_path, keep_last=2, keep_every_steps=0, warn=warnings.append)
    yield saver
    saver.close()


def nothing():
    pass


def loaded(folder):
    return checkpoint.newest(folder, checkpoint.load, pytest.fail)


def test_the_state_at_the_start_is_saved(saver, tmp_path):
    go = threading.Event()
    weight, moment, total = torch.nn.Parameter(torch.ones(3)), torch.full((3,), 2.0), torch.tensor(3.0)
    state = {"optimizers": [{"state": {0: {"moment": moment}}, "betas": (0.9, total)}], "position": 8}
    saver.start(1, {"weight": weight}, state, {"position": 8}, lambda: go.wait(30))
    with torch.no_grad():
        for tensor in (weight, moment, total):
            tensor.fill_(torch.nan)
    state["optimizers"][0]["state"].clear()
    state["position"] = 16
    go.set()
    assert saver.finish() == 1
    saved = loaded(tmp_path)
    assert torch.equal(saved.tensors["weight"], torch.ones(3))
    assert torch.equal(saved.state["optimizers"][0]["state"][0]["moment"], torch.full((3,), 2.0))
    assert saved.state["optimizers"][0]["betas"] == (0.9, 3.0)
    assert (saved.state["position"], saved.meta["position"]) == (8, 8)


def test_tensors_that_share_memory_are_saved_each(saver, tmp_path):
    whole = torch.arange(6.0)
    saver.start(1, {"whole": whole, "part": whole[2:4], "turned": whole.view(2, 3).t()}, {}, {}, nothing)
    assert saver.finish() == 1
    tensors = loaded(tmp_path).tensors
    assert tensors["part"].tolist() == [2, 3]
    assert torch.equal(tensors["turned"], whole.view(2, 3).t())


def test_one_is_written_at_a_time_and_another_is_skipped_with_a_warning(saver, tmp_path, warnings):
    go = threading.Event()
    saver.start(1, {}, {}, {}, lambda: go.wait(30))
    saver.start(2, {}, {}, {}, lambda: pytest.fail("started"))
    (warning,) = warnings
    assert "no checkpoint at step 2" in warning
    go.set()
    assert saver.flush() == 1
    saver.start(3, {}, {}, {}, nothing)
    assert saver.finish() == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "00000003", "latest"]
    assert saver.finish() is None


def test_write_first_is_called_in_the_thread_before_the_checkpoint_appears(saver, tmp_path):
    seen = []
    saver.start(1, {}, {}, {}, lambda: seen.append((threading.current_thread().name, list(tmp_path.iterdir()))))
    saver.finish()
    ((name, there),) = seen
    assert name.startswith("save")
    assert there == []


def test_a_failure_warns_once_and_the_next_is_saved(saver, tmp_path, warnings):
    with limit_file_size(0):
        saver.start(1, {}, {}, {}, nothing)
        while saver._writing and not saver._writing.done():
            pass
    assert warnings == []
    saver.start(2, {}, {}, {}, nothing)
    (line,) = warnings
    assert "00000001 cannot be written" in line
    assert "keeping the previous checkpoint" in line
    assert saver.flush() == 2
    assert len(warnings) == 1
    assert loaded(tmp_path).meta["step"] == 2


def test_finish_raises(saver):
    with limit_file_size(0):
        saver.start(1, {}, {}, {}, nothing)
        with pytest.raises(CheckpointError, match="00000001 cannot be written"):
            saver.finish()
    assert saver.finish() is None


@pytest.mark.parametrize("size", [10, 10_000])
def test_when_write_first_fails_no_checkpoint_appears_and_the_error_names_the_reason(saver, tmp_path, size):
    with limit_file_size(5):
        saver.start(1, {}, {}, {}, lambda: np.save(tmp_path / "counts.npy", np.zeros(size)))
        with pytest.raises(CheckpointError) as raised:
            saver.finish()
    assert "None" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert checkpoint.candidates(tmp_path) == []
    saver.start(2, {}, {}, {}, lambda: (tmp_path / "no" / "such").write_text(""))
    with pytest.raises(CheckpointError, match=r"no/such cannot be written \(No such file or directory\)"):
        saver.finish()


def test_close_waits_ends_the_thread_and_reports_a_failure(tmp_path, warnings):
    saver, go = (
        AsyncCheckpointer(tmp_path / "a", keep_last=1, keep_every_steps=0, warn=warnings.append),
        threading.Event(),
    )
    saver.start(1, {}, {}, {}, lambda: go.wait(30))
    (thread,) = [thread for thread in threading.enumerate() if thread.name.startswith("save")]
    threading.Timer(0.1, go.set).start()
    saver.close()
    assert not thread.is_alive()
    assert loaded(tmp_path / "a").meta["step"] == 1
    saver = AsyncCheckpointer(tmp_path / "b", keep_last=1, keep_every_steps=0, warn=warnings.append)
    with limit_file_size(0):
        saver.start(1, {}, {}, {}, nothing)
        saver.close()
    (line,) = warnings
    assert "00000001 cannot be written" in line


def test_it_starts_by_removing_files_of_a_killed_writer(tmp_path, warnings):
    (tmp_path / "00000004.tmp").mkdir()
    (tmp_path / "latest.tmp").touch()
    AsyncCheckpointer(tmp_path, keep_last=1, keep_every_steps=0, warn=warnings.append).close()
    assert list(tmp_path.iterdir()) == []
