"""No code in a shard, index, prototype set, checkpoint or configuration is ever run."""

import hashlib
import json
import pickle
import shutil
import sys

import numpy as np
import pytest
import xxhash
from helpers.damage import edit_dataset, seal_image, seal_shard
from helpers.hostile import PAYLOADS, Bomb, object_array, pickled, refused, torch_saved

from mimcl.cli.main import main
from mimcl.curriculum.prototypes import PrototypeError, PrototypeSet
from mimcl.model import checkpoint as checkpoints
from mimcl.pipeline.augment import central_crops
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.decode import ReferenceDecoder
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex, file_digest
from mimcl.pipeline.plan import InOrderPlan
from mimcl.pipeline.stream import ReadOptions, Stream
from mimcl.pipeline.verify import verify

pytestmark = pytest.mark.slow  # starts processes

PROTO = ["train", "--data", "shards", "--curriculum", "proto", "--recipe", "cpu_small", "--out", "new"]
RESUME = ["train", "--out", "run", "--resume"]
READERS = {  # a file, and the commands that read it
    "shards/dataset.json": [PROTO, ["verify", "shards"], ["prototypes", "build", "--name", "x"]],
    "shards/train.arrow": [PROTO, ["verify", "shards"], ["prototypes", "build", "--name", "x"]],
    "shards/train-000000.idx": [["verify", "shards"]],
    "shards/train-000000.tar": [["verify", "shards", "--decode"], ["prototypes", "build", "--name", "x"]],
    "shards/prototypes/default/prototypes.json": [PROTO, ["verify", "shards"]],
    "shards/prototypes/default/centroids.npy": [PROTO, ["verify", "shards"]],
    "shards/prototypes/default/train.arrow": [PROTO, ["verify", "shards"]],
    "run/config.yaml": [RESUME],
    "CHECKPOINT/weights.safetensors": [RESUME, ["eval", "knn", "run"]],
    "CHECKPOINT/state.pt": [RESUME, ["eval", "knn", "run"]],
    "CHECKPOINT/meta.json": [RESUME, ["eval", "knn", "run"]],
    "file.yaml": [["train", "--config", "file.yaml"]],
}


@pytest.fixture
def bomb(tmp_path):
    """A payload that would create a file if it ran; checked at the end of the test, and tried once before."""
    test = Bomb(tmp_path / "test")
    pickle.loads(pickled(test))
    assert test.marker.exists()
    made = Bomb(tmp_path / "marker")
    yield made
    assert not made.marker.exists()


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("name", READERS)
def test_a_payload_in_place_of_a_file(home, bomb, name, payload, capfd, monkeypatch, request):
    commands = READERS[name]
    if not name.startswith("shards/"):
        name = name.replace("CHECKPOINT", str(request.getfixturevalue("checkpoint")))
    if name == "run/config.yaml":  # read only if there is no checkpoint yet
        shutil.rmtree(home / "run" / "checkpoints")
    path = home / name
    path.write_bytes(PAYLOADS[payload](bomb))
    for command in commands:
        if command[1] == "build":
            command = [*command, "--features", "pixels", "--decoder", "reference"]
        refused(capfd, monkeypatch, *command)


def seal_prototypes(folder, name, content):
    (folder / name).write_bytes(content)
    info = json.loads((folder / "prototypes.json").read_text())
    info["xxh128"][name] = xxhash.xxh128_hexdigest(content)
    (folder / "prototypes.json").write_text(json.dumps(info))


@pytest.mark.parametrize("payload", [pickled, torch_saved, object_array])
@pytest.mark.parametrize("name", ["centroids.npy", "train.arrow"])
def test_a_payload_with_the_right_checksum_in_a_prototype_set(home, bomb, name, payload):
    seal_prototypes(home / "shards" / "prototypes" / "default", name, payload(bomb))
    with pytest.raises(PrototypeError, match="is damaged"):
        PrototypeSet.load(home / "shards" / "prototypes" / "default", ShardIndex.load(home / "shards").fingerprint)


@pytest.mark.parametrize("payload", [pickled, torch_saved, object_array])
def test_a_payload_with_the_right_checksum_as_index(home, bomb, payload):
    (home / "shards" / "train.arrow").write_bytes(payload(bomb))
    edit_dataset(home / "shards", index_xxh128=file_digest(home / "shards" / "train.arrow"))
    with pytest.raises(DataError, match="cannot be read"):
        ShardIndex.load(home / "shards")


@pytest.mark.parametrize("payload", [pickled, torch_saved, object_array])
@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt"])
def test_a_payload_with_the_right_checksum_in_a_checkpoint(checkpoint, bomb, name, payload):
    (checkpoint / name).write_bytes(payload(bomb))
    meta = json.loads((checkpoint / "meta.json").read_text())
    meta["sha256"][name] = hashlib.sha256(payload(bomb)).hexdigest()
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(checkpoints.CheckpointError):
        checkpoints.load(checkpoint)


@pytest.mark.parametrize("payload", [pickled, torch_saved, object_array])
def test_a_payload_with_the_right_checksum_as_image(home, bomb, payload):
    root = home / "shards"
    index = ShardIndex.load(root)
    row = int(np.argmax(index.nbytes))
    seal_image(root, row, payload(bomb), 40, 40)
    findings = verify(root, True, 1, lambda count: None)
    assert any(f"sample {row:09d}: " in finding and "JPEG, PNG or WebP" in finding for finding in findings)
    index = ShardIndex.load(root)
    stream = Stream(
        InOrderPlan(np.arange(index.samples)),
        index,
        ReferenceDecoder(16, 1),
        central_crops,
        BatchShares(8, 8),
        ReadOptions(prefetch=1),
        seed=0,
    )
    problems = []
    try:
        problems += [str(bad) for batch in stream for bad in getattr(batch, "bad", ())]
    except DataError as error:
        problems.append(str(error))
    assert problems


TAGS = [
    "!!python/object/apply:os.system ['touch {}']",
    "!!python/object/new:os.system ['touch {}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object/apply:builtins.open ['{}', 'w']",
    "!<tag:yaml.org,2002:python/object/apply:os.system> ['touch {}']",
]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("way", ["--config", "--set", "config.yaml"])
def test_yaml_tags_that_name_python_objects_are_refused(home, checkpoint, bomb, tag, way, capfd, monkeypatch):
    text = tag.format(bomb.marker)
    if way == "--config":
        (home / "file.yaml").write_text(f"seed: {text}\n")
        line = refused(capfd, monkeypatch, "train", "--config", "file.yaml")
    elif way == "--set":
        line = refused(capfd, monkeypatch, "train", "--set", f"seed={text}")
    else:
        shutil.rmtree(home / "run" / "checkpoints")  # a checkpoint's configuration takes precedence
        config = (home / "run" / "config.yaml").read_text()
        (home / "run" / "config.yaml").write_text(config.replace("seed: 0", f"seed: {text}"))
        line = refused(capfd, monkeypatch, *RESUME)
    assert "plain YAML" in line


@pytest.mark.parametrize("url", ["pipe:touch {}", "pipe:sh -c 'touch {}'", "file://{}", "ftp://x/{}", "ssh://x/{}"])
@pytest.mark.parametrize("command", [["train", "--data"], ["verify"], ["prototypes", "build", "--data"]])
def test_unsupported_urls_and_pipes_are_refused(home, bomb, url, command, capfd, monkeypatch):
    line = refused(capfd, monkeypatch, *command, url.format(bomb.marker))
    assert "is not supported" in line
    assert url.partition(":")[0] + ":" in line


@pytest.mark.parametrize("name", ["pipe:touch MARKER", "../shards/train-000000.tar", "/dev/zero", "file:///dev/zero"])
def test_shard_names_are_never_paths_or_commands(home, bomb, name, capfd, monkeypatch):
    shards = json.loads((home / "shards" / "dataset.json").read_text())["splits"]["train"]["shards"]
    shards[0]["name"] = name.replace("MARKER", str(bomb.marker))
    edit_dataset(home / "shards", shards=shards)
    for command in (PROTO, ["verify"]):
        assert f"{shards[0]['name']!r:.60}" in refused(capfd, monkeypatch, *command)


def test_the_same_commands_work_on_undamaged_files(home, checkpoint, monkeypatch, capfd):
    shutil.rmtree(home / "src")
    for command in (["verify", "--decode"], RESUME):
        monkeypatch.setattr(sys, "argv", ["mimcl", *command])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0, capfd.readouterr().err


def test_a_pickle_at_the_end_of_a_shard_is_only_bytes(home, bomb):
    content = (home / "shards" / "train-000000.tar").read_bytes()
    payload = pickled(bomb)
    seal_shard(home / "shards", content[: -len(payload)] + payload)
    (finding,) = verify(home / "shards", False, 1, lambda count: None)
    assert "end of the archive" in finding
