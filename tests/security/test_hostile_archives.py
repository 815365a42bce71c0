"""Hostile archives end in a one-line error or a rejection: nothing is written outside, nothing blocks or grows."""

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
import zlib

import pytest
from helpers.archives import pictures, tar_bytes
from helpers.hostile import refused

from mimcl.cli.main import main
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.writer import tar_header


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["mimcl", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def zipped(members) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("make", [tar_bytes, zipped])
def test_names_that_lead_out(tmp_path, monkeypatch, capfd, make):
    one, two = pictures(2)
    outside = tmp_path / "escaped.jpg"
    names = ["../../escaped.jpg", str(outside), "a/../../escaped.jpg", "a/b\x1b[2J\n.jpg"]
    home = tmp_path / "deep" / "home"
    home.mkdir(parents=True)
    (home / "x.bin").write_bytes(make(dict.fromkeys(names, one) | {"a/1.jpg": two}))
    monkeypatch.chdir(home)
    assert run(monkeypatch, "shard", "x.bin", "--workers", "1") == 0
    assert "3 names that point outside the archive" in capfd.readouterr().out
    assert ShardIndex.load(home / "shards").samples == 2
    assert {name.partition("/shards/")[0] for name in files(tmp_path)} == {"deep/home/x.bin", "deep/home"}


def test_keys_of_adopted_shards_are_never_paths(tmp_path, monkeypatch):
    images = pictures(6)
    keys = ["../../escaped", "/tmp/mimcl-escaped", "a\nb\x1b[2J", "x" * 900, "y", "z"]
    home = tmp_path / "deep" / "home"
    (home / "wds").mkdir(parents=True)
    members = {f"{key}.jpg": image for key, image in zip(keys, images, strict=True)}
    (home / "wds" / "x.tar").write_bytes(tar_bytes(members))
    monkeypatch.chdir(home)
    assert run(monkeypatch, "shard", "wds", "--adopt") == 0
    assert ShardIndex.load(home / "wds").keys() == keys
    build = ["prototypes", "build", "--data", "wds", "--features", "pixels", "--k", "2", "--decoder", "reference"]
    assert run(monkeypatch, *build) == 0
    assert run(monkeypatch, "verify", "wds") == 0
    assert {name.split("/")[2] for name in files(tmp_path)} == {"wds"}


def sized(size: int, kind: bytes = tarfile.REGTYPE, name: str = "a.jpg") -> bytes:
    """A header that declares any size."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def chain(kind: bytes, count: int) -> bytes:
    return sized(0, kind, "././@LongLink") * count + sized(0) + bytes(1024)


HOSTILE_TARS = {
    "huge": sized(2**62) + bytes(2048),
    "negative": sized(-512) + bytes(2048),
    "backwards": sized(-(2**40), tarfile.XGLTYPE) + bytes(2048),
    "long-name": sized(2**40, tarfile.GNUTYPE_LONGNAME) + bytes(2048),
    "extended": sized(2**40, tarfile.XHDTYPE) + bytes(2048),
    "global": sized(2**40, tarfile.XGLTYPE) + bytes(2048),
    "names": chain(tarfile.GNUTYPE_LONGNAME, 3000),
    "headers": chain(tarfile.XHDTYPE, 3000),
    "many-headers": chain(tarfile.XHDTYPE, 1500),
    "records": sized(1000, tarfile.XHDTYPE) + b"9999999999 size=1\n".ljust(1024, b"\0") + sized(0) + bytes(1024),
    "digits": sized(5000, tarfile.XHDTYPE) + (b"5000 size=" + b"9" * 4989 + b"\n").ljust(5120, b"\0") + sized(0),
    "sparse": sized(2**40, tarfile.GNUTYPE_SPARSE) + bytes(2048),
    "nested": tar_header("a.tar", 2048) + sized(2**62) + bytes(1536 + 1024),
    "only-links": sized(2**40, tarfile.SYMTYPE) + bytes(1024),
}


@pytest.mark.parametrize("content", HOSTILE_TARS.values(), ids=HOSTILE_TARS)
@pytest.mark.parametrize("arguments", [("x.tar",), ("wds", "--adopt")], ids=["packed", "adopted"])
def test_tars(tmp_path, monkeypatch, capfd, content, arguments):
    (tmp_path / "wds").mkdir()
    (tmp_path / "x.tar").write_bytes(content)
    (tmp_path / "wds" / "x.tar").write_bytes(content)
    os.truncate(tmp_path / "x.tar", 2**41)  # a sparse file, so that there seem to be bytes to read
    os.truncate(tmp_path / "wds" / "x.tar", 2**21)
    monkeypatch.chdir(tmp_path)
    refused(capfd, monkeypatch, "shard", *arguments)
    assert files(tmp_path) == {"x.tar", "wds/x.tar"}


# A separate process, so that the peak memory is its own.
MEASURED = """
import resource, sys
from mimcl.cli.main import main
import mimcl.pipeline.shards, mimcl.pipeline.sources.archives.zips

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
sys.argv = ["mimcl", "shard", "x.zip", "--workers", "1"]
try:
    main()
except SystemExit as stop:
    print("shard", stop.code)
print("grown", peak() - before)
"""


def test_a_zip_bomb(tmp_path):
    """128 MB of zeros after the first bytes of a JPEG, once with its real size and once with a wrong one."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    data = packer.compress(pictures(1)[0][:300]) + packer.compress(bytes(2**27)) + packer.flush()
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as opened:
        for name in ("a/bomb.jpg", "a/liar.jpg"):
            info = zipfile.ZipInfo(name)
            opened.writestr(info, data)
        opened.writestr("a/sound.jpg", pictures(1)[0])
    content = bytearray((tmp_path / "x.zip").read_bytes())
    place = 0
    for size in (2**27 + 300, 700):
        place = content.index(b"PK\x01\x02", place + 1)
        content[place + 10 : place + 12] = (8).to_bytes(2, "little")  # deflated
        content[place + 24 : place + 28] = size.to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(content)
    done = subprocess.run([sys.executable, "-c", MEASURED], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    output = dict(line.split(" ")[:2] for line in done.stdout.splitlines() if line.startswith(("shard", "grown")))
    assert output["shard"] == "0", done.stderr
    assert float(output["grown"]) < 100  # MB
    rejected = [json.loads(line) for line in (tmp_path / "shards" / "rejected.jsonl").read_text().splitlines()]
    assert {row["path"] for row in rejected} == {"a/bomb.jpg", "a/liar.jpg"}


@pytest.mark.parametrize("cut", [3, 40, 200, 2000])
def test_directories_of_zips_at_random(tmp_path, monkeypatch, capfd, cut):
    content = bytearray(zipped({f"a/{n}.jpg": image for n, image in enumerate(pictures(3))}))
    start = content.index(b"PK\x01\x02")
    content[start + 4 : start + 46 : 3] = bytes((cut * n) % 256 for n in range(14))
    (tmp_path / "x.zip").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    code = run(monkeypatch, "shard", "x.zip", "--workers", "1")
    complaint = capfd.readouterr().err
    assert "Traceback" not in complaint
    assert code == 0 or len(complaint.splitlines()) == 1
