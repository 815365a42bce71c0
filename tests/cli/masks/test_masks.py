"""`mimcl masks` on runs of the real command: one with random masks, one with a masker that scores and learns."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.images import write_classes
from helpers.typed import error_line, mimcl
from PIL import Image
from torch import nn

from mimcl.cli.encoders import restore
from mimcl.cli.encoders.reconstruction import Reconstruction, as_pixels, reconstruct
from mimcl.cli.masks.masks import masks
from mimcl.cli.masks.masks_picture import CELL, DPI, GAP, GROUP_GAP, MARGIN, panels
from mimcl.cli.prototypes.gallery import images_of
from mimcl.cli.run import builders
from mimcl.curriculum.masking import factory
from mimcl.curriculum.masking.mask import keep_lowest
from mimcl.curriculum.masking.masker import Masker
from mimcl.model import checkpoint, mae
from mimcl.model.async_checkpoint import AsyncCheckpointer
from mimcl.model.config import ModelConfig
from mimcl.model.mae import build, patchify, to_patches, unpatchify
from mimcl.pipeline.index import ShardIndex

OPTIONS = ("train", "--recipe", "cpu_small", "--decoder", "reference", "--epochs", "2")  # 6 steps
SETTINGS = (
    "seed=3",
    "data.image_size=32",
    "data.batch_size=8",
    "model.decoder_width=32",
    "model.decoder_depth=1",
    "trainer.checkpoint_every_steps=1",
    "trainer.keep_last=9",
    "optim.base_lr=0.5",
    "report=false",
)


class Scoring(Masker):
    """Removes patches with the highest scores of a linear layer that is trained with the model."""

    group_size = 4

    def __init__(self, model):
        super().__init__()
        self.head = nn.Linear(len(model.cls_token[0, 0]), 1)
        nn.init.constant_(self.head.weight, 0.1)

    def propose(self, patches, keys, model, progress):
        scores = self.head(model.embed(patches)).squeeze(-1).detach()
        return keep_lowest(scores, 0.75)._replace(scores=scores)

    def loss(self, output, mask):
        return self.head(output.latent[:, 1:].detach()).mean(dim=(1, 2)) - output.per_patch_loss.detach().mean(dim=1)

    def figures(self, output, mask, progress):
        assert len(output.latent) == len(mask.scores)
        assert len(mask.scores) % self.group_size == 0
        return {"done": progress, "loss": output.per_patch_loss.mean()}

    def parameters_with_model(self):
        return self.named_parameters()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with packed images in shards/, and runs of 6 steps, each of them kept: random/ and scoring/."""
    folder = tmp_path_factory.mktemp("home")
    write_classes(folder / "images", {"ant": 12, "bee": 12})
    settings = [word for setting in SETTINGS for word in ("--set", setting)]

    def make_masker(config, model, *rest, **others):
        return Scoring(model) if config.name == "block" else of_the_house(config, model, *rest, **others)

    def start_and_wait(self, *what):
        start(self, *what)
        self._writing.result()  # a step takes less time than to save it, which would leave some out

    of_the_house, start = factory.make_masker, AsyncCheckpointer.start
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mae.SIZES, "vit_tiny", (64, 2, 2))
        patch.setattr(factory, "make_masker", make_masker)
        patch.setattr(restore, "make_masker", make_masker)
        patch.setattr(builders, "make_masker", make_masker)
        patch.setattr(AsyncCheckpointer, "start", start_and_wait)
        assert mimcl(patch, folder, "shard", "images") == 0
        for masking, run in (("random", "random"), ("block", "scoring")):
            assert mimcl(patch, folder, *OPTIONS, *settings, "--masking", masking, "--out", run) == 0
        yield folder


@pytest.fixture
def crops(home):
    return images_of(ShardIndex.load(home / "shards"), np.arange(5), 32)


def saved_at(run: Path, step: int) -> checkpoint.Checkpoint:
    return checkpoint.load(run / "checkpoints" / f"{step:08d}")


def strip(picture: Path, left: float) -> np.ndarray:
    """Return the last row of a picture with two rows, in the column at `left` inches, (height, width, 3)."""
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    middle, first = round(DPI * (len(pixels) / DPI - 1.2)), round(DPI * left) + 2
    return pixels[middle : middle + DPI // 3, first : first + round(DPI * CELL) - 4].astype(int)


@pytest.mark.parametrize(("run", "columns"), [("scoring", 3), ("random", 2)])
def test_a_row_per_image_and_a_group_of_columns_per_checkpoint(home, monkeypatch, capsys, tmp_path, run, columns):
    sizes = {}
    for images, checkpoints in ((2, 2), (3, 3)):
        out = tmp_path / f"{images}.png"
        options = ("--images", str(images), "--checkpoints", str(checkpoints), "--out", str(out))
        assert mimcl(monkeypatch, home, "masks", run, *options) == 0
        with Image.open(out) as picture:
            picture.load()
            sizes[images] = picture.size
    steps = [line.partition(f": {run} at step ")[2] for line in capsys.readouterr().out.splitlines()]
    assert steps == ["1, 6", "1, 3, 6"]
    group = columns * (CELL + GAP) - GAP + GROUP_GAP
    for images, (width, _) in sizes.items():
        assert width == pytest.approx(DPI * (2 * MARGIN + CELL + images * group), abs=1)
    assert sizes[3][1] - sizes[2][1] == pytest.approx(DPI * (CELL + GAP), abs=DPI * 0.2)  # the title takes a line less

    firsts = [MARGIN + CELL + GROUP_GAP + number * group for number in range(2)]
    first, later = (strip(tmp_path / "2.png", left) for left in firsts)
    if run == "scoring":
        assert np.abs(first - later).max() > 20  # its scores have changed
    else:
        np.testing.assert_allclose(first, later, atol=2)  # the same masks
    filled = [strip(tmp_path / "2.png", left + (columns - 1) * (CELL + GAP)) for left in firsts]
    assert np.abs(filled[0] - filled[1]).max() > 20
    for shown in (first, later, *filled, strip(tmp_path / "2.png", MARGIN)):
        assert shown.std() > 5


@pytest.mark.parametrize(
    ("count", "steps"), [(1, [6]), (2, [1, 6]), (3, [1, 3, 6]), (4, [1, 2, 4, 6]), (99, [1, 2, 3, 4, 5, 6])]
)
def test_checkpoints_are_spread_from_the_first_to_the_last(home, monkeypatch, tmp_path, count, steps):
    monkeypatch.chdir(home)
    assert masks(Path("random"), tmp_path / "a.png", images=1, checkpoints=count) == steps


def test_there_are_no_more_rows_than_images(home, monkeypatch, tmp_path):
    monkeypatch.chdir(home)
    masks(Path("random"), tmp_path / "a.png", images=99, checkpoints=1)
    with Image.open(tmp_path / "a.png") as picture:
        assert 0 < picture.size[1] / DPI - 24 * (CELL + GAP) < 1.5


def test_one_checkpoint_is_shown_alone(home, monkeypatch, tmp_path):
    monkeypatch.chdir(home)
    assert masks(Path("scoring/checkpoints/00000002"), tmp_path / "a.png", images=1) == [2]


@pytest.mark.parametrize("run", ["random", "scoring"])
def test_kept_patches_are_unchanged_and_removed_ones_are_filled_in(home, crops, run):
    found = reconstruct(saved_at(home / run, 6), crops, seed=3)
    original, seen, filled = (patchify(images.int(), 8) for images in (crops, found.seen, found.filled))
    removed = (seen != original).any(dim=-1)
    assert (removed.sum(dim=1) == 12).all()
    assert (seen[removed] == 127).all()
    assert torch.equal(filled[~removed], original[~removed])
    assert (filled[removed] != original[removed]).any(dim=-1).all()
    assert (filled[removed] != 127).any(dim=-1).all()


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_a_perfect_prediction_is_the_crop(crops, norm_pix_loss):
    model = build(ModelConfig("vit_tiny", 8, 32, 1, norm_pix_loss), 32, seed=0)
    restored = unpatchify(as_pixels(model.target(to_patches(crops, 8)), crops, model), 8)
    np.testing.assert_allclose(restored, crops.float(), atol=0.1)


def test_scores_masks_and_progress_are_those_of_the_checkpoint(home, crops):
    shown = []
    for step in (1, 6):
        saved = saved_at(home / "scoring", step)
        model = restore.restore_model(restore.config_of(saved), saved.tensors)
        head = nn.Linear(64, 1)
        head.load_state_dict({name: saved.tensors[f"masker.head.{name}"] for name in ("weight", "bias")})
        with torch.no_grad():
            scores = head(model.embed(to_patches(crops, 8))).squeeze(-1)
        found = reconstruct(saved, crops, seed=3)
        np.testing.assert_array_equal(found.scores, scores.unflatten(1, (4, 4)))
        assert found.stage == f"done {step / 6:.3g}"
        removed = (patchify(found.seen.int(), 8) == 127).all(dim=-1)
        for row, gone in zip(scores, removed, strict=True):
            assert row[gone].min() > row[~gone].max()
        shown.append(found.scores)
    assert not torch.equal(*shown)


def test_random_masks_have_no_scores_and_are_the_same_at_every_checkpoint(home, crops):
    first, last = (reconstruct(saved_at(home / "random", step), crops, seed=3) for step in (1, 6))
    other = reconstruct(saved_at(home / "random", 6), crops, seed=4)
    assert first.scores is None
    assert first.stage == ""
    assert list(panels(crops, first)) == ["mask", "reconstruction"]
    assert torch.equal(first.seen, last.seen)
    assert not torch.equal(first.seen, other.seen)
    assert not torch.equal(first.filled, last.filled)


def test_colours_range_from_the_lowest_to_the_highest_score_of_each_image():
    crops = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    scores = torch.tensor([[[-5.0, 0.0], [2.5, 10.0]], [[7.0, 7.0], [7.0, 7.0]]])
    drawn = panels(crops, Reconstruction(scores, crops, crops, ""))
    heat = drawn["scores"].astype(int)
    corners = heat[0, ::2, ::2].reshape(4, 3)
    np.testing.assert_array_equal(heat[0].repeat(1, 0), corners.reshape(2, 2, 3).repeat(2, 0).repeat(2, 1))
    assert np.abs(corners[0] - corners[3]).max() > 100
    assert (np.diff(corners[:, 0]) > 0).all()  # redder, from dark blue to yellow
    assert (heat[1] == corners[0]).all()  # all alike
    brighter = panels(crops + 100, Reconstruction(scores, crops, crops, ""))["scores"]
    assert (brighter > heat).all()  # the crop shows through


@pytest.mark.slow
def test_shards_that_have_moved(home, monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(home)
    masks(Path("scoring"), tmp_path / "before.png")
    shutil.copytree(home / "shards", tmp_path / "moved")
    shutil.copytree(home / "scoring", tmp_path / "scoring")
    capfd.readouterr()
    assert mimcl(monkeypatch, tmp_path, "masks", "scoring") == 1
    complaint = capfd.readouterr().err
    assert complaint.startswith("mimcl: shards is not a packed data set")
    assert len(complaint.splitlines()) == 1
    assert mimcl(monkeypatch, tmp_path, "masks", "scoring", "--data", "moved") == 0
    assert (tmp_path / "masks.png").read_bytes() == (tmp_path / "before.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 1, "nowhere does not exist"),
        (["shards"], 1, "shards is neither"),
        (["random", "--data", "images"], 1, "images is not a packed data set"),
        (["random", "--out", "no/where.png"], 1, "no/where.png cannot be written"),
        (["random", "--out", "images"], 1, "images cannot be written"),
        (["random", "--images", "0"], 2, "--images"),
        (["random", "--checkpoints", "0"], 2, "--checkpoints"),
        ([], 2, "Missing argument 'RUN'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(home, monkeypatch, capfd, arguments, code, message):
    before = sorted(home.rglob("*"))
    assert mimcl(monkeypatch, home, "masks", *arguments) == code
    assert message in error_line(capfd.readouterr().err)
    assert sorted(home.rglob("*")) == before


def test_a_damaged_checkpoint_is_named(home, monkeypatch, tmp_path, capfd):
    shutil.copytree(home / "random", tmp_path / "random")
    (tmp_path / "random/checkpoints/00000001/weights.safetensors").write_bytes(b"")
    assert mimcl(monkeypatch, tmp_path, "masks", "random", "--data", str(home / "shards")) == 1
    complaint = capfd.readouterr().err
    assert "00000001 is damaged: the checksum of weights.safetensors differs" in complaint
    assert len(complaint.splitlines()) == 1
    assert not (tmp_path / "masks.png").exists()
