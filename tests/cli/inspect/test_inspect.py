"""`mimcl inspect` on shards, runs, checkpoints and prototypes that the other commands wrote."""

import json
import os
import re
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from helpers.damage import flip
from helpers.images import write_classes, write_train_val
from helpers.small_runs import keep_every_checkpoint
from helpers.typed import mimcl

from mimcl.cli.data.prototype_sets import prototype_set_folders
from mimcl.cli.inspect.checkpoint import bytes_in_folder
from mimcl.cli.inspect.inspect import inspect
from mimcl.curriculum.prototypes import PrototypeSet
from mimcl.model import checkpoint, mae
from mimcl.pipeline.dataset_json import read_dataset
from mimcl.pipeline.index import ShardIndex

STEPS, IMAGES = 15, 40  # at 8 images a step, 3 epochs
OPTIONS = ("--recipe", "cpu_small", "--curriculum", "proto", "--epochs", "3", "--decoder", "reference")
SETTINGS = (
    "data.image_size=32",
    "data.batch_size=8",
    "model.decoder_width=32",
    "model.decoder_depth=1",
    "trainer.checkpoint_every_steps=5",
    "trainer.log_every_steps=1",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """shards/ with the set default, and run/ with checkpoints at steps 5, 10 and 15 and two evaluations."""
    folder = tmp_path_factory.mktemp("home")
    write_train_val(folder / "images", {"ant": 25, "bee": 15}, {"ant": 4, "bee": 4})
    (folder / "images" / "train" / "ant" / "empty.jpg").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mae.SIZES, "vit_tiny", (64, 2, 2))
        keep_every_checkpoint(patch)
        assert mimcl(patch, folder, "shard", "images") == 0
        assert mimcl(patch, folder, "prototypes", "build", "--features", "pixels", "--k", "4") == 0
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        assert mimcl(patch, folder, "train", *OPTIONS, *settings, "--online-knn", "1", "--out", "run") == 0
        for k in ("3", "3", "5"):
            assert mimcl(patch, folder, "eval", "knn", "run", "--k", k, "--decoder", "reference") == 0
    return folder


@pytest.fixture
def copied(home, tmp_path):
    """A copy to be damaged."""
    shutil.copytree(home, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


def text_of(found) -> dict[str, str]:
    """The lines by label; of equal labels the last."""
    return {label.strip(): text for label, text in found.lines()}


def test_shards(here):
    found = inspect(here / "shards")
    index = ShardIndex.load(here / "shards")
    train, val = found.splits
    assert (train.split, train.images, val.split, val.images) == ("train", IMAGES, "val", 8)
    assert (train.classes, train.class_sizes, train.unlabelled) == (["ant", "bee"], (15, 20.0, 25), 0)
    assert train.fingerprint == read_dataset(here / "shards")["splits"]["train"]["fingerprint"]
    assert train.bytes == sum(path.stat().st_size for path in (here / "shards").glob("train-*.tar"))
    assert train.image_bytes == (index.nbytes.min(), np.median(index.nbytes), index.nbytes.max())
    assert train.largest_pixels[0] * train.largest_pixels[1] == index.largest
    assert train.median_pixels == (np.median(index.width), np.median(index.height))
    (status,) = found.prototypes
    assert (status.name, status.k, status.features, status.fault) == ("default", 4, "pixels", None)
    assert text_of(found)["skipped"].startswith("1 files")
    assert "rejected.jsonl" in text_of(found)["skipped"]
    assert text_of(found)["prototypes"].startswith("default: K 4, pixels features")


def test_left_out_duplicates_are_counted(tmp_path, monkeypatch):
    paths = write_classes(tmp_path / "images", {"ant": 3})["ant"]
    paths[2].write_bytes(paths[0].read_bytes())
    assert mimcl(monkeypatch, tmp_path, "shard", "images", "--dedup", "--workers", "1") == 0
    skipped = text_of(inspect(tmp_path / "shards"))["skipped"]
    assert "0 files; 1 " in skipped
    assert "duplicates.jsonl" in skipped


def test_unsuitable_and_damaged_prototypes_are_listed_with_the_shards(copied):
    sets = copied / "shards" / "prototypes"
    for name in ("foreign", "torn"):
        shutil.copytree(sets / "default", sets / name)
    path = sets / "foreign" / "prototypes.json"
    path.write_text(path.read_text().replace(read_dataset(copied / "shards")["splits"]["train"]["fingerprint"], "0f"))
    flip(sets / "torn" / "train.arrow", 400)
    assert len(prototype_set_folders(copied / "shards")) == 3
    good, foreign, torn = inspect(copied / "shards").prototypes
    assert good.fault is None
    assert "0f" in foreign.fault
    assert "is damaged" in torn.fault
    found = inspect(sets / "foreign")
    assert found.fits is False
    assert "build the prototypes again" in text_of(found)["made for index"]


def test_prototypes(here, tmp_path):
    folder = here / "shards" / "prototypes" / "default"
    found, stored = inspect(folder), PrototypeSet.load(folder, None)
    sizes = np.bincount(stored.cluster)
    assert (found.k, found.samples, found.features, found.seed) == (4, IMAGES, "pixels", 0)
    assert found.cluster_sizes == (sizes.min(), np.median(sizes), sizes.max())
    assert found.distance_quantiles[0.5] == pytest.approx(np.median(stored.distance))
    assert found.nearest == (stored.distance == 0).mean() >= 4 / IMAGES
    assert found.fits is True
    assert text_of(found)["Davies-Bouldin"] == "K was given"
    shutil.copytree(folder, tmp_path / "alone")
    assert inspect(tmp_path / "alone").fits is None


def test_run(here):
    found, last = inspect(here / "run"), checkpoint.candidates(here / "run" / "checkpoints")[0]
    meta = checkpoint.read_meta(last)
    assert (found.recipe, found.images, found.step, found.steps, found.finished) == (
        "cpu_small",
        IMAGES,
        STEPS,
        STEPS,
        True,
    )
    assert found.epoch == found.epochs == 3
    # One that is due while the one before is being written is skipped, on a machine that is busy.
    kept = sorted(int(path.name) for path in (here / "run" / "checkpoints").glob("0*"))
    assert [saved.step for saved in found.checkpoints] == kept
    assert {5, 15} <= set(kept) <= {5, 10, 15}
    assert found.data_fits is True
    assert found.fingerprints == meta["fingerprints"]
    assert found.digest == meta["window"]["digest"]
    counts = np.load(here / "run" / "draw_counts.npy")
    assert (found.coverage, found.max_repeats) == ((counts > 0).mean(), counts.max())
    assert found.differs["curriculum.name"] == ("none", "proto")
    assert found.differs["trainer.epochs"] == (50, 3.0)
    chosen = {setting.partition("=")[0] for setting in SETTINGS} | {"curriculum.name", "trainer.epochs"}
    assert found.differs.keys() == chosen | {"trainer.online_knn_epochs"}
    assert [line["settings"]["k"] for line in found.evaluations if "settings" in line] == [3, 5]
    assert (found.bad_samples, found.nonfinite_steps) == (0, 0)
    files = [path for path in (here / "run").rglob("*") if path.is_file()]
    assert found.bytes == sum(path.stat().st_size for path in files)
    lines = text_of(found)
    assert lines["progress"].startswith("15 of 15 steps, 3.0 of 3 epochs")
    while_training, *later = [text for label, text in sorted(found.lines()) if label == "evaluation"][::-1]
    assert re.fullmatch(r"online_knn at step 15: nn [\d.]+ %, knn [\d.]+ %; 2 earlier in metrics.jsonl", while_training)
    assert len(later) == 2
    assert all(text.startswith("knn at checkpoint 00000015: nn ") for text in later)


def test_a_run_that_is_training(copied, monkeypatch):
    monkeypatch.chdir(copied)
    run = copied / "run"
    shutil.rmtree(run / "checkpoints" / "00000015")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line).get("step", 0) <= 12 and "evaluation" not in line]
    (run / "metrics.jsonl").write_text("".join(kept) + '{"step": 13, "dra')  # a line being written
    (run / "quarantine.jsonl").write_text('{"draw": 3, "key": "000000001", "shard": "train-000000.tar"}\n')
    flip(run / "checkpoints" / "00000005" / "meta.json", 40)
    shutil.rmtree(copied / "shards")
    found = inspect(run)
    assert (found.step, found.finished, found.data_fits, found.bad_samples) == (12, False, None, 1)
    elsewhere = replace(found, data="s3://pictures/imagenet")
    assert text_of(elsewhere)["data"].startswith("s3://pictures/imagenet (remote")
    assert [bool(saved.fault) for saved in found.checkpoints] == [True, False]


def test_a_run_killed_before_its_first_checkpoint(copied, monkeypatch):
    monkeypatch.chdir(copied)
    run = copied / "run"
    for path in (run / "checkpoints", run / "evaluation"):
        shutil.rmtree(path)
    for path in ("metrics.jsonl", "draw_counts.npy"):
        (run / path).unlink()
    found = inspect(run)
    assert (found.step, found.steps, found.coverage, found.last, found.digest) == (0, STEPS, None, {}, None)
    assert text_of(found)["checkpoints"] == "none"


def test_checkpoint(here):
    path = here / "run" / "checkpoints" / "00000005"
    found, saved = inspect(path), checkpoint.load(path)
    assert (found.step, found.draw, found.epoch) == (5, 40, 1)
    assert found.parameters == sum(tensor.numel() for tensor in saved.tensors.values())
    assert found.bytes == sum(file.stat().st_size for file in path.iterdir())
    assert "checksums match" in text_of(found)["on disk"]


def test_a_run_and_its_checkpoints_have_several_names(here):
    newest = inspect(here / "run" / "checkpoints" / "00000015")
    for name in ("latest", "15", "00000015/meta.json"):
        assert inspect(here / "run" / "checkpoints" / name) == newest
    assert inspect(here / "run" / "checkpoints") == inspect(here / "run")


@pytest.mark.parametrize("what", ["shards", "run", "run/checkpoints/00000005", "shards/prototypes/default"])
def test_text_is_aligned_and_json_says_the_same(here, monkeypatch, capsys, what):
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    assert mimcl(monkeypatch, here, "inspect", what) == 0
    printed = capsys.readouterr().out.splitlines()
    labels = [label for label, _ in inspect(here / what).lines()]
    width = max(map(len, labels)) + 2
    assert [line[:width].rstrip() for line in printed] == [label.rstrip() for label in labels]
    assert all(line[width] != " " for line in printed)
    assert mimcl(monkeypatch, here, "inspect", what, "--json") == 0
    assert json.loads(capsys.readouterr().out)["path"] == what
    assert before == {path: path.stat().st_mtime_ns for path in here.rglob("*")}


@pytest.mark.parametrize(
    ("damage", "what", "message"),
    [
        (lambda home: None, "nowhere", "nowhere does not exist"),
        (lambda home: None, "images", "images is not a mimcl folder"),
        (lambda home: None, "shards/dataset.json", "is a file"),
        (lambda home: flip(home / "shards" / "train.arrow", 700), "shards", "dataset.json"),
        (lambda home: (home / "shards" / "dataset.json").write_text("{"), "shards", "dataset.json"),
        (lambda home: os.truncate(home / "run" / "draw_counts.npy", 90), "run", "draw_counts.npy"),
        (
            lambda home: flip(home / "run" / "checkpoints" / "00000005" / "state.pt", 900),
            "run/checkpoints/00000005",
            "state.pt",
        ),
        (
            lambda home: (home / "shards" / "prototypes" / "default" / "prototypes.json").write_text("[]"),
            "shards/prototypes/default",
            "is damaged",
        ),
    ],
)
def test_damage_is_a_one_line_error(copied, monkeypatch, capsys, damage, what, message):
    damage(copied)
    assert mimcl(monkeypatch, copied, "inspect", what) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert message in line
    assert captured.out == ""


def test_bytes_are_counted_while_folders_are_created_and_deleted(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "one").write_bytes(b"12345")
    (tmp_path / "kept" / "link").symlink_to("one")
    (tmp_path / "kept" / "dangling").symlink_to("nothing")
    stop = threading.Event()

    def create_and_delete():
        while not stop.is_set():
            folders = [tmp_path / f"{step:08}" for step in range(20)]
            for folder in folders:
                folder.mkdir()
                (folder / "empty").touch()
            for folder in folders:
                shutil.rmtree(folder)

    other = threading.Thread(target=create_and_delete)
    other.start()
    try:
        assert {bytes_in_folder(tmp_path) for _ in range(300)} == {5}
    finally:
        stop.set()
        other.join()
