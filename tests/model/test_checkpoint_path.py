"""A checkpoint or a run is found by any path that names it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mimcl.model import checkpoint
from mimcl.model.checkpoint_path import CheckpointError, named_checkpoint, named_run, resolve


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """a run/ with checkpoints at steps 7 and 120, of which `latest` names the older; `kept` is a copy outside."""
    monkeypatch.chdir(tmp_path)
    for folder, step in (("a run/checkpoints", 7), ("a run/checkpoints", 120), ("kept", 7)):
        checkpoint.save(Path(folder), step, {"a": torch.zeros(1)}, {}, {"position": step}, keep_last=3)
    Path("a run/checkpoints/latest").write_text("00000007\n")
    Path("kept/00000007").rename("saved")


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("a run", 7),
        ("a run/", 7),
        ("a run/checkpoints", 7),
        ("a run/checkpoints/latest", 7),
        ("a run/checkpoints/00000120", 120),
        ("a run/checkpoints/120", 120),
        ("a run/checkpoints/120/", 120),
        ("a run/checkpoints/00000120/weights.safetensors", 120),
        ("a run/checkpoints/00000120/meta.json", 120),
    ],
)
def test_paths_of_a_run(path, step):
    expected = Path(f"a run/checkpoints/{step:08d}")
    assert resolve(Path(path)) == expected
    assert named_checkpoint(Path(path)) == (None if path in ("a run", "a run/", "a run/checkpoints") else expected)
    assert named_run(Path(path)) == Path("a run")
    assert resolve(Path(path).absolute()) == expected.absolute()
    assert named_run(Path(path).absolute()) == Path("a run").absolute()


@pytest.mark.parametrize(("path", "step"), [(".", 7), ("latest", 7), ("120", 120), ("00000120", 120)])
def test_paths_within_the_folder_of_checkpoints(path, step, monkeypatch):
    monkeypatch.chdir("a run/checkpoints")
    assert resolve(Path(path)).resolve() == Path(f"{step:08d}").resolve()
    assert named_run(Path(path)).resolve() == Path("..").resolve()


def test_a_checkpoint_outside_of_a_run():
    assert resolve(Path("saved")) == resolve(Path("saved/state.pt")) == Path("saved")
    assert named_run(Path("saved")) == Path("saved")


def test_a_damaged_pointer_means_the_newest():
    Path("a run/checkpoints/latest").write_text("nothing")
    assert resolve(Path("a run/checkpoints/latest")).name == "00000120"


def test_a_run_may_be_called_latest_or_a_number():
    for name in ("latest", "7"):
        Path("a run").rename(name)
        assert resolve(Path(name)) == Path(name, "checkpoints", "00000007")
        assert named_run(Path(name)) == Path(name)
        Path(name).rename("a run")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere does not exist; give runs/NAME or one of its checkpoints"),
        ("a run/checkpoints/8", "a run/checkpoints/8 does not exist"),
        ("kept", "kept is neither a checkpoint nor a run with one"),
        ("latest", "latest does not exist"),
    ],
)
def test_paths_of_nothing(path, message):
    with pytest.raises(CheckpointError, match=message):
        resolve(Path(path))


def test_no_torch_is_needed():
    code = (
        "import sys, pathlib; from mimcl.model.checkpoint_path import named_run; named_run(pathlib.Path('x')); "
        "print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"
