"""`mimcl shard` on every kind of source; bad input is reported in one line and writes nothing."""

import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.archives import pictures, tar_bytes, tar_of, write_parquet, write_shards, zip_of
from helpers.images import write_classes, write_flat, write_train_val
from helpers.typed import error_line, mimcl

from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.sources.kinds import file_kind


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Small sources of all kinds."""
    home = tmp_path_factory.mktemp("home")
    write_train_val(home / "folder", {"n02": 2, "n01": 3}, {"n01": 2})
    tar_of(home / "folder", home / "x.tar")
    zip_of(home / "folder", home / "x.zip")
    paths = write_classes(home / "classes", {"n02": 2, "n01": 3})
    inner = {f"{name}.tar": tar_bytes({path.name: path.read_bytes() for path in paths[name]}) for name in paths}
    (home / "train.tar").write_bytes(tar_bytes(inner))
    val = write_flat(home / "flat", 3, seed=77)
    tar_of(home / "flat", home / "val.tar")
    (home / "around.tar").write_bytes(tar_bytes({f"val/{path.name}": path.read_bytes() for path in val}))
    (home / "classes.txt").write_text("n02 goldfish, Carassius\nn01 tench, Tinca tinca\n")
    (home / "val.txt").write_text("2\n1\n2\n")
    (home / "solution.csv").write_text(
        "ImageId,PredictionString\n" + "".join(f"{path.stem},n01 1 2 3 4 \n" for path in reversed(val))
    )
    write_parquet(home / "hub" / "data" / "train-00000-of-00001.parquet", pictures(4), [0, 1, 1, 0], names=["a", "b"])
    write_parquet(home / "hub" / "data" / "validation-00000-of-00001.parquet", pictures(2), [1, 1], names=["a", "b"])
    (home / "hub" / "README.md").write_text("words")
    pq.write_table(pa.table({"text": ["a"], "label": [1]}), home / "text.parquet")
    write_shards(home / "wds", {"set-train-0.tar": 4, "set-val-0.tar": 2}, classes=2)
    (home / "shards.txt").write_text("set-train-0.tar\nset-train-1.tar\n")
    (home / "mixed.txt").write_text("set-train-0.tar\n1.jpg\n")
    (home / "images.txt").write_text("train/n01/00000.jpg\nval/n01/00001.jpg\n")
    return home


def tops(home, name) -> dict[str, tuple[int, list[str], list[int]]]:
    description = json.loads((home / name / "dataset.json").read_text())
    return {
        split: (index.samples, index.classes, index.label.tolist())
        for split in description["splits"]
        for index in [ShardIndex.load(home / name, split)]
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["x.tar"], {"train": (5, ["n01", "n02"], [0, 0, 0, 1, 1]), "val": (2, ["n01", "n02"], [0, 0])}),
        (
            ["x.zip", "--classes", "classes.txt"],
            {"train": (5, ["n02", "n01"], [1, 1, 1, 0, 0]), "val": (2, ["n02", "n01"], [1, 1])},
        ),
        (
            ["train.tar", "--classes", "classes.txt", "--val", "val.tar", "--val-labels", "val.txt"],
            {"train": (5, ["n02", "n01"], [1, 1, 1, 0, 0]), "val": (3, ["n02", "n01"], [1, 0, 1])},
        ),
        (
            ["train.tar", "--val", "flat", "--val-labels", "solution.csv"],
            {"train": (5, ["n01", "n02"], [0, 0, 0, 1, 1]), "val": (3, ["n01", "n02"], [0, 0, 0])},
        ),
        (
            ["train.tar", "--val", "around.tar", "--val-labels", "solution.csv"],
            {"train": (5, ["n01", "n02"], [0, 0, 0, 1, 1]), "val": (3, ["n01", "n02"], [0, 0, 0])},
        ),
        (["hub"], {"train": (4, ["a", "b"], [0, 1, 1, 0]), "val": (2, ["a", "b"], [1, 1])}),
        (["wds"], {"train": (4, ["0", "1"], [0, 1, 0, 1]), "val": (2, ["0", "1"], [1, 0])}),
        (
            ["wds", "--classes", "classes.txt"],
            {"train": (4, ["n02", "n01"], [0, 1, 0, 1]), "val": (2, ["n02", "n01"], [1, 0])},
        ),
        (["folder", "--list", "images.txt"], {"train": (1, ["n01"], [0]), "val": (1, ["n01"], [0])}),
    ],
    ids=["tar", "zip", "imagenet", "kaggle", "folder-around-val", "hub", "webdataset", "webdataset-named", "list"],
)  # fmt: skip
def test_sources(home, tmp_path, monkeypatch, arguments, expected):
    assert mimcl(monkeypatch, home, "shard", *arguments, "--out", str(tmp_path / "out"), "--workers", "1") == 0
    assert tops(tmp_path, "out") == expected
    assert mimcl(monkeypatch, tmp_path, "verify", "out") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.tar", "--classes", "none.txt"], "none.txt cannot be read: No such file"),
        (["train.tar", "--classes", "images.txt"], "'n01' is not in the class list images.txt"),
        (["train.tar", "--val", "val.tar", "--val-labels", "none.txt"], "none.txt cannot be read"),
        (["train.tar", "--val", "val.tar", "--val-labels", "val.txt"], "--classes"),
        (["train.tar", "--val-labels", "val.txt"], "the label file val.txt needs a val split"),
        (["train.tar", "--val", "none.tar"], "none.tar not found"),
        (["x.tar", "--val", "val.tar"], "--val val.tar"),
        (["x.tar", "--val", "val.tar", "--holdout", "0.5"], "--val and --holdout"),
        (["x.tar", "--holdout", "0.5"], "x.tar already has val/"),
        (["text.parquet"], "its columns are text (string), label (int64)"),
        (["hub", "--image-column", "picture"], "has no column 'picture' (--image-column)"),
        (["x.zip", "--label-column", "label"], "--label-column are for parquet, but x.zip is a zip"),
        (["hub", "--label-key", "label"], "--label-key is for webdataset, but hub is parquet"),
        (["wds", "--list", "shards.txt"], "wds/set-train-1.tar not found"),
        (["wds", "--list", "none.txt"], "none.txt cannot be read"),
        (["x.tar", "--list", "images.txt"], "x.tar is not a folder"),
        (["images.txt"], "--list images.txt"),
        (["none"], "none not found"),
        (["s3://bucket/images"], "s3:/bucket/images is not local"),
        (["wds", "--adopt", "--list", "shards.txt"], "set-train-1.tar not found"),
        (["wds", "--adopt", "--list", "images.txt"], "images.txt lists files that are not shards"),
        (["wds", "--adopt", "--short-side", "64"], "--short-side"),
        (["wds", "--adopt", "--holdout", "0.5"], "--holdout"),
        (["folder", "--adopt"], "folder has no shards (.tar)"),
        (["x.tar", "--adopt"], "x.tar is not a folder"),
        (["folder", "--source-kind", "zip"], "folder is a folder; --source-kind zip is for a file"),
        (["x.tar", "--source-kind", "folder"], "x.tar is a file; --source-kind folder is for a folder"),
        (["x.tar", "--source-kind", "zip"], "x.tar is not a readable zip"),
        (["folder", "--source-kind", "webdataset"], "folder has no shards"),
        (["folder", "--source-kind", "parquet"], "folder has no .parquet files"),
        (["folder", "--source-kind", "tarball"], "'tarball'"),
        (["folder", "--source-kind", "folder", "--list", "images.txt"], "--list and --source-kind"),
        (["wds", "--adopt", "--source-kind", "folder"], "--source-kind"),
        (["wds", "--list", "mixed.txt"], "mixed.txt lists shards and other files"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(home, monkeypatch, capfd, arguments, message):
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    more = [] if "--adopt" in arguments else ["--out", "new"]
    assert mimcl(monkeypatch, home, "shard", *arguments, *more) in (1, 2)
    line = error_line(capfd.readouterr().err)
    assert line.startswith("mimcl: ")
    assert message in line
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before


def test_an_empty_file_is_not_read_as_a_list(tmp_path):
    (tmp_path / "x.tar").touch()
    with pytest.raises(DataError, match=r"x.tar is empty"):
        file_kind(tmp_path / "x.tar")


def test_an_output_folder_inside_the_val_source_is_refused(home, monkeypatch, capfd):
    assert mimcl(monkeypatch, home, "shard", "train.tar", "--val", "folder", "--out", "folder/shards") == 1
    assert "folder/shards is inside folder" in capfd.readouterr().err
    assert not (home / "folder" / "shards").exists()


def test_shards_packed_here_keep_the_names_of_their_classes(home, tmp_path, monkeypatch):
    """Names come from dataset.json; if the folder has got shards with other classes since, numbers stay numbers."""
    assert mimcl(monkeypatch, home, "shard", "folder", "--out", str(tmp_path / "first"), "--workers", "1") == 0
    assert mimcl(monkeypatch, tmp_path, "shard", "first", "--out", "again", "--workers", "1") == 0
    assert tops(tmp_path, "again") == tops(tmp_path, "first")
    assert tops(tmp_path, "again")["train"][1] == ["n01", "n02"]
    write_shards(tmp_path / "first", {"train-7.tar": 3}, classes=3)
    assert mimcl(monkeypatch, tmp_path, "shard", "first", "--out", "more", "--workers", "1") == 0
    assert tops(tmp_path, "more")["train"][1] == ["0", "1", "2"]


def test_val_images_without_labels_are_noted(home, tmp_path, monkeypatch, capfd):
    arguments = ["train.tar", "--val", "val.tar", "--out", str(tmp_path / "out"), "--workers", "1"]
    assert mimcl(monkeypatch, home, "shard", *arguments) == 0
    assert "val.tar has no classes" in capfd.readouterr().out
    assert tops(tmp_path, "out")["val"][2] == [-1, -1, -1]


def test_a_folder_of_one_tar_per_class_is_noted(home, tmp_path, monkeypatch, capfd):
    (tmp_path / "train").mkdir()
    with tarfile.open(home / "train.tar") as tar:
        tar.extractall(tmp_path / "train", filter="data")
    assert mimcl(monkeypatch, tmp_path, "shard", ".", "--out", str(tmp_path.with_suffix(".out"))) == 0
    assert "no shard has labels" in capfd.readouterr().out


def test_no_progress_bar_if_everything_is_packed(home, tmp_path, monkeypatch, capfd):
    arguments = ["x.tar", "--out", str(tmp_path / "out"), "--workers", "1"]
    assert mimcl(monkeypatch, home, "shard", *arguments) == 0
    assert "packing " in capfd.readouterr().out
    assert mimcl(monkeypatch, home, "shard", *arguments) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("already packed into")
    assert not any("packing" in line or not line.strip() for line in lines)


def test_adopting_somewhere_else_is_refused(home, monkeypatch, capfd):
    assert mimcl(monkeypatch, home, "shard", "wds", "--adopt", "--out", "new") == 2
    assert "--adopt writes the index into wds" in capfd.readouterr().err


def test_the_kind_of_a_source_with_two_kinds_of_files_is_given(home, tmp_path, monkeypatch, capfd):
    """A backup among class folders must neither be packed instead of them nor along with them."""
    write_classes(tmp_path / "src", {"a": 3, "b": 2})
    write_shards(tmp_path / "src", {"backup.tar": 4})
    arguments = ["src", "--workers", "1", "--out"]
    assert mimcl(monkeypatch, tmp_path, "shard", *arguments, "none") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "images (a/00000.jpg) and shards (backup.tar)" in line
    assert not (tmp_path / "none").exists()
    assert mimcl(monkeypatch, tmp_path, "shard", *arguments, "one", "--source-kind", "folder") == 0
    assert "skipped beside the class folders of train: backup.tar" in capfd.readouterr().out
    assert tops(tmp_path, "one")["train"] == (5, ["a", "b"], [0, 0, 0, 1, 1])
    assert mimcl(monkeypatch, tmp_path, "shard", *arguments, "two", "--source-kind", "webdataset") == 0
    assert tops(tmp_path, "two")["train"][0] == 4


def test_tiny_imagenet_with_classes_and_val_labels(tmp_path, monkeypatch, capfd):
    for name in ("n02", "n01"):
        write_flat(tmp_path / "tiny" / "train" / name / "images", 2)
    val = write_flat(tmp_path / "tiny" / "val" / "images", 2)
    text = "".join(f"{path.name}\tn0{2 - row}\t0\t1\t2\t3\n" for row, path in enumerate(val))
    (tmp_path / "tiny" / "val" / "val_annotations.txt").write_text(text)
    (tmp_path / "wnids.txt").write_text("n02\nn01\n")
    more = ["--val-labels", "tiny/val/val_annotations.txt"]
    for number, options in enumerate(([], more, ["--classes", "wnids.txt"], [*more, "--classes", "wnids.txt"])):
        arguments = ["tiny", "--workers", "1", "--out", f"out{number}", *options]
        assert mimcl(monkeypatch, tmp_path, "shard", *arguments) == 0
        found = tops(tmp_path, f"out{number}")
        classes = ["n02", "n01"] if "--classes" in options else ["n01", "n02"]
        assert found["val"] == (2, classes, [classes.index("n02"), classes.index("n01")])
        assert found["train"][1] == classes
    capfd.readouterr()


def test_classes_of_val_beside_train_come_from_its_own_folder(home, tmp_path, monkeypatch):
    write_classes(tmp_path / "a" / "train", {"x": 1, "y": 1})
    write_classes(tmp_path / "b" / "test", {"y": 2})
    arguments = ["a", "--val", "b", "--workers", "1", "--out", "out"]
    assert mimcl(monkeypatch, tmp_path, "shard", *arguments) == 0
    assert tops(tmp_path, "out")["val"] == (2, ["x", "y"], [1, 1])
