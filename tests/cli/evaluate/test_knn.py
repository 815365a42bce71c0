"""`mimcl eval knn` on a run trained by the real command, on packed images, and the error lines of `mimcl eval`."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.images import write_classes, write_flat, write_train_val
from helpers.typed import error_line, mimcl
from sklearn.neighbors import KNeighborsClassifier

from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.encoders.mae_features import MaeFeatures
from mimcl.cli.encoders.split_features import extract, open_decoder
from mimcl.cli.evaluate.eval_options import FeatureOptions
from mimcl.cli.evaluate.knn import knn
from mimcl.cli.evaluate.results import Result
from mimcl.model.mae import build
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

pytestmark = pytest.mark.slow  # trains

TRAIN, VAL = {"ant": 14, "bee": 14, "cow": 12}, {"ant": 6, "bee": 5, "cow": 5}
PLAIN = FeatureOptions(decoder="reference")
TINY = (
    "data.image_size=32",
    "data.batch_size=8",
    "data.micro_batch_size=8",
    "model.decoder_depth=1",
    "seed=5",
    "report=false",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with packed images, train and val, in shards/ and a run of three steps on them in run/."""
    folder = tmp_path_factory.mktemp("home")
    write_train_val(folder / "images", TRAIN, VAL)
    settings = [word for setting in TINY for word in ("--set", setting)]
    with pytest.MonkeyPatch.context() as patch:
        assert mimcl(patch, folder, "shard", "images") == 0
        options = ("--recipe", "cpu_small", "--epochs", "0.6", "--decoder", "reference", "--out", "run")
        assert mimcl(patch, folder, "train", *options, *settings) == 0
    return folder


def packed(monkeypatch, folder: Path, *options: str) -> Path:
    """Packs folder/images into folder/shards."""
    assert mimcl(monkeypatch, folder, "shard", "images", *options) == 0
    return folder / "shards"


def test_the_command_prints_nn_and_knn_of_the_trained_and_untrained_encoder(home, monkeypatch, capsys):
    assert mimcl(monkeypatch, home, "eval", "knn", "run", "--k", "5", "--decoder", "reference") == 0
    lines = capsys.readouterr().out.splitlines()
    found = knn(Path("run"), Path("shards"), 5, PLAIN)
    assert "decoder reference" in lines
    assert lines[-1] == "next: mimcl eval linear run"
    assert lines[-7] == "knn of run/checkpoints/00000003 (k 5, pool mean)"
    assert re.findall(r"\d+", lines[-6]) == ["40", "16", "3"]
    assert lines[-5].split() == ["trained", "untrained"]
    for line, name in zip(lines[-4:-2], ("nn", "knn"), strict=True):
        shares = found.trained[name], found.untrained[name]
        percent = [(100 * share, 100 * math.sqrt(share * (1 - share) / 16)) for share in shares]
        assert line.split() == [name, *(word for p, e in percent for word in (f"{p:.1f}", "±", f"{e:.1f}", "%"))]
    written = json.loads((home / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert written["evaluation"] == "knn"
    assert written["draw"] == 24
    assert written["settings"] == {"k": 20 // 4, "pool": "mean", "train": 40, "val": 16}
    assert written["values"] == found.trained | {f"untrained_{name}": v for name, v in found.untrained.items()}


def test_a_checkpoint_and_explicit_data_give_the_same_result_as_the_run(home, monkeypatch):
    monkeypatch.chdir(home)
    of_run = knn(Path("run"), options=PLAIN)
    assert of_run == knn(Path("run/checkpoints/00000003"), Path("shards"), options=PLAIN)
    assert (of_run.train, of_run.val, of_run.classes) == (40, 16, 3)
    assert list(of_run.trained) == list(of_run.untrained) == ["nn", "knn"]


def test_accuracies_are_those_of_scikit_learn_on_the_same_features(home, monkeypatch):
    monkeypatch.chdir(home)
    train, val = ShardIndex.load(Path("shards")), ShardIndex.load(Path("shards"), "val")
    decoder = open_decoder("reference", 32, train, val)
    loaded = Encoder.load(Path("run"))
    bare = MaeFeatures("", loaded.model(trained=False), loaded.precision)
    features = {}  # of both splits, by encoder
    for name, encoder in (("trained", MaeFeatures.load(Path("run"))), ("untrained", bare)):
        features[name] = [extract(index, encoder, decoder, index.split) for index in (train, val)]

    def shares(of: str, k: int) -> float:
        known, asked = features[of]
        weights = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
        return KNeighborsClassifier(k, metric="cosine", weights=weights).fit(known, train.label).score(asked, val.label)

    for k in (3, 20, 40):
        found = knn(Path("run"), k=k, options=PLAIN)
        assert found.trained == {"nn": shares("trained", 1), "knn": shares("trained", k)}
        assert found.untrained == {"nn": shares("untrained", 1), "knn": shares("untrained", k)}


def test_untrained_means_the_initial_weights_of_the_run(home):
    encoder = Encoder.load(home / "run")
    assert encoder.config.seed == 5
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8))

    def features(model):
        return MaeFeatures("", model.eval(), encoder.precision)(images)

    untrained = features(encoder.model(trained=False))
    np.testing.assert_array_equal(untrained, features(build(encoder.config.model, 32, seed=5)))
    assert not np.array_equal(untrained, features(build(encoder.config.model, 32, seed=0)))
    assert not np.array_equal(untrained, MaeFeatures.load(home / "run")(images))


def test_images_without_a_label_are_ignored(home, monkeypatch, tmp_path):
    write_train_val(tmp_path / "images", TRAIN, VAL)
    shards = packed(monkeypatch, tmp_path)
    monkeypatch.chdir(home)
    load = ShardIndex.load

    def without_some(root: Path, split: str = "train") -> ShardIndex:
        index = load(root, split)
        object.__setattr__(index, "label", np.where(np.arange(index.samples) % 4, index.label, -1).astype(np.int32))
        return index

    monkeypatch.setattr(ShardIndex, "load", without_some)
    found = knn(Path("run"), shards, options=PLAIN)
    assert (found.train, found.val) == (30, 12)


def test_without_a_val_split(home, monkeypatch, tmp_path, capfd):
    write_classes(tmp_path / "images", {"ant": 3, "bee": 3})
    shards = packed(monkeypatch, tmp_path)
    capfd.readouterr()
    assert mimcl(monkeypatch, home, "eval", "knn", "run", "--data", str(shards)) == 1
    complaint = error_line(capfd.readouterr().err)
    assert "has no val split" in complaint
    assert "mimcl shard SRC --holdout 0.1" in complaint


def test_without_labels(home, monkeypatch, tmp_path):
    write_flat(tmp_path / "images", 8)
    shards = packed(monkeypatch, tmp_path, "--holdout", "0.25")
    with pytest.raises(DataError, match="train images of .* no labels.*--holdout"):
        knn(home / "run", shards)


def test_with_labels_in_train_only(home, monkeypatch, tmp_path):
    write_classes(tmp_path / "images" / "train", {"ant": 3, "bee": 3})
    write_flat(tmp_path / "images" / "val", 4)
    shards = packed(monkeypatch, tmp_path)
    with pytest.raises(DataError, match="val images of .* no labels"):
        knn(home / "run", shards)


def test_with_one_class(home, monkeypatch, tmp_path):
    write_classes(tmp_path / "images", {"ant": 8})
    shards = packed(monkeypatch, tmp_path, "--holdout", "0.25")
    with pytest.raises(DataError, match="same class, ant.*--holdout"):
        knn(home / "run", shards)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["eval", "knn", "nowhere"], 1, "nowhere"),
        (["eval", "knn", "run", "--data", "images"], 1, "not a packed data set"),
        (["eval", "knn", "run", "--k", "0"], 2, "--k"),
        (["eval", "knn", "run", "--k", "41"], 1, "--k 41 is more than the 40"),
        (["eval", "knn", "run", "--pool", "max"], 2, "'max' is not one of 'mean', 'cls'"),
        (
            ["eval", "few-shot", "run", "--shots", "15"],
            1,
            "--shots 15 is more than the 14",
        ),
        (["eval", "linear", "run", "--recipe", "slow"], 2, "'slow' is not one of 'fast', 'mae'"),
        (["eval", "linear", "run", "--recipe", "mae", "--pool", "cls"], 2, "--recipe fast"),
        (["eval", "linear", "run", "--epochs", "0"], 2, "--epochs is 0"),
        (["eval", "linear", "nowhere"], 1, "nowhere"),
        (["eval", "few-shot", "run", "--data", "images"], 1, "not a packed data set"),
        (["eval", "knn", "run", "--decoder", "magic"], 2, "'magic' is not one of 'auto'"),
        (["eval", "knn"], 2, "Missing argument 'RUN_OR_CHECKPOINT'"),
    ],
)
def test_bad_input_is_one_line(home, monkeypatch, capfd, arguments, code, message):
    assert mimcl(monkeypatch, home, *arguments) == code
    complaint = error_line(capfd.readouterr().err)
    assert message in complaint


def test_the_standard_error_is_that_of_a_proportion():
    result = Result("knn", Path("run"), Path("shards"), 1000, 100, 10, {}, {})
    assert result.standard_error(0.5) == pytest.approx(0.05)
    assert result.standard_error(1.0) == 0
