"""Every kind of damage to a packed data set is found and named; an intact one has no findings."""

import json
import os
import shutil
import tarfile
from dataclasses import replace

import pytest
from helpers.damage import edit_dataset, flip, hollow_png, seal_image, seal_index, seal_rows, seal_shard
from helpers.images import encoded, write_train_val

from mimcl.pipeline.dataset_json import read_dataset
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.verify import verify
from mimcl.pipeline.writer import tar_header

ROW = 7  # the sample that is damaged
KEY = f"{ROW:09d}"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """80 + 4 small images of all formats in one shard each."""
    root = tmp_path_factory.mktemp("packed")
    write_train_val(root / "src", {"ant": 50, "bee": 30}, {"bee": 4})
    pack(image_folder(root / "src"), root / "out", PackConfig(workers=2), on_progress=lambda count: None)
    return root / "out"


@pytest.fixture
def copy(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "copy")
    return tmp_path / "copy"


def found(root, decode=False, workers=2) -> list[str]:
    counts = []
    findings = verify(root, decode, workers, counts.append)
    assert sum(counts) == sum(part["samples"] for part in read_dataset(root)["splits"].values())
    assert not any("\n" in finding for finding in findings)
    return findings


def tar_of(root) -> bytearray:
    return bytearray((root / "train-000000.tar").read_bytes())


def header_place(root, row=ROW) -> int:
    return int(ShardIndex.load(root).offset[row]) - 512


def put_header(root, change, row=ROW) -> None:
    """Rewrite the header of a sample; `change` gets its TarInfo."""
    content, place = tar_of(root), header_place(root, row)
    info = tarfile.TarInfo.frombuf(bytes(content[place : place + 512]), "utf-8", "strict")
    change(info)
    content[place : place + 512] = info.tobuf(tarfile.USTAR_FORMAT)
    seal_shard(root, bytes(content))


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_packed_data_set_has_no_findings(packed, labelled, decode, workers):
    assert found(packed, decode, workers) == []
    assert found(labelled[1], decode, workers) == []  # several shards


def test_without_labels_and_with_one_image(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "one.png").write_bytes(encoded("png"))
    pack(image_folder(tmp_path / "src"), tmp_path / "out", PackConfig(), on_progress=lambda count: None)
    assert found(tmp_path / "out") == []


def test_no_data_set(tmp_path):
    with pytest.raises(DataError, match=r"no dataset.json"):
        verify(tmp_path, False, 1, lambda count: None)


def test_a_byte_of_an_image(copy):
    flip(copy / "train-000000.tar", header_place(copy) + 512 + 100)
    checksum, sample = found(copy)
    assert checksum.startswith("train-000000.tar: checksum")
    assert sample.startswith(f"train-000000.tar: sample {KEY}: its bytes")


def test_a_byte_of_padding_or_of_the_end(copy):
    size = (copy / "train-000000.tar").stat().st_size
    flip(copy / "train-000000.tar", size - 1)
    checksum, end = found(copy)
    assert checksum.startswith("train-000000.tar: checksum")
    assert end.startswith("train-000000.tar: the end of the archive")


def test_findings_come_in_the_order_of_the_samples(copy):
    places = [header_place(copy, row) + 600 for row in (70, 3, 66, 12)]
    for place in places:
        flip(copy / "train-000000.tar", place)
    for workers in (1, 4):
        samples = [line.split("sample ")[1][:9] for line in found(copy, workers=workers)[1:]]
        assert samples == ["000000003", "000000012", "000000066", "000000070"]


def gone(root):
    (root / "train-000000.tar").unlink()


def cut(root):
    os.truncate(root / "train-000000.tar", 1000)


def linked(root):
    gone(root)
    (root / "train-000000.tar").symlink_to("/dev/zero")


def pipe(root):
    gone(root)
    os.mkfifo(root / "train-000000.tar")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (gone, "No such file or directory"),
        (cut, "has 1,000 bytes"),
        (linked, "train-000000.tar is not a regular file"),
        (pipe, "train-000000.tar is not a regular file"),
    ],
)
def test_a_shard_that_cannot_be_read(copy, damage, message):
    damage(copy)
    (finding,) = found(copy)
    assert finding.startswith(f"train-000000.tar: {message}")


def test_with_a_damaged_index_shards_are_still_checked_by_checksum(copy):
    flip(copy / "train.arrow", 900)
    flip(copy / "train-000000.tar", 700)
    first, second = found(copy)
    assert "train.arrow does not match" in first
    assert second.startswith("train-000000.tar: checksum")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("key", "000000099", "train.arrow: keys"),
        ("nbytes", None, f"sample {KEY}: its bytes do not match the index"),
        ("xxh64", 5, f"sample {KEY}: its bytes do not match the index"),
        ("width", 11, f"sample {KEY}: it has "),
        ("height", 11, f"sample {KEY}: it has "),
        ("label", 1, f"sample {KEY}: {KEY}.cls does not contain 1"),
        ("label", -1, "sample 000000008: data not in the index precedes it: member '000000007.cls'"),
        ("offset", None, f"sample {KEY}: data not in the index precedes it"),
    ],
)
def test_an_index_that_differs_from_the_shard(copy, column, value, message):
    if value is None:
        value = int(getattr(ShardIndex.load(copy), column)[ROW]) + (1 if column == "nbytes" else 512)
    seal_rows(copy, ROW, **{column: value})
    findings = found(copy)
    assert any(message in finding for finding in findings)
    fingerprinted = column in ("key", "nbytes", "xxh64", "label")
    assert any("train.arrow: fingerprint" in finding for finding in findings) == fingerprinted


def test_rows_that_overlap_and_rows_out_of_order(copy):
    index = ShardIndex.load(copy)
    seal_rows(copy, ROW, offset=int(index.offset[ROW - 1]))
    assert any("overlaps" in finding for finding in found(copy))


def test_shards_out_of_order(labelled, tmp_path):
    shutil.copytree(labelled[1], tmp_path / "copy")
    index = ShardIndex.load(tmp_path / "copy")
    order = list(range(index.samples))[::-1]
    columns = {name: getattr(index, name)[order].tolist() for name in ("shard", "offset", "nbytes", "label")}
    seal_index(tmp_path / "copy", **columns)
    assert any("out of order" in finding for finding in found(tmp_path / "copy"))


def test_a_shards_number_of_samples(labelled, tmp_path):
    shutil.copytree(labelled[1], tmp_path / "copy")
    shards = read_dataset(tmp_path / "copy")["splits"]["train"]["shards"]
    shards[0]["samples"] += 1
    shards[1]["samples"] -= 1
    edit_dataset(tmp_path / "copy", shards=shards)
    findings = verify(tmp_path / "copy", False, 1, lambda count: None)
    assert [f"train-{n:06d}.tar" in finding for n, finding in enumerate(findings)] == [True, True]
    assert all("samples in the index" in finding for finding in findings)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "is a symbolic link, not a regular file"),
        (tarfile.LNKTYPE, "is a hard link, not a regular file"),
        (tarfile.CHRTYPE, "is a device, not a regular file"),
        (tarfile.BLKTYPE, "is a device, not a regular file"),
        (tarfile.DIRTYPE, "is a folder, not a regular file"),
        (tarfile.FIFOTYPE, "is a pipe, not a regular file"),
        (tarfile.GNUTYPE_SPARSE, "is of an unusual kind, not a regular file"),
    ],
)
def test_members_that_are_not_regular_files(copy, kind, message):
    def change(info):
        info.type, info.linkname = kind, "../../etc/passwd"

    put_header(copy, change)
    (finding,) = found(copy)
    assert finding.startswith(f"train-000000.tar: sample {KEY}: member '{KEY}")
    assert message in finding


@pytest.mark.parametrize("name", ["../../x.jpg", "/etc/x.jpg", f"{KEY}.tiff", f"{KEY}.JPG", "000000008.png", "a\nb"])
def test_members_of_another_name(copy, name):
    put_header(copy, lambda info: setattr(info, "name", name))
    (finding,) = found(copy)
    assert f"member {name!r} should be called {KEY}." in finding


def test_a_name_that_disagrees_with_the_content(copy):
    kinds = {"jpg": "png", "png": "webp", "webp": "jpg"}

    def change(info):
        info.name = f"{KEY}.{kinds[info.name[10:]]}"

    put_header(copy, change)
    (finding,) = found(copy)
    assert "should be called" in finding


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: setattr(info, "size", 8**11 - 1), "has 8,589,934,591 bytes by its header"),
        (lambda info: setattr(info, "size", 0), "has 0 bytes by its header"),
        (lambda info: setattr(info, "mtime", 1), "the header of"),
        (lambda info: setattr(info, "uname", "root"), "the header of"),
    ],
)
def test_members_of_another_size_or_origin(copy, change, message):
    put_header(copy, change)
    (finding,) = found(copy)
    assert message in finding


def test_a_damaged_header(copy):
    content, place = tar_of(copy), header_place(copy)
    content[place : place + 512] = b"\xff" * 512
    seal_shard(copy, bytes(content))
    (finding,) = found(copy)
    assert f"sample {KEY}: not a tar member {KEY}." in finding


def test_members_that_are_not_in_the_index(copy):
    content = tar_of(copy)
    index = ShardIndex.load(copy)
    end = int(index.offset[-1] + index.nbytes[-1])
    end += -end % 512 + 1024
    extra = tar_header("evil.sh", 3) + b"#!x" + bytes(509)
    seal_shard(copy, bytes(content[:end]) + extra + bytes(content[end:]))
    (finding,) = found(copy)
    assert finding.endswith("data not in the index follows the last sample: member 'evil.sh'")


def test_a_label_in_the_tar(copy):
    content, index = tar_of(copy), ShardIndex.load(copy)
    place = int(index.offset[ROW] + index.nbytes[ROW])
    place += -place % 512 + 512
    assert content[place : place + 1] == b"0"
    content[place] = ord("1")
    seal_shard(copy, bytes(content))
    (finding,) = found(copy)
    assert finding.startswith(f"train-000000.tar: sample {KEY}: {KEY}.cls does not contain 0")


def test_a_disk_that_fails_is_a_finding(copy, monkeypatch):
    index, pread = ShardIndex.load(copy), os.pread
    bad = int(index.offset[ROW])

    def fail(descriptor, length, offset):
        if offset <= bad < offset + length:
            raise OSError(5, "Input/output error")
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", fail)
    assert found(copy) == [f"train-000000.tar: sample {KEY}: its bytes cannot be read (Input/output error)"]


@pytest.mark.parametrize("place", [2, 8, 40, -2])
def test_a_byte_of_the_idx(copy, place):
    content = bytearray((copy / "train-000000.idx").read_bytes())
    content[place] ^= 1
    (copy / "train-000000.idx").write_bytes(content)
    (finding,) = found(copy)
    assert "idx" in finding


def test_an_idx_that_is_missing_or_never_ends(copy):
    (copy / "train-000000.idx").unlink()
    assert found(copy) == ["train-000000.idx: No such file or directory"]
    (copy / "train-000000.idx").symlink_to("/dev/zero")
    assert found(copy) == ["train-000000.idx: train-000000.idx is not a regular file"]


def samples_of(findings):
    return [finding for finding in findings if KEY in finding]


def test_content_that_is_not_an_image(copy):
    seal_image(copy, ROW, b"plain text", 40, 40)
    assert any("it is not a JPEG, PNG or WebP image" in finding for finding in found(copy))


def test_a_bomb_is_found_by_its_header(copy):
    seal_image(copy, ROW, hollow_png(50_000, 50_000), 40, 40)
    (finding,) = samples_of(found(copy, decode=True))
    assert "more than 178,000,000 pixels" in finding


def test_only_decoding_finds_missing_pixels(copy):
    seal_image(copy, ROW, hollow_png(40, 40), 40, 40)
    assert samples_of([line for line in found(copy) if ".idx" not in line]) == []
    (finding,) = samples_of([line for line in found(copy, decode=True) if ".idx" not in line])
    assert "does not decode" in finding


def test_an_image_cut_short(copy):
    seal_image(copy, ROW, encoded("baseline")[:300], 64, 48)
    assert any("truncated" in finding for finding in found(copy))


@pytest.fixture
def with_json(tmp_path):
    """Ten images, all but one with a JSON of different length, and gaps in the keys."""
    write_train_val(tmp_path / "src", {"ant": 6, "bee": 6}, {"bee": 2})
    (tmp_path / "src" / "train" / "ant" / "00002.jpg").write_bytes(b"no image")
    source = image_folder(tmp_path / "src")
    source.splits["train"] = [
        replace(item, json=b"" if row == 4 else json.dumps({"label": item.label, "x": "y" * 97 * row}).encode())
        for row, item in enumerate(source.splits["train"])
    ]
    pack(source, tmp_path / "out", PackConfig(workers=1), on_progress=lambda count: None)
    return tmp_path / "out"


def test_samples_with_json(with_json):
    assert ShardIndex.load(with_json).key(2) == "000000003"
    assert found(with_json) == []
    assert found(with_json, decode=True, workers=1) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b'{"label": 1', b'{"label": 0', "000000006.json has label 0, the index has 1"),
        (b'{"label": 1', b'["label": 1', "000000006.json is not JSON"),
        (b"000000006.json", b"000000007.json", "data not in the index precedes it: not a tar member"),
    ],
)
def test_a_json_that_was_changed_after_packing(with_json, old, new, message):
    content = (with_json / "train-000000.tar").read_bytes()
    place = content.index(old, content.index(b"000000006.json"))
    content = content[:place] + new + content[place + len(old) :]
    seal_shard(with_json, content)
    findings = found(with_json)
    assert any(finding.endswith(message) for finding in findings), findings
