"""Files made to do harm end in one line: nothing written outside, no wait for ever, no memory beyond their own size."""

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
    assert len(findings) == (2 if column == "key" else 0)  # no numbers, and another fingerprint
    monkeypatch.setattr(sys, "argv", ["mimcl", *BUILD])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    made = {"prototypes.json", "centroids.npy", "train.arrow", "gallery.png"}
    assert files(home.parent) - before == {f"home/shards/prototypes/new/{name}" for name in made}


@pytest.mark.parametrize(
    "name", ["../../../escaped.tar", "/tmp/escaped.tar", "train-000000.tar/../../x", "train-0.tar"]
)
def test_shard_names_that_lead_elsewhere(home, name, capfd, monkeypatch):
    shards = json.loads((home / "shards" / "dataset.json").read_text())["splits"]["train"]["shards"]
    shards[0]["name"] = name
    edit_dataset(home / "shards", shards=shards)
    for command in (TRAIN, BUILD, ["verify"]):
        assert "a shard called" in refused(capfd, monkeypatch, *command)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nbytes": 2**62}, "does not lie inside its shard"),
        ({"nbytes": -1}, "does not lie inside its shard"),
        ({"offset": -512}, "does not lie inside its shard"),
        ({"offset": 2**63 - 512}, "does not lie inside its shard"),
        ({"shard": -1}, "lies in no shard"),
        ({"width": 50_000, "height": 50_000}, "has an impossible size in pixels"),
        ({"width": -64, "height": -64}, "has an impossible size in pixels"),
        ({"label": -5}, "has an impossible label"),
    ],
)
def test_numbers_in_the_index(home, values, message, capfd, monkeypatch):
    index = ShardIndex.load(home / "shards")
    columns = {name: getattr(index, name).tolist() for name in values}
    for name, value in values.items():
        columns[name][3] = value
    seal_index(home / "shards", **columns)
    for command in (TRAIN, BUILD):
        assert f"index damaged or hostile (row 3 {message}" in refused(capfd, monkeypatch, *command)


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
        (tarfile.SYMTYPE, {"linkname": "/etc/passwd"}, "is a symbolic link"),
        (tarfile.LNKTYPE, {"linkname": "../../x"}, "is a hard link"),
        (tarfile.CHRTYPE, {"devmajor": 1, "devminor": 5}, "is a device"),
        (tarfile.BLKTYPE, {"devmajor": 8}, "is a device"),
        (tarfile.REGTYPE, {"size": 2**62}, "bytes by its header"),
        (tarfile.REGTYPE, {"name": "../../../../tmp/escaped.jpg"}, "should be called"),
    ],
)
def test_members_of_a_tar(home, kind, values, message):
    put_member(home, kind, **values)
    (finding,) = verify(home / "shards", False, 1, lambda count: None)
    assert "sample 000000002" in finding
    assert message in finding


@pytest.mark.parametrize("name", ["train-000000.tar", "train-000000.idx", "train.arrow", "dataset.json"])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder"])
def test_what_never_ends_or_is_no_file(home, name, kind, capfd, monkeypatch):
    path = home / "shards" / name
    path.unlink()
    {"pipe": os.mkfifo, "/dev/zero": lambda path: path.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](path)
    refused(capfd, monkeypatch, "verify")
    if name in ("train.arrow", "dataset.json"):
        refused(capfd, monkeypatch, *TRAIN)


@pytest.mark.parametrize("name", ["prototypes.json", "train.arrow", "centroids.npy"])
@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "folder"])
def test_prototypes_that_never_end_or_are_no_files(home, name, kind, capfd, monkeypatch):
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
        (laughs(20), "has aliases or is nested deeply"),
        ("seed: &a [*a]", "has aliases or is nested deeply"),
        ("[" * 60_000, "nested deeply"),
        ("- " * 30_000, "nested deeply"),
        ("a: 1\n" * 100_000, "more than 65,536 characters"),
        ("seed: 2001-99-99", "not plain YAML"),
        ("seed: " + "9" * 10_000, "not plain YAML"),
        ("? [a]\n: 1", "not plain YAML"),
        ("- 1", "is not a configuration"),
        ("", "is not a configuration"),
        ("a: 1\n---\nb: 2", "not plain YAML"),
    ],
)
def test_configurations(home, text, message, capfd, monkeypatch):
    (home / "file.yaml").write_text(text)
    assert message in refused(capfd, monkeypatch, "train", "--config", "file.yaml")


def test_settings_have_no_aliases():
    with pytest.raises(ConfigError, match="has aliases or is nested deeply"):
        parse_settings(["seed=[&a 1, *a]"])
    assert parse_settings(["optim.betas=[0.9, 0.95]"]) == {"optim.betas": [0.9, 0.95]}


def test_configuration_files_that_never_end(home):
    os.mkfifo(home / "pipe")
    for path in (home / "pipe", "/dev/zero", home):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_yaml(type(home)(path))
    (home / "whole.yaml").write_text(yaml.safe_dump({"seed": 3, "data": {"root": "x"}}))
    assert read_yaml(home / "whole.yaml") == {"seed": 3, "data.root": "x"}


# A process of its own, so that what it held at most is its own.
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
    os.truncate(home / "sparse" / "train-000000.tar", 2**30)  # a hole on disk
    shards = json.loads((home / "sparse" / "dataset.json").read_text())["splits"]["train"]["shards"]
    shards[0]["bytes"] = 2**30
    edit_dataset(home / "sparse", shards=shards)
    (home / "zero" / "dataset.json").unlink()
    (home / "zero" / "dataset.json").symlink_to("/dev/zero")

    done = subprocess.run([sys.executable, "-c", MEASURED, home], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    said = dict(line.partition(" ")[::2] for line in done.stdout.splitlines())
    assert said["shard"] == "1"
    assert "50000 x 50000" in done.stderr or "more than 178,000,000 pixels" in done.stderr
    assert "more than 178,000,000 pixels" in said["bomb"]
    assert "the end of the archive is not as it is packed" in said["sparse"]
    assert "not a regular file" in said["zero"]
    assert float(said["grown"]) < 100  # MB


def test_a_bomb_is_not_packed(home, capfd, monkeypatch):
    (home / "bombs").mkdir()
    (home / "bombs" / "bomb.png").write_bytes(hollow_png(50_000, 50_000))
    said = refused(capfd, monkeypatch, "shard", "bombs", "--out", "packed")
    assert "none of the 1 files of train is a usable image" in said
    assert "178,000,000 pixels" in said
    assert not (home / "packed").exists()
