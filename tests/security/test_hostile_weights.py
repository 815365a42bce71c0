"""Hostile weight files: no code in them is run, and none takes more memory than its size."""

import argparse
import json
import subprocess
import sys
import zipfile

import pytest
import torch
from helpers.hostile import PAYLOADS, Bomb, pickled, refused, torch_saved
from safetensors.torch import load_file

from mimcl.model.checkpoint import CheckpointError
from mimcl.model.weights import read_weights

pytestmark = pytest.mark.slow  # trains

COMMANDS = (
    ["embed", "FILE", "shards", "--out", "new.npy"],
    ["export", "FILE", "--out", "new"],
    ["train", "--data", "shards", "--recipe", "cpu_small", "--decoder", "reference", "--init", "FILE", "--out", "new"],
    ["prototypes", "build", "--features", "mae:FILE", "--decoder", "reference", "--name", "new"],
)


@pytest.fixture
def bomb(tmp_path):
    """A payload that would create a file if it ran; checked at the end of the test."""
    made = Bomb(tmp_path / "marker")
    yield made
    assert not made.marker.exists()


def refused_by_all(capfd, monkeypatch, path) -> list[str]:
    lines = [
        refused(capfd, monkeypatch, *(word.replace("FILE", str(path)) for word in command)) for command in COMMANDS
    ]
    assert all("weights_only" not in line for line in lines)  # torch's advice
    return lines


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "hf/model.safetensors", "hf/pytorch_model.bin"])
def test_a_payload_in_place_of_weights(home, bomb, name, payload, capfd, monkeypatch):
    path = home / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(PAYLOADS[payload](bomb))
    if name.startswith("hf"):
        (home / "hf" / "config.json").write_text('{"model_type": "vit"}')
        path = home / "hf"
    refused_by_all(capfd, monkeypatch, path)


@pytest.mark.parametrize("inside", ["args", "model", "a tensor's name", "a namespace"])
def test_a_payload_beside_real_weights(checkpoint, home, bomb, inside, capfd, monkeypatch):
    weights = load_file(checkpoint / "weights.safetensors")
    content = {
        "args": {"model": weights, "args": bomb},
        "model": {"model": weights | {"head.x": bomb}},
        "a tensor's name": {"model": weights | {bomb: torch.ones(3)}},
        "a namespace": {"model": weights, "args": argparse.Namespace(lr=bomb)},
    }[inside]
    torch.save(content, home / "w.pth")
    for line in refused_by_all(capfd, monkeypatch, home / "w.pth"):
        assert "w.pth" in line


def test_only_argparse_namespaces_are_unpickled(home, bomb, capfd, monkeypatch):
    """argparse.Namespace is allowed, but nothing that could be built with it."""
    for payload in (pickled(bomb), torch_saved(bomb)):
        (home / "w.pth").write_bytes(payload)
        refused_by_all(capfd, monkeypatch, "w.pth")


@pytest.mark.parametrize("place", ["../w.safetensors", "/etc/passwd", "a/b", "..", ""])
def test_file_names_in_a_weight_index_must_not_be_paths(home, place, capfd, monkeypatch):
    (home / "hf").mkdir()
    (home / "hf" / "config.json").write_text('{"model_type": "vit"}')
    index = {"weight_map": {"cls_token": place}}
    (home / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.safetensors.index.json" in refused(capfd, monkeypatch, "embed", "hf", "shards", "--out", "new.npy")


def test_long_and_unprintable_names_of_tensors(home, capfd, monkeypatch):
    torch.save({"x" * 100_000: torch.ones(3), "\x1b[2J\n": torch.ones(3)}, home / "w.pth")
    refused(capfd, monkeypatch, "embed", "w.pth", "shards", "--out", "new.npy")
    with pytest.raises(CheckpointError) as caught:
        read_weights(home / "w.pth")
    assert str(caught.value).isprintable()


MEASURED = """
import resource, sys
from pathlib import Path
from mimcl.model.checkpoint import CheckpointError
from mimcl.model.weights import read_weights

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
for path in sys.argv[1:]:
    try:
        read_weights(Path(path))
    except CheckpointError as error:
        print(error)
print("grown", peak() - before)
"""


def test_memory_stays_small(tmp_path):
    """One number viewed as 4 TB, 128 MB of zeros that compress to 1 MB, a header that declares 4 TB."""
    torch.save({"model": {"cls_token": torch.ones(1).expand(1, 1, 10**12)}}, tmp_path / "view.pth")
    torch.save({"cls_token": torch.zeros(2**25)}, tmp_path / "large.pth")
    with zipfile.ZipFile(tmp_path / "large.pth") as large, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for record in large.infolist():
            bomb.writestr(record.filename, large.read(record), zipfile.ZIP_DEFLATED, 1)
    (tmp_path / "large.pth").unlink()
    header = json.dumps({"cls_token": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    (tmp_path / "header.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    names = ("view.pth", "bomb.pth", "header.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *(tmp_path / name for name in names)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "'cls_token'" in lines[0]
    assert "compressed" in lines[1]
    assert "header.safetensors" in lines[2]
    assert float(lines[3].removeprefix("grown ")) < 100  # MB
