"""`mimcl eval rank`: without labels, on either split, the same again, by several processes, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ranks
from helpers.bad_samples import flip_byte
from helpers.images import write_flat, write_train_val
from helpers.typed import error_line, mimcl

from mimcl.cli.encoders import split_features
from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.encoders.feature_store import ChunkedArray
from mimcl.cli.encoders.mae_features import MaeFeatures
from mimcl.cli.evaluate import rank as module
from mimcl.cli.evaluate.eval_options import FeatureOptions
from mimcl.cli.evaluate.rank import rank
from mimcl.cli.report.read import read_run
from mimcl.cli.report.single import run_page
from mimcl.model.evaluate.rank import lidar, rank_me
from mimcl.pipeline.augment import STREAM_SAMPLE, evaluation_boxes, hash64, random_views
from mimcl.pipeline.decode import decode_one
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_store import open_store

pytestmark = pytest.mark.slow  # trains

IMAGES, CHOSEN, VIEWS = 150, 90, 3
SETTINGS = ("data.image_size=32", "data.batch_size=8", "data.micro_batch_size=8", "model.decoder_depth=1")
OPTIONS = ("--recipe", "cpu_small", "--epochs", "0.2", "--decoder", "reference", "--out", "run")
WORDS = ("eval", "rank", "run", "--decoder", "reference", "--images", str(CHOSEN), "--views", str(VIEWS))
PLAIN = {"images": CHOSEN, "views": VIEWS, "options": FeatureOptions(decoder="reference")}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Images without labels in shards/, labelled ones with a val split in labelled/, and a run."""
    folder = tmp_path_factory.mktemp("home")
    write_flat(folder / "images", IMAGES)
    write_train_val(folder / "classes", {"ant": 4, "bee": 3}, {"ant": 70, "bee": 1})
    settings = [word for setting in (*SETTINGS, "trainer.precision=float32") for word in ("--set", setting)]
    with pytest.MonkeyPatch.context() as patch:
        assert mimcl(patch, folder, "shard", "images") == 0
        assert mimcl(patch, folder, "shard", "classes", "--out", "labelled") == 0
        assert mimcl(patch, folder, "train", *OPTIONS, *settings) == 0
    return folder


@pytest.fixture
def fresh(home, tmp_path, monkeypatch):
    """A copy of the run in a new working directory."""
    shutil.copytree(home / "run", tmp_path / "run")
    for name in ("shards", "labelled"):
        (tmp_path / name).symlink_to(home / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def decoded(monkeypatch):
    """The number of images of each pass through the decoder, and of crops of each."""
    counted, in_order = [], split_features._stream

    def counting(index, decoder, sample_ids, views):
        counted.append((len(sample_ids), views))
        return in_order(index, decoder, sample_ids, views)

    monkeypatch.setattr(split_features, "_stream", counting)
    return counted


def last_line(folder: Path) -> dict:
    return json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])


def by_hand(encoder: Encoder, index: ShardIndex, trained: bool, chosen: int, views: int) -> dict[str, float]:
    """Both measures, with one image decoded and one crop encoded at a time."""
    extractor = MaeFeatures("", encoder.model(trained), "float32")
    store = open_store(index)

    def feature(sample_id, box, flip):
        (image,) = store.read(np.array([sample_id]))
        pixels = decode_one(image, box.tolist(), bool(flip), 32, False)
        return extractor(torch.tensor(pixels).permute(2, 0, 1)[None])[0]

    def sizes(sample_id):
        return np.array([index.width[sample_id]]), np.array([index.height[sample_id]])

    crops = [feature(row, evaluation_boxes(*sizes(row))[0], False) for row in range(index.samples)]
    keys = hash64(0, np.arange(index.samples), STREAM_SAMPLE)
    of_views = []
    for row in sorted(np.argsort(keys)[:chosen].tolist()):
        boxes, flips = random_views(0, views)(np.array([row]), *sizes(row))
        of_views.append([feature(row, box, flip) for box, flip in zip(boxes, flips, strict=True)])
    return {"rank_me": rank_me(np.stack(crops)), "lidar": lidar(np.array(of_views))}


def test_it_measures_what_is_found_by_hand(fresh, monkeypatch, capsys):
    assert mimcl(monkeypatch, fresh, *WORDS) == 0
    line, out = last_line(fresh), capsys.readouterr().out
    encoder, index = Encoder.load(Path("run")), ShardIndex.load("shards")
    for prefix, trained in (("", True), ("untrained_", False)):
        for name, expected in by_hand(encoder, index, trained, CHOSEN, VIEWS).items():
            assert line["values"][prefix + name] == pytest.approx(expected, rel=1e-3)
    assert line["details"] == {"dimensions": 192, "untrained_dimensions": 192}
    assert (line["evaluation"], line["index"]) == ("rank", index.fingerprint)
    assert line["settings"] == {
        "split": "train",
        "pool": "mean",
        "lidar_images": CHOSEN,
        "views": VIEWS,
        "delta": 1e-4,
        "train": IMAGES,
    }
    (row,) = (text.split() for text in out.splitlines() if text.startswith("lidar"))
    assert row == ["lidar", f"{line['values']['lidar']:.1f}", f"{line['values']['untrained_lidar']:.1f}"]
    assert "150 train images of shards\n" in out
    assert "next: mimcl report run\n" in out


def test_again_it_finds_the_same_and_decodes_nothing(fresh, decoded):
    found = rank(Path("run"), **PLAIN)
    assert decoded == [(IMAGES, 0), (CHOSEN, VIEWS)]
    assert rank(Path("run"), **PLAIN) == found
    assert len(decoded) == 2
    assert rank(Path("run"), **PLAIN | {"options": FeatureOptions(decoder="reference", cache=False)}) == found
    assert not list(Path("run/evaluation/features").iterdir())
    assert rank(Path("run"), **PLAIN) == found


def test_a_killed_one_continues_with_the_missing_chunks(fresh, decoded, monkeypatch):
    whole = rank(Path("run"), **PLAIN)
    shutil.rmtree("run/evaluation")
    written, write = [], ChunkedArray.write

    def dying(self, chunk, rows):
        if len(written) == 7:  # six of the central crops, by both encoders, and one of the views
            raise KeyboardInterrupt
        written.append(chunk)
        write(self, chunk, rows)

    with monkeypatch.context() as patch:
        patch.setattr(ChunkedArray, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            rank(Path("run"), **PLAIN)
    decoded.clear()
    assert rank(Path("run"), **PLAIN) == whole
    assert decoded == [(CHOSEN, VIEWS)]  # the first chunk has the features of one encoder


def test_the_views_of_an_image_do_not_depend_on_which_chunks_are_missing(fresh):
    whole = rank(Path("run"), **PLAIN)
    chunks = sorted(Path("run/evaluation/features").glob("*/*-views3/*.npy"))
    before = [chunk.read_bytes() for chunk in chunks]
    assert len(chunks) == 4
    for chunk in chunks[1::2]:
        chunk.unlink()
    assert rank(Path("run"), **PLAIN) == whole
    assert [chunk.read_bytes() for chunk in chunks] == before


def test_either_split_is_taken_and_fewer_images_than_asked_for(fresh, monkeypatch):
    assert mimcl(monkeypatch, fresh, *WORDS, "--data", "labelled", "--split", "val") == 0
    line = last_line(fresh)
    assert line["index"] == ShardIndex.load("labelled", "val").fingerprint
    settings = line["settings"]
    assert (settings["split"], settings["val"], settings["lidar_images"], "train" in settings) == ("val", 71, 71, False)
    assert mimcl(monkeypatch, fresh, *WORDS, "--data", "labelled") == 0
    assert last_line(fresh)["settings"]["train"] == 7
    assert last_line(fresh)["values"]["lidar"] <= 6


def test_of_many_images_rank_me_takes_a_subset(fresh, monkeypatch, decoded):
    monkeypatch.setattr(module, "_RANK_ME_IMAGES", 100)
    found = rank(Path("run"), **PLAIN)
    assert decoded == [(100, 0), (CHOSEN, VIEWS)]
    assert found.train == 100
    chosen, of_lidar = (source.sample_ids for source in module.rank_sources(ShardIndex.load("shards"), CHOSEN, VIEWS))
    assert set(of_lidar) < set(chosen)
    assert len(set(chosen)) == 100
    assert not np.array_equal(chosen, np.arange(100))


def test_bad_images_are_left_out(home, fresh, monkeypatch, capsys):
    expected = rank(Path("run"), **PLAIN)
    shutil.rmtree("run/evaluation")
    (fresh / "shards").unlink()
    shutil.copytree(home / "shards", fresh / "shards")
    index = ShardIndex.load("shards")
    for sample_id in module.rank_sources(index, CHOSEN, VIEWS)[1].sample_ids[[0, 40]].tolist():
        flip_byte(index, sample_id)
    found = rank(Path("run"), **PLAIN)
    assert found.train == IMAGES - 2
    assert capsys.readouterr().out.count("2 bad train images are skipped") == 2
    for name, value in found.trained.items():
        assert value == pytest.approx(expected.trained[name], rel=0.1)
        assert (value == expected.trained[name]) == (name == "dimensions")


@pytest.mark.exhaustive
def test_two_processes_find_the_same(fresh):
    expected = rank(Path("run"), **PLAIN)
    shutil.rmtree("run/evaluation")
    ranks.run(fresh, *WORDS, size=2)
    assert {**expected.trained, "x": 0}.items() >= last_line(fresh)["values"].items() - {
        (name, value) for name, value in last_line(fresh)["values"].items() if name.startswith("untrained_")
    }
    assert ranks.output(fresh, 2).count("next: mimcl report run") == 1


def test_the_report_shows_dimensions_not_percent(fresh, monkeypatch, capsys):
    assert mimcl(monkeypatch, fresh, *WORDS) == 0
    page = run_page(read_run(Path("run")), Path("run/report.html"), pictures=False)
    (table,) = page.tables
    values = last_line(fresh)["values"]
    assert table.columns == ["rank me", "lidar", "untrained rank me", "untrained lidar"]
    (row,) = table.rows
    assert [float(cell) for cell in row[2]] == pytest.approx(
        [values[name.replace(" ", "_")] for name in table.columns], rel=1e-3
    )
    capsys.readouterr()
    assert mimcl(monkeypatch, fresh, "inspect", "run") == 0
    assert (
        f"rank_me {values['rank_me']:.1f}, lidar {values['lidar']:.1f}; untrained: rank_me" in capsys.readouterr().out
    )


def test_what_cannot_be_measured_is_refused(fresh, monkeypatch, capfd, tmp_path):
    write_flat(tmp_path / "one", 1)
    assert mimcl(monkeypatch, fresh, "shard", "one", "--out", "single") == 0
    capfd.readouterr()
    for words, code, message in (
        (["--views", "1"], 2, "--views"),
        (["--images", "1"], 2, "--images"),
        (["--split", "test"], 2, "'test' is not one of 'train', 'val'"),
        (["--split", "val"], 1, "shards has no val split; it has train"),
        (["--data", "single"], 1, "single has a single train image; LiDAR needs at least 2"),
    ):
        assert mimcl(monkeypatch, fresh, *WORDS, *words) == code
        assert message in error_line(capfd.readouterr().err)
    assert last_line(fresh).get("evaluation") is None


def test_an_encoder_that_diverged_is_an_error_that_says_so(fresh, monkeypatch, capfd):
    features = MaeFeatures.__call__
    monkeypatch.setattr(MaeFeatures, "__call__", lambda self, images: features(self, images) * np.float32(np.nan))
    assert mimcl(monkeypatch, fresh, *WORDS, "--no-cache") == 1
    complaint = error_line(capfd.readouterr().err)
    assert "the trained encoder: the features are not all finite numbers; give a checkpoint from before" in complaint
