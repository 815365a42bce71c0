"""Packing: other readers read the shards, the bytes are always the same, failures leave nothing behind."""

import io
import json
import os
import tarfile
import warnings

import numpy as np
import pytest
import webdataset
import xxhash
from helpers.images import FORMATS, encoded, picture, write_classes, write_flat, write_train_val
from PIL import Image
from wds2idx import IndexCreator

from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder
from mimcl.pipeline.sources.item import FileItem, Source

SMALL = PackConfig(workers=2)
LARGE = (400, 300)  # noise: about 300 KB as PNG, so that a few fill a shard of 1 MB


def nothing(_count):
    pass


def packed(source, out, config=SMALL, **options):
    source = source if isinstance(source, Source) else image_folder(source)
    return pack(source, out, config, on_progress=nothing, **options)


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rejections(out) -> list[dict]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]


def write_noise(folder, count, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (*LARGE[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png", compress_level=0)


def dali_samples(tars, extensions) -> list[tuple[bytes, ...]]:
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def read():
        outputs = fn.readers.webdataset(
            paths=[str(tar) for tar in tars],
            index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
            ext=extensions,
            missing_component_behavior="error",
            name="reader",
        )
        return tuple(outputs) if len(extensions) > 1 else outputs  # DALI returns a list only for several outputs

    pipeline = read()
    pipeline.build()
    return [
        tuple(np.asarray(output.at(0)).tobytes() for output in pipeline.run())
        for _ in range(pipeline.epoch_size("reader"))
    ]


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A packed data set with three classes, two splits and several shards in train."""
    root = tmp_path_factory.mktemp("classes")
    write_train_val(root / "src", {"ant": 13, "bee": 0, "cat": 12}, {"cat": 3, "ant": 2})
    write_noise(root / "src" / "train" / "bee", 7)
    description = packed(root / "src", root / "out", PackConfig(shard_mb=1, workers=2))
    return root / "src", root / "out", description


# Other readers


def test_webdataset_reads_every_sample(classes):
    src, out, description = classes
    assert len(description["splits"]["train"]["shards"]) > 2
    for split, items in image_folder(src).splits.items():
        tars = [str(out / shard["name"]) for shard in description["splits"][split]["shards"]]
        read = list(webdataset.WebDataset(tars, shardshuffle=False))
        assert [sample["__key__"] for sample in read] == [f"{number:09d}" for number in range(len(items))]
        for sample, item in zip(read, items, strict=True):
            (extension,) = {"jpg", "png", "webp"} & set(sample)
            assert sample[extension] == item.read()
            assert int(sample["cls"]) == item.label


def test_dali_reads_every_sample(classes):
    src, out, description = classes
    items = image_folder(src).splits["train"]
    tars = [out / shard["name"] for shard in description["splits"]["train"]["shards"]]
    read = dali_samples(tars, ["jpg;png;webp", "cls"])
    assert read == [(item.read(), str(item.label).encode()) for item in items]


def test_dali_reads_a_flat_folder(tmp_path):
    paths = write_flat(tmp_path / "src", 22)
    packed(tmp_path / "src", tmp_path / "out")
    read = dali_samples([tmp_path / "out" / "train-000000.tar"], ["jpg;png;webp"])
    assert read == [(path.read_bytes(),) for path in paths]
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        names = tar.getnames()
    assert names == [f"{number:09d}{path.suffix}" for number, path in enumerate(paths)]


def test_idx_is_what_wds2idx_writes(classes, tmp_path):
    _, out, _ = classes
    tars = sorted(out.glob("*.tar"))
    assert len(tars) > 3
    for tar in tars:
        with IndexCreator(str(tar), str(tmp_path / "theirs.idx"), verbose=False) as creator:
            creator.create_index()
        assert tar.with_suffix(".idx").read_bytes() == (tmp_path / "theirs.idx").read_bytes()


def test_members_are_plain_ustar(classes):
    src, out, description = classes
    items = image_folder(src).splits["train"]
    members = []
    for shard in description["splits"]["train"]["shards"]:
        raw = (out / shard["name"]).read_bytes()
        assert len(raw) % tarfile.RECORDSIZE == 0
        assert raw.endswith(bytes(1024))
        assert (shard["bytes"], shard["xxh128"]) == (len(raw), xxhash.xxh128_hexdigest(raw))
        with tarfile.open(out / shard["name"]) as tar:
            inside = tar.getmembers()
            assert len(inside) == 2 * shard["samples"]
            for member in inside:
                assert raw[member.offset + 257 : member.offset + 265] == b"ustar\00000"
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                assert (member.mode, member.type) == (0o644, tarfile.REGTYPE)
                members.append((member.name, tar.extractfile(member).read()))
    assert [data for _, data in members[::2]] == [item.read() for item in items]
    assert [name for name, _ in members[1::2]] == [f"{number:09d}.cls" for number in range(len(items))]


def test_shards_have_the_requested_size(classes):
    _, _, description = classes
    sizes = [shard["bytes"] for shard in description["splits"]["train"]["shards"]]
    assert all(size <= 1_000_000 + tarfile.RECORDSIZE for size in sizes)
    assert all(a + 420_000 > 1_000_000 for a in sizes[1:-1])


def test_an_image_larger_than_a_shard_gets_its_own(tmp_path):
    (tmp_path / "src").mkdir()
    for name in "abc":
        (tmp_path / "src" / f"{name}.jpg").write_bytes(encoded("baseline") + bytes(1_200_000 * (name == "b")))
    shards = packed(tmp_path / "src", tmp_path / "out", PackConfig(shard_mb=1))["splits"]["train"]["shards"]
    assert [shard["samples"] for shard in shards] == [1, 1, 1]


def test_dataset_json(classes):
    src, out, description = classes
    assert json.loads((out / "dataset.json").read_text(encoding="utf-8")) == description
    assert description["format"] == "mimcl-shards/1"
    assert [part["samples"] for part in description["splits"].values()] == [32, 5]
    assert [part["classes"] for part in description["splits"].values()] == [["ant", "bee", "cat"]] * 2
    assert description["packed"] == {
        "source": image_folder(src).digest(),
        "shard_mb": 1,
        "short_side": 0,
        "bytes_changed": 0,
        "jpeg_quality": None,
        "every_image_decoded": False,
        "rejected": 0,
        "dedup": False,
        "json": False,
    }
    for part in description["splits"].values():
        assert sum(shard["samples"] for shard in part["shards"]) == part["samples"]
    expected = {"dataset.json", "rejected.jsonl", "train.arrow", "val.arrow"}
    for part in description["splits"].values():
        expected |= {shard["name"].replace(".tar", end) for shard in part["shards"] for end in (".tar", ".idx")}
    assert set(contents(out)) == expected


# The same bytes


def test_bytes_do_not_depend_on_workers_or_file_metadata(classes, tmp_path):
    src, out, _ = classes
    (src / "train" / "ant" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    try:
        runs = []
        for run, workers in enumerate((1, 2, 7, 2)):
            if run == 3:
                for number, item in enumerate(image_folder(src).splits["train"]):
                    os.utime(item.file, (number, 10**9 + number))
                    item.file.chmod(0o600)
                    if os.geteuid() == 0:
                        os.chown(item.file, 1234, 1234)
            packed(src, tmp_path / str(run), PackConfig(shard_mb=1, workers=workers))
            runs.append(contents(tmp_path / str(run)))
        assert all(run == runs[0] for run in runs[1:])
        assert b"broken" in runs[0]["rejected.jsonl"]
    finally:
        (src / "train" / "ant" / "broken.jpg").unlink()
    assert runs[0]["val-000000.tar"] == contents(out)["val-000000.tar"]


def test_overwriting_gives_the_same_bytes(classes, tmp_path):
    src, out, _ = classes
    config = PackConfig(shard_mb=1)
    write_flat(tmp_path / "other", 5)
    packed(tmp_path / "other", tmp_path / "out", config)
    packed(src, tmp_path / "out", config, overwrite=True)
    assert contents(tmp_path / "out") == contents(out)


def test_progress_counts_every_file(tmp_path):
    write_flat(tmp_path / "src", 70)
    counts = []
    pack(image_folder(tmp_path / "src"), tmp_path / "out", SMALL, on_progress=counts.append)
    assert sum(counts) == 70
    assert len(counts) > 1


# Content


def test_content_determines_the_extension(tmp_path):
    (tmp_path / "src").mkdir()
    wrong = {"baseline": "a.png", "png": "b.webp", "webp": "c.jpeg", "progressive": "d", "grey": "e.tar.gz.JPG"}
    for kind, name in wrong.items():
        (tmp_path / "src" / name).write_bytes(encoded(kind))
    packed(tmp_path / "src", tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        assert [name.split(".", 1)[1] for name in tar.getnames()] == ["jpg", "png", "webp", "jpg", "jpg"]
    index = ShardIndex.load(tmp_path / "out")
    assert [index.path(number) for number in range(5)] == list(wrong.values())


def test_names_are_never_paths(tmp_path):
    (tmp_path / "src").mkdir()
    names = ["a\\..\\up.jpg", "-rf.jpg", "C:\\x.jpg", "~root.jpg", "a\nb.jpg", "%2e%2e%2f.jpg", "a..jpg", "x.cls"]
    for name in names:
        (tmp_path / "src" / name).write_bytes(encoded("baseline"))
    # A source may use any names for its items; they are only written to the index.
    items = image_folder(tmp_path / "src").splits["train"]
    hostile = ["../../../escaped.jpg", "/absolute.jpg"]
    file = tmp_path / "src" / "-rf.jpg"
    items += [FileItem(name, -1, file.stat().st_size, file) for name in hostile]
    packed(Source({"train": items}), tmp_path / "out")
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        assert tar.getnames() == [f"{number:09d}.jpg" for number in range(10)]
    index = ShardIndex.load(tmp_path / "out")
    assert sorted(index.path(number) for number in range(8)) == sorted(names)
    assert [index.path(number) for number in (8, 9)] == hostile
    assert {path.name for path in tmp_path.iterdir()} == {"src", "out"}


def test_class_names_that_are_not_utf8(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"src", b"caf\xe9")
    os.makedirs(folder)
    with open(os.path.join(folder, b"\xff.jpg"), "wb") as file:
        file.write(encoded("baseline"))
    packed(tmp_path / "src", tmp_path / "out")
    index = ShardIndex.load(tmp_path / "out")
    assert (index.classes, index.path(0)) == (["caf\\xe9"], "caf\\xe9/\\xff.jpg")


@pytest.mark.parametrize("kind", list(FORMATS))
def test_short_side(tmp_path, kind):
    (tmp_path / "src").mkdir()
    sizes = [(90, 60), (60, 91), (40, 40), (300, 40), (41, 200)]
    for number, size in enumerate(sizes):
        (tmp_path / "src" / str(number)).write_bytes(encoded(kind, number, *size))
    description = packed(tmp_path / "src", tmp_path / "out", PackConfig(short_side=40))
    assert description["packed"]["short_side"] == 40
    assert description["packed"]["bytes_changed"] == 3
    assert description["packed"]["jpeg_quality"] == 95
    assert description["packed"]["every_image_decoded"] is False  # small images were not decoded
    index = ShardIndex.load(tmp_path / "out")
    sizes = list(zip(index.width.tolist(), index.height.tolist(), strict=True))
    assert sizes == [(60, 40), (40, 61), (40, 40), (300, 40), (40, 195)]
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        for number, member in enumerate(tar.getmembers()):
            data = tar.extractfile(member).read()
            original = (tmp_path / "src" / str(number)).read_bytes()
            assert member.name.endswith(FORMATS[kind][0])
            if number in (2, 3):
                assert data == original
                continue
            image = Image.open(io.BytesIO(data))
            assert (image.size, image.mode) == (sizes[number], "RGB")
            whole = Image.open(io.BytesIO(original))
            if kind == "grey16":
                whole = Image.fromarray((np.asarray(whole) // 257).astype(np.uint8))
            with warnings.catch_warnings(action="ignore"):
                expected = whole.convert("RGB").resize(sizes[number], Image.Resampling.BOX)
            difference = np.asarray(image, np.int16) - np.asarray(expected, np.int16)
            assert np.abs(difference).mean() < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_short_side_drops_metadata(tmp_path, kind):
    from PIL import ImageCms
    from PIL.PngImagePlugin import PngInfo

    (tmp_path / "src").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngInfo()
    text.add_text("note", "private")
    options = {"exif": exif, "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
    options |= {"JPEG": {"comment": b"private"}, "PNG": {"pnginfo": text}, "WEBP": {"xmp": b"private"}}[kind]
    picture(0, 90, 60).save(tmp_path / "src" / "a", kind, **options)
    packed(tmp_path / "src", tmp_path / "out", PackConfig(short_side=40))
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        image = Image.open(tar.extractfile(tar.getmembers()[0]))
        image.load()
    assert image.size == (60, 40)
    assert not {"exif", "icc_profile", "comment", "xmp", "note"} & set(image.info)


def test_unchanged_images_are_recorded_as_such(tmp_path):
    write_flat(tmp_path / "src", 3)
    description = packed(tmp_path / "src", tmp_path / "out", PackConfig(short_side=200))
    assert (description["packed"]["bytes_changed"], description["packed"]["jpeg_quality"]) == (0, None)


# Rejected files


def test_rejected_files_are_listed_and_the_others_packed(tmp_path):
    src = tmp_path / "src"
    write_classes(src, {"a": 3, "b": 2})
    whole = encoded("baseline", 5)
    damaged = bytearray(encoded("png"))
    place = damaged.index(b"IDAT") + 40
    damaged[place : place + 200] = bytes(200)
    (src / "a" / "00000a.jpg").write_bytes(whole[:-2])
    (src / "a" / "empty.jpg").write_bytes(b"")
    (src / "b" / "damaged.png").write_bytes(damaged)
    (src / "b" / "gone.jpg").symlink_to("nowhere")
    (src / "b" / "text.jpg").write_text("no image")
    (src / "b" / "header.jpg").write_bytes(b"\xff\xd8\xff garbage")
    source = image_folder(src)
    (src / "b" / "00001.jpg").unlink()  # after it was listed
    description = packed(source, tmp_path / "out", PackConfig(decode=True))
    assert [(row["split"], row["path"], row["reason"].split(":")[0]) for row in rejections(tmp_path / "out")] == [
        ("train", "a/00000a.jpg", "truncated"),
        ("train", "a/empty.jpg", "empty file"),
        ("train", "b/00001.jpg", "unreadable"),
        ("train", "b/damaged.png", "does not decode"),
        ("train", "b/gone.jpg", "unreadable"),
        ("train", "b/header.jpg", "unreadable jpg header"),
        ("train", "b/text.jpg", "not a JPEG, PNG or WebP image"),
    ]
    assert description["packed"]["rejected"] == 7
    assert description["packed"]["every_image_decoded"] is True
    index = ShardIndex.load(tmp_path / "out")
    paths = ["a/00000.jpg", "a/00001.jpg", "a/00002.jpg", "b/00000.jpg"]
    assert [index.path(number) for number in range(index.samples)] == paths
    assert index.label.tolist() == [0, 0, 0, 1]
    assert packed(src, tmp_path / "quick")["packed"]["rejected"] == 5  # without decoding; one is not listed now


def test_unreadable_file_is_rejected(tmp_path):
    write_flat(tmp_path / "src", 2)
    os.mkfifo(tmp_path / "src" / "pipe.jpg")
    (tmp_path / "src" / "00001.jpg").chmod(0)
    packed(tmp_path / "src", tmp_path / "out")
    expected = ["pipe.jpg"] if os.geteuid() == 0 else ["00001.jpg", "pipe.jpg"]
    assert [row["path"] for row in rejections(tmp_path / "out")] == expected


def test_a_source_without_images_is_refused(tmp_path):
    (tmp_path / "src").mkdir()
    for number in range(3):
        (tmp_path / "src" / f"{number}.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"none of the 3 files of train.*0\.jpg: not a JPEG") as error:
        packed(tmp_path / "src", tmp_path / "out")
    assert "\n" not in str(error.value)
    assert contents(tmp_path / "out") == {}


# The output folder


def test_a_folder_in_use_is_refused(tmp_path):
    write_flat(tmp_path / "src", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"not empty.*--overwrite"):
        packed(tmp_path / "src", tmp_path / "out")
    assert contents(tmp_path / "out") == {"notes.txt": b"mine"}
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        packed(tmp_path / "src", tmp_path / "file")


def test_overwrite_replaces_files_of_a_packing_and_keeps_others(tmp_path):
    out = tmp_path / "out"
    write_noise(tmp_path / "many" / "train", 9)
    write_flat(tmp_path / "many" / "val", 2)
    write_flat(tmp_path / "few", 3)
    packed(tmp_path / "many", out, PackConfig(shard_mb=1))
    assert (out / "train-000003.tar").exists()
    (out / "prototypes" / "default").mkdir(parents=True)
    (out / "prototypes" / "default" / "prototypes.json").write_text("{}")
    (out / ".packing").mkdir()
    (out / ".packing" / "train-000009.tar").write_bytes(b"of a packing that was killed")
    foreign = {"notes.txt", "train.csv", "draft.tmp", "my-000000.tar", "train-1.tar", "sub/train-000001.tar"}
    (out / "sub").mkdir()
    for name in foreign:
        (out / name).write_text("mine")
    packed(tmp_path / "few", out, overwrite=True)
    ours = {"dataset.json", "rejected.jsonl", "train.arrow", "train-000000.tar", "train-000000.idx"}
    kept = {"prototypes/default/prototypes.json"}  # may have taken days; it records its index
    assert set(contents(out)) == ours | foreign | kept
    assert ShardIndex.load(out).samples == 3


def test_overwrite_does_not_follow_links(tmp_path):
    write_flat(tmp_path / "src", 2)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prototypes").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    packed(tmp_path / "src", tmp_path / "out", overwrite=True)
    assert (tmp_path / "elsewhere" / "kept").read_text() == "mine"


def test_a_failure_before_the_first_shard_leaves_nothing(tmp_path):
    write_flat(tmp_path / "src", 40)

    def fail(count):
        if count:
            assert list((tmp_path / "out" / ".packing").glob(".*.tmp"))  # a shard is being written
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(image_folder(tmp_path / "src"), tmp_path / "out", PackConfig(), on_progress=fail)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_while_overwriting_keeps_the_old_data_set(tmp_path, workers):
    write_noise(tmp_path / "other", 12)
    write_noise(tmp_path / "src", 20, seed=1)
    out, config = tmp_path / "out", PackConfig(shard_mb=1, workers=workers)
    packed(tmp_path / "other", out, config)
    (out / "notes.txt").write_text("mine")
    before, messages = contents(out), []

    def fail(_count):
        if len(list(out.glob(".packing/*.rows"))) > 2:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        pack(image_folder(tmp_path / "src"), out, config, overwrite=True, on_progress=fail)
    assert {name: data for name, data in contents(out).items() if not name.startswith(".packing/")} == before
    assert not list(out.glob(".packing/.*"))  # nothing half-written
    packed(tmp_path / "src", out, config, overwrite=True, on_message=messages.append)
    assert messages[0].startswith("resuming: ")
    packed(tmp_path / "src", tmp_path / "unbroken", config)
    assert contents(out) == contents(tmp_path / "unbroken") | {"notes.txt": b"mine"}


@pytest.mark.parametrize("option", [{"shard_mb": 0}, {"short_side": -1}, {"workers": 0}])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} is .*must be at least"):
        PackConfig(**option)
