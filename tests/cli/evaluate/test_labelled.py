"""Val images of classes that train does not have: every evaluation leaves them out, notes it, and counts them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.bad_samples import flip_byte
from helpers.images import write_classes, write_train_val
from helpers.typed import mimcl

from mimcl.cli.evaluate.eval_options import FeatureOptions
from mimcl.cli.evaluate.finetune import finetune
from mimcl.cli.evaluate.knn import knn
from mimcl.cli.evaluate.labelled import LabelledSplits, of_seen_classes
from mimcl.cli.report.read import read_run
from mimcl.model import mae
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

pytestmark = pytest.mark.slow  # trains

TRAIN, KNOWN, UNSEEN = {"ant": 9, "bee": 8, "cow": 7}, {"ant": 6, "bee": 5}, {"fox": 4, "gnu": 3}
SETTINGS = ("data.image_size=16", "data.batch_size=8", "model.decoder_depth=1", "report=false")
EVALUATIONS = {
    "knn": ["knn", "--k", "3"],
    "linear": ["linear", "--epochs", "20"],
    "few_shot": ["few-shot", "--shots", "2"],
    "linear mae": ["linear", "--recipe", "mae", "--epochs", "2"],
    "finetune": ["finetune", "--set", "epochs=2", "--set", "mixing_group=4"],
}
NOTE = "skipped: 7 of 18 val images, of classes without train images: fox, gnu"


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(mae.SIZES, "vit_tiny", (64, 2, 2))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The same train images with val images of known classes, of others too, and of others only; a run of two steps."""
    folder = tmp_path_factory.mktemp("home")
    write_train_val(folder / "src-known", TRAIN, KNOWN)
    write_train_val(folder / "src-more", TRAIN, KNOWN | UNSEEN)
    write_train_val(folder / "src-none", TRAIN, UNSEEN)
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mae.SIZES, "vit_tiny", (64, 2, 2))
        for name in ("known", "more", "none"):
            assert mimcl(patch, folder, "shard", f"src-{name}", "--out", name) == 0
        options = ["--data", "known", "--recipe", "cpu_small", "--epochs", "0.5", "--decoder", "reference"]
        assert mimcl(patch, folder, "train", *options, *settings, "--out", "run") == 0
    return folder


@pytest.fixture
def run(home, monkeypatch, tmp_path):
    """A copy of the run, which has no result of another test."""
    monkeypatch.chdir(home)
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


@pytest.mark.parametrize("name", EVALUATIONS)
def test_the_result_is_that_over_the_other_val_images(home, run, monkeypatch, capsys, name):
    lines = []
    for data in ("known", "more"):
        words = ["eval", *EVALUATIONS[name], str(run), "--data", data, "--decoder", "reference"]
        assert mimcl(monkeypatch, home, *words) == 0
        said = capsys.readouterr().out
        assert said.count(NOTE) == (data == "more")
        assert said.count("skipped: 7 val images of classes without train images") == (data == "more")
        lines.append(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]))
    known, more = lines
    assert more["values"] == known["values"]
    assert (known["settings"]["val"], more["settings"]["val"]) == (11, 11)
    assert more["settings"]["val_of_unseen_classes"] == 7
    assert "val_of_unseen_classes" not in known["settings"]
    keys = {evaluation.key for evaluation in read_run(run).evaluations}
    assert len(keys) == 2  # a report never averages them


@pytest.mark.parametrize("name", EVALUATIONS)
def test_without_any_other_val_image_it_is_refused(home, run, monkeypatch, capfd, name):
    assert mimcl(monkeypatch, home, "eval", *EVALUATIONS[name], str(run), "--data", "none") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "no val image of none has a class that train has (val: fox, gnu); pack" in line
    assert "--holdout" in line


def test_a_class_whose_train_images_are_all_bad_is_left_out_too(home, run, tmp_path):
    shards = Path(shutil.copytree(home / "more", tmp_path / "shards"))
    train = ShardIndex.load(shards)
    for sample_id in np.flatnonzero(train.label == train.classes.index("bee")).tolist():
        flip_byte(train, sample_id)
    found = knn(run, shards, 3, FeatureOptions(decoder="reference"))
    assert (found.train, found.val, found.unseen) == (9 + 7, 6, 7 + 5)


def test_a_result_in_which_they_counted_as_wrong_is_computed_again(home, run, monkeypatch):
    values = {"epochs": 1, "mixing_group": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelledSplits, "unseen", 0)
        finetune(run, "more", values, decoder="reference")
    finetune(run, "more", values, decoder="reference")
    assert len(list((run / "evaluation" / "finetune").iterdir())) == 2


def test_a_held_out_val_split_needs_no_note(home, tmp_path, monkeypatch, capsys):
    """Where every other class has one image, val has images of the remaining ones only."""
    write_classes(tmp_path / "src", {f"{n:03d}": 1 if n % 2 else 6 for n in range(20)})
    assert mimcl(monkeypatch, tmp_path, "shard", "src", "--holdout", "0.2", "--out", "data") == 0
    assert "classes of one image, which stays in train: 10 of 20" in capsys.readouterr().out
    splits = LabelledSplits.load(tmp_path / "data")
    assert (splits.counts, splits.classes, splits.unseen, splits.note) == ((56, 14), 20, 0, "")


def test_many_classes_are_named_in_part(tmp_path, monkeypatch):
    write_train_val(tmp_path / "src", {"a": 2, "b": 2}, {"a": 1} | {f"x{n}": 1 for n in range(9)})
    assert mimcl(monkeypatch, tmp_path, "shard", "src", "--out", "data") == 0
    note = LabelledSplits.load(tmp_path / "data").note
    assert note.endswith("of 10 val images, of classes without train images: x0, x1, x2, x3, x4, ... (9 classes)")


def test_labels_without_a_counterpart_become_none():
    labels = np.array([0, 3, -1, 2, 7], np.int32)
    found = of_seen_classes(labels, np.array([3, -1, 0, 5], np.int32))
    assert found.tolist() == [0, 3, -1, -1, -1]
    assert found.dtype == np.int32


def test_a_class_beside_unlabelled_train_images_is_no_class(tmp_path, monkeypatch):
    """Only the label counts: -1 in both splits is nothing in common."""
    write_train_val(tmp_path / "src", {"a": 2, "b": 2}, {"c": 2, "d": 1})
    assert mimcl(monkeypatch, tmp_path, "shard", "src", "--out", "data") == 0
    load = ShardIndex.load

    def partly(root: Path, split: str = "train") -> ShardIndex:
        index = load(root, split)
        object.__setattr__(index, "label", np.where(np.arange(index.samples) == 0, np.int32(-1), index.label))
        return index

    monkeypatch.setattr(ShardIndex, "load", partly)
    with pytest.raises(DataError, match=r"has a class that train has \(val: c, d\)"):
        LabelledSplits.load(tmp_path / "data")
