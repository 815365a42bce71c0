"""Hostile files end in a one-line error: nothing is written outside, nothing blocks, memory stays small."""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
import yaml
from helpers.damage import edit_dataset, hollow_png, seal_image, seal_index, seal_shard
from helpers.hostile import refused

from mimcl.cli.config import parse_settings, read_yaml
from mimcl.cli.errors import ConfigError
from mimcl.cli.main import main
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.verify import verify

pytestmark = pytest.mark.slow  # trains

TRAIN = ["train", "--data", "shards", "--recipe", "cpu_small", "--decoder", "reference", "--out", "new"]
BUILD = ["prototypes", "build", "--features", "pixels", "--k", "3", "--decoder", "reference", "--name", "new"]


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("column", ["key", "path"])
@pytest.mark.parametrize("name", ["../../escaped", "/tmp/mimcl-escaped", "a\nb\x1b[2J", "x" * 100_000])
def test_names_in_the_index_are_never_paths(home, column, name, monkeypatch):
    root, samples = home / "shards", ShardIndex.load(home / "shards").samples
    seal_index(root, **{column: [f"{name}{row}" for row in range(samples)]})
    before = files(home.parent)
    findings = verify(root, True, 1, lambda count: None)
    assert len(findings) == (2 if column == "key" else 0)  # keys that are not numbers, and another fingerprint
    monkeypatch.setattr(sys, "argv", ["mimcl", *BUILD])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    made = {"prototypes.json", "centroids.npy", "train.arrow", "gallery.png"}
    assert files(home.parent) - before == {f"home/shards/prototypes/new/{name}" for name in made}


@pytest.mark.parametrize(
    "name", ["../../../escaped.tar", "/tmp/escaped.tar", "train-000000.tar/../../x", "train-0.tar"]
)
def test_shard_names_must_not_be_paths(home, name, capfd, monkeypatch):
    shards = json.loads((home / "shards" / "dataset.json").read_text())["splits"]["train"]["shards"]
    shards[0]["name"] = name
    edit_dataset(home / "shards", shards=shards)
    for command in (TRAIN, BUILD, ["verify"]):
        assert repr(name) in refused(capfd, monkeypatch, *command)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nbytes": 2**62}, "inside its shard"),
        ({"nbytes": -1}, "inside its shard"),
        ({"offset": -512}, "inside its shard"),
        ({"offset": 2**63 - 512}, "inside its shard"),
        ({"shard": -1}, "shard"),
        ({"width": 50_000, "height": 50_000}, "size in pixels"),
        ({"width": -64, "height": -64}, "size in pixels"),
        ({"label": -5}, "label"),
    ],
)
def test_invalid_numbers_in_the_index_are_refused(home, values, message, capfd, monkeypatch):
    index = ShardIndex.load(home / "shards")
    columns = {name: getattr(index, name).tolist() for name in values}
    for name, value in values.items():
        columns[name][3] = value
    seal_index(home / "shards", **columns)
    for command in (TRAIN, BUILD):
        line = refused(capfd, monkeypatch, *command)
        assert "row 3 " in line
        assert message in line


def put_member(home, kind, row=2, **values):
    content, place = bytearray((home / "shards/train-000000.tar").read_bytes()), 0
    place = int(ShardIndex.load(home / "shards").offset[row]) - 512
    info = tarfile.TarInfo.frombuf(bytes(content[place : place + 512]), "utf-8", "strict")
    info.type = kind
    for name, value in values.items():
        setattr(info, name, value)
    content[place : place + 512] = info.tobuf(tarfile.GNU_FORMAT)[-512:]
    seal_shard(home / "shards", bytes(content))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (tarfile.SYMTYPE, {"linkname": "/etc/passwd"}, "symbolic link"),
        (tarfile.LNKTYPE, {"linkname": "../../x"}, "hard link"),
        (tarfile.CHRTYPE, {"devmajor": 1, "devminor": 5}, "device"),
        (tarfile.BLKTYPE, {"devmajor": 8}, "device"),
        (tarfile.REGTYPE, {"size": 2**62}, f"{2**62:,} bytes"),
        (tarfile.REGTYPE, {"name": "../../../../tmp/escaped.jpg"}, "/tmp/escaped.jpg"),
    ],
)
def test_invalid_members_of_a_shard_are_found(home, kind, values, message):
    put_member(home, kind, **values)
    (finding,) = verify(home / "shards", False, 1, lambda count: None)
    assert "sample 000000002" in finding
    assert message in finding


@pytest.mark.parametrize("name", ["train-000000.tar", "train-000000.idx", "train.arrow", "dataset.json"])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder"])
def test_pipes_devices_and_folders_in_place_of_a_file_are_refused(home, name, kind, capfd, monkeypatch):
    path = home / "shards" / name
    path.unlink()
    {"pipe": os.mkfifo, "/dev/zero": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    refused(capfd, monkeypatch, "verify")
    if name in ("train.arrow", "dataset.json"):
        refused(capfd, monkeypatch, *TRAIN)


@pytest.mark.parametrize("name", ["prototypes.json", "train.arrow", "centroids.npy"])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder"])
def test_pipes_devices_and_folders_in_place_of_prototypes_are_refused(home, name, kind, capfd, monkeypatch):
    path = home / "shards" / "prototypes" / "default" / name
    path.unlink()
    {"pipe": os.mkfifo, "/dev/zero": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    for command in (["verify"], [*TRAIN, "--curriculum", "proto"]):
        refused(capfd, monkeypatch, *command)


def laughs(levels: int) -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join([*lines, f"seed: *a{levels - 1}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(20), "aliases"),
        ("seed: &a [*a]", "aliases"),
        ("[" * 60_000, "plain YAML"),
        ("- " * 30_000, "plain YAML"),
        ("a: 1\n" * 100_000, "more than 65,536 characters"),
        ("seed: 2001-99-99", "plain YAML"),
        ("seed: " + "9" * 10_000, "plain YAML"),
        ("? [a]\n: 1", "plain YAML"),
        ("- 1", "file.yaml is not a configuration"),
        ("", "file.yaml is not a configuration"),
        ("a: 1\n---\nb: 2", "plain YAML"),
    ],
)
def test_hostile_configurations_are_refused(home, text, message, capfd, monkeypatch):
    (home / "file.yaml").write_text(text)
    assert message in refused(capfd, monkeypatch, "train", "--config", "file.yaml")


def test_settings_have_no_aliases():
    with pytest.raises(ConfigError, match="seed.*aliases"):
        parse_settings(["seed=[&a 1, *a]"])
    assert parse_settings(["optim.betas=[0.9, 0.95]"]) == {"optim.betas": [0.9, 0.95]}


def test_pipes_and_devices_as_configuration_are_refused(home):
    os.mkfifo(home / "pipe")
    for path in (home / "pipe", "/dev/zero", home):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_yaml(type(home)(path))
    (home / "whole.yaml").write_text(yaml.safe_dump({"seed": 3, "data": {"root": "x"}}))
    assert read_yaml(home / "whole.yaml") == {"seed": 3, "data.root": "x"}


# A separate process, so that the peak memory is its own.
MEASURED = """
import resource, sys
from pathlib import Path
from mimcl.cli.main import main
from mimcl.pipeline.verify import verify
import mimcl.pipeline.shards, mimcl.pipeline.stream
from mimcl.pipeline.files import DataError

home = Path(sys.argv[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
sys.argv = ["mimcl", "shard", str(home / "bombs"), "--out", str(home / "packed"), "--decode"]
try:
    main()
except SystemExit as stop:
    print("shard", stop.code, flush=True)
print("bomb", verify(home / "bomb", True, 2, lambda count: None))
print("sparse", verify(home / "sparse", True, 2, lambda count: None))
try:
    verify(home / "zero", True, 2, lambda count: None)
except DataError as error:
    print("zero", error)
print("grown", peak() - before)
"""


def test_memory_stays_small(home):
    (home / "bombs").mkdir()
    (home / "bombs" / "bomb.png").write_bytes(hollow_png(50_000, 50_000))
    os.truncate(home / "bombs" / "bomb.png", 900_000)
    for name in ("bomb", "sparse", "zero"):
        shutil.copytree(home / "shards", home / name)
    row = int(ShardIndex.load(home / "bomb").nbytes.argmax())
    seal_image(home / "bomb", row, hollow_png(50_000, 50_000), 40, 40)
    os.truncate(home / "sparse" / "train-000000.tar", 2**30)  # a sparse file
    shards = json.loads((home / "sparse" / "dataset.json").read_text())["splits"]["train"]["shards"]
    shards[0]["bytes"] = 2**30
    edit_dataset(home / "sparse", shards=shards)
    (home / "zero" / "dataset.json").unlink()
    (home / "zero" / "dataset.json").symlink_to("/dev/zero")

    done = subprocess.run([sys.executable, "-c", MEASURED, home], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    output = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert output["shard"] == "1"
    assert "50000 x 50000" in done.stderr or "more than 178,000,000 pixels" in done.stderr
    assert "more than 178,000,000 pixels" in output["bomb"]
    assert "end of the archive" in output["sparse"]
    assert "not a regular file" in output["zero"]
    assert float(output["grown"]) < 100  # MB


def test_a_bomb_is_not_packed(home, capfd, monkeypatch):
    (home / "bombs").mkdir()
    (home / "bombs" / "bomb.png").write_bytes(hollow_png(50_000, 50_000))
    line = refused(capfd, monkeypatch, "shard", "bombs", "--out", "packed")
    assert "1 files of train" in line
    assert "178,000,000 pixels" in line
    assert not (home / "packed").exists()
