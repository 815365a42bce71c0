"""`mimcl prototypes build --difficulty loss:CHECKPOINT`: the loss over masks that depend on the image's row alone."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from helpers.bad_samples import broken_png
from helpers.images import write_flat
from helpers.small_runs import latest
from helpers.typed import error_line, mimcl

from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.encoders.feature_store import ChunkedArray
from mimcl.cli.encoders.reconstruction_loss import MASKS, ReconstructionLoss
from mimcl.cli.encoders.split_features import central_crop_stream, open_decoder
from mimcl.cli.prototypes import gallery, workspace
from mimcl.cli.prototypes.build import BuildConfig, build
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.model.mae import reconstruction_loss, to_patches
from mimcl.pipeline.augment import STREAM_MASK, hash64
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

pytestmark = pytest.mark.slow  # trains a run

IMAGES, ROWS, BROKEN = 90, 30, 41  # images of a part: 3 of them; a bad image
RUN = (
    *("train", "--recipe", "cpu_small", "--decoder", "reference", "--epochs", "1", "--out", "run"),
    *("--set", "data.batch_size=16", "--set", "data.image_size=16", "--set", "model.patch_size=4"),
    *("--set", "model.decoder_depth=1", "--set", "model.decoder_width=32", "--set", "report=false"),
    *("--set", "trainer.precision=float32"),
)
LOSS = ("prototypes", "build", "--decoder", "reference", "--difficulty", "loss:run")


@pytest.fixture(autouse=True, scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspace, "MAX_PART_ROWS", ROWS)
        patch.setattr(gallery, "_ROWS_OF_ONE", 1)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with shards/, in which one image is bad, and run/."""
    folder = tmp_path_factory.mktemp("trained")
    paths = write_flat(folder / "images", IMAGES, width=24, height=20)
    paths[BROKEN].write_bytes(broken_png(BROKEN))
    pack(image_folder(folder / "images"), folder / "shards", PackConfig(workers=1), on_progress=id)
    with pytest.MonkeyPatch.context() as patch:
        assert mimcl(patch, folder, *RUN) == 0
    return folder


@pytest.fixture
def home(trained, tmp_path):
    shutil.copytree(trained / "shards", tmp_path / "shards")
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path


def config(home, **values):
    return BuildConfig(decoder="reference", difficulty=f"loss:{home / 'run'}", **values)


def by_definition(home, rows, seed=0):
    """The loss of images by the model, one image and one mask at a time."""
    encoder = Encoder.load(home / "run")
    model, index = encoder.model(), ShardIndex.load(home / "shards")
    masker = RandomMasker(model.num_patches, 0.75)
    decoder, losses = open_decoder("reference", model.image_size, index), []
    for batch in central_crop_stream(index, decoder, np.array(rows)):
        for row, image in zip(batch.sample_ids.tolist(), batch.images, strict=True):
            patches, own = to_patches(image[None], model.patch_size), []
            for mask in range(MASKS):
                key = torch.from_numpy(hash64(seed, row * MASKS + mask, STREAM_MASK).view(np.int64))
                chosen = masker.propose(patches, key, model, torch.zeros(()))
                with torch.no_grad():
                    own.append(reconstruction_loss(model(patches, chosen), chosen.mask).item())
            losses.append(np.mean(own))
    return losses


@pytest.mark.parametrize("seed", [0, 7])
def test_a_score_is_the_mean_loss_over_masks_of_the_row(home, seed):
    folder, found = build(home / "shards", config(home, seed=seed))
    rows = [0, 29, 30, 64, 89]
    np.testing.assert_allclose(found.raw_distance[rows], by_definition(home, rows, seed), rtol=1e-4)
    good = np.arange(IMAGES) != BROKEN
    raw = found.raw_distance[good].astype(np.float64)
    np.testing.assert_allclose(found.distance[good], (raw - raw.min()) / np.ptp(raw), atol=1e-6)
    scores = found.info["scores"]
    assert scores["name"] == f"loss:{latest(home / 'run')}"
    assert (scores["masks"], scores["mask_ratio"], scores["seed"]) == (MASKS, 0.75, seed)
    assert (scores["lowest"], scores["highest"]) == (raw.min(), raw.max())
    assert (folder / "gallery.png").exists()


def test_another_seed_has_other_masks(home):
    found = [build(home / "shards", config(home, seed=seed, name=f"s{seed}"))[1] for seed in (0, 1)]
    assert not np.allclose(found[0].raw_distance, found[1].raw_distance, rtol=1e-5, equal_nan=True)
    good = np.arange(IMAGES) != BROKEN
    assert np.corrcoef(found[0].raw_distance[good], found[1].raw_distance[good])[0, 1] > 0.5


def test_a_bad_image_is_in_no_cluster_and_last(home, capsys):
    _, found = build(home / "shards", config(home))
    index = ShardIndex.load(home / "shards")
    assert np.flatnonzero(found.cluster < 0).tolist() == [BROKEN]
    assert found.distance[BROKEN] == 1
    assert np.isnan(found.raw_distance[BROKEN])
    assert found.info["bad"] == [{"key": index.key(BROKEN), "path": index.path(BROKEN)}]
    assert f"{index.path(BROKEN)} (sample" in capsys.readouterr().err


def test_a_stopped_build_resumes_unless_the_run_trained_on(home, monkeypatch, capsys):
    left, wrote, write = [2], [], ChunkedArray.write

    def counting(self, part, rows):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        wrote.append(part)
        write(self, part, rows)

    _, expected = build(home / "shards", config(home, name="whole"))
    monkeypatch.setattr(ChunkedArray, "write", counting)
    with pytest.raises(KeyboardInterrupt):
        build(home / "shards", config(home))
    left[0] = 100
    _, found = build(home / "shards", config(home))
    assert wrote == [0, 1, 2]
    np.testing.assert_array_equal(found.raw_distance, expected.raw_distance)
    left[0] = 2
    with pytest.raises(KeyboardInterrupt):
        build(home / "shards", config(home, name="again"))
    left[0] = 100
    more = ("train", "--out", "run", "--resume", "--epochs", "2", "--allow-change", "trainer.epochs")
    assert mimcl(monkeypatch, home, *more) == 0
    wrote.clear()
    capsys.readouterr()
    _, found = build(home / "shards", config(home, name="again"))
    assert wrote == [0, 1, 2]
    assert "starting over" in capsys.readouterr().out
    assert found.info["scores"]["name"].endswith("00000012")


def test_the_command_says_what_it_made_and_how_to_train_with_it(home, monkeypatch, capsys):
    assert mimcl(monkeypatch, home, *LOSS, "--name", "mine") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"loss of {latest(home / 'run').relative_to(home)}, mean of 4 random masks that remove 75%" in out
    assert "next: mimcl train --curriculum proto --prototypes mine" in out
    assert mimcl(monkeypatch, home, "inspect", "shards/prototypes/mine") == 0
    assert "masks 4, mask_ratio 0.75, seed 0" in " ".join(capsys.readouterr().out.split())
    again = ("train", *RUN[1:-4], "--curriculum", "proto", "--prototypes", "mine", "--out", "second")
    assert mimcl(monkeypatch, home, *again) == 0
    assert os.listdir(home / "shards" / "prototypes") == ["mine"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--difficulty", "loss"), "--difficulty is 'loss'; give distance or loss:CHECKPOINT"),
        (("--difficulty", "loss:"), "--difficulty is 'loss:'"),
        (("--difficulty", "loss:gone"), "gone does not exist; give runs/NAME"),
        (("--difficulty", "loss:shards"), "shards is neither a checkpoint nor a run"),
        (("--k", "5"), "--k is for prototypes, and --difficulty loss:run makes none"),
        (("--features", "sift"), "--features is for prototypes"),
        (("--levels", "2"), "--levels is for prototypes"),
        (("--min-cluster", "2"), "--min-cluster is for prototypes"),
        (("--difficulty", "loss:encoder"), "encoder has no decoder, which a loss needs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_impossible_is_one_line(home, words, message, monkeypatch, capsys):
    if "loss:encoder" in words:
        assert mimcl(monkeypatch, home, "export", "run", "--out", "encoder") == 0
        capsys.readouterr()
    assert mimcl(monkeypatch, home, *LOSS, *words) in (1, 2)
    assert message in error_line(capsys.readouterr().err)
    assert not (home / "shards" / "prototypes" / "default").exists()


def test_a_diverged_run_is_one_line(home, monkeypatch, capsys):
    monkeypatch.setattr(ReconstructionLoss, "_loss", lambda self, patches, numbers: patches[:, 0, 0] * torch.nan)
    assert mimcl(monkeypatch, home, *LOSS, "--max-bad", "1") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the loss of 89 of 90 images is not finite; give a checkpoint from before the run diverged" in line
    assert not (home / "shards" / "prototypes" / "default").exists()
    settings = json.loads((home / "shards" / "prototypes" / ".default.building" / "settings.json").read_text())
    assert (settings["masks"], settings["seed"]) == (MASKS, 0)
