"""Under every locale the same commands write the same bytes, whatever the names of files, classes and folders."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile

import pytest
from helpers.exhaustive import exhaustive
from helpers.images import encoded
from helpers.locales import environment

pytestmark = pytest.mark.slow

CLASSES = ["é a".encode(), "日本".encode(), b"raw\xe9", b"plain\x1b[2J"]
OUT = os.fsdecode("é 日 x".encode())
DATA = ["dataset.json", "train.arrow", "val.arrow", "train-000000.tar", "train-000000.idx", "rejected.jsonl"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder, a tar and a zip of it, a list of it, and a shard of another program, under names of many kinds."""
    folder = os.fsencode(tmp_path_factory.mktemp("sources"))
    lines = []
    for seed in range(24):
        name = os.path.join(CLASSES[seed % 4], f"ü本{seed:02d}.jpg".encode())
        path = os.path.join(folder, b"src", name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(encoded("baseline", seed))
        os.utime(path, (1e9, 1e9))
        lines.append(name)
    with open(os.path.join(folder, "列é.txt".encode()), "wb") as file:
        file.write(b"\n".join(lines))
    with tarfile.open(os.path.join(folder, "é本.tar".encode()), "w") as tar:
        for name in lines:
            tar.add(os.path.join(folder, b"src", name), os.fsdecode(name))
    with zipfile.ZipFile(os.path.join(os.fsdecode(folder), "é本.zip"), "w") as opened:
        for name in lines:
            if b"raw" not in name:
                opened.writestr(name.decode(), content(os.path.join(folder, b"src", name)))
    return folder


def mimcl(folder, env, *words, fails=False):
    command = [sys.executable, "-m", "mimcl.cli.main", *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=200)
    assert (done.returncode != 0) == fails, done.stderr.decode("utf-8", "backslashreplace")
    assert b"Traceback" not in done.stderr
    assert b"\x1b[2J" not in done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["utf-8", "latin-1", *exhaustive("ascii")])
def env(request, tmp_path_factory):
    return environment(request.param, tmp_path_factory.mktemp("locale"))


@pytest.fixture(scope="module")
def packed(sources, tmp_path_factory):
    """What is packed under UTF-8, by source."""
    out = os.fsencode(tmp_path_factory.mktemp("expected"))
    return {name: pack(sources, environment("utf-8", out), out, words) for name, words in SOURCES.items()}


SOURCES = {
    "folder": [b"src"],
    "list": [b"src", b"--list", "列é.txt".encode()],
    "tar": ["é本.tar".encode()],
    "zip": ["é本.zip".encode()],
}


def pack(sources, env, out, words):
    folder = os.path.join(out, OUT.encode(), words[0])
    mimcl(sources, env, b"shard", *words, b"--out", folder, b"--holdout", b"0.25", b"--overwrite")
    return {name: content(os.path.join(folder, name.encode())) for name in DATA}


def content(path):
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize("source", SOURCES)
def test_the_same_bytes_are_packed(sources, env, packed, source, tmp_path):
    found = pack(sources, env, os.fsencode(tmp_path), SOURCES[source])
    assert {name: data == packed[source][name] for name, data in found.items()} == dict.fromkeys(DATA, True)


def test_folder_list_and_tar_give_the_same_shards(packed):
    for name in set(DATA) - {"dataset.json"}:
        assert packed["folder"][name] == packed["list"][name] == packed["tar"][name]


@pytest.mark.parametrize("env", exhaustive("ascii", "latin-1"), indirect=True)
def test_the_whole_chain(sources, env, tmp_path):
    data, run = f"{OUT}/data", f"{OUT}/run"
    quick = ["--recipe", "cpu_small", "--set", "data.batch_size=4", "--set", "data.image_size=32", "--epochs", "0.5"]
    mimcl(tmp_path, env, "shard", os.path.join(sources, b"src"), "--out", data.encode(), "--holdout", "0.25")
    data, run = data.encode(), run.encode()
    mimcl(tmp_path, env, "verify", data)
    assert b"raw\\xe9" in mimcl(tmp_path, env, "inspect", data)
    described = json.loads(mimcl(tmp_path, env, "inspect", "--json", data).decode("ascii"))
    assert described["splits"][0]["classes"] == ["plain\x1b[2J", "raw\\xe9", "é a", "日本"]
    mimcl(tmp_path, env, "prototypes", "build", "--data", data, "--features", "pixels", "--k", "2")
    mimcl(tmp_path, env, "plan", "--data", data, "--curriculum", "proto", *quick)
    printed = mimcl(tmp_path, env, "train", "--data", data, "--curriculum", "proto", *quick, "--out", run)
    assert printed.splitlines()[-1] == run
    mimcl(tmp_path, env, "inspect", run)
    mimcl(tmp_path, env, "eval", "knn", run, "--k", "2")
    mimcl(tmp_path, env, "report", run)
    mimcl(tmp_path, env, "masks", run, "--images", "1")
    mimcl(tmp_path, env, "export", run, "--out", f"{OUT}/exported".encode())
    mimcl(tmp_path, env, "repack", data, "--out", f"{OUT}/repacked".encode())
    mimcl(tmp_path, env, "verify", f"{OUT}/repacked".encode())
    folder = os.path.join(os.fsencode(tmp_path), run)
    assert any(name.startswith(b"events.out") for name in os.listdir(folder))
    for line in content(os.path.join(folder, b"metrics.jsonl")).splitlines():
        json.loads(line)


def test_shards_of_another_program(env, tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), OUT.encode())
    os.makedirs(folder)
    with tarfile.open(os.path.join(folder, "train é 本.tar".encode()), "w") as tar:
        for seed in range(8):
            for ending, data in (("jpg", encoded("baseline", seed)), ("cls", str(seed % 2).encode())):
                path = os.path.join(os.fsencode(tmp_path), b"member")
                with open(path, "wb") as file:
                    file.write(data)
                tar.add(path, f"ü{seed}.{ending}")
    mimcl(tmp_path, env, "shard", "--adopt", OUT.encode())
    mimcl(tmp_path, env, "verify", OUT.encode())
    description = json.loads(content(os.path.join(folder, b"dataset.json")))
    assert description["splits"]["train"]["shards"][0]["name"] == "train é 本.tar"
    mimcl(tmp_path, env, "prototypes", "build", "--data", OUT.encode(), "--features", "pixels", "--k", "2")
