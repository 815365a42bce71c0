"""`data.keep_decoded` of a run: the draws of a run without it, a resume to the bit, and what does not fit."""

import pytest
from helpers import ranks
from helpers.images import write_flat
from helpers.small_runs import (
    FEW_PATCHES,
    IMAGES,
    assert_close_runs,
    assert_same_run,
    back_to,
    keep_every_checkpoint,
    train,
)
from helpers.typed import error_line, mimcl

from mimcl.api import Loader
from mimcl.cli.config import read_yaml
from mimcl.pipeline import kept_pixels
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex

pytestmark = pytest.mark.slow  # trains

KEPT = "data.keep_decoded=true"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """shards/ with prototypes, and two runs: plain/ and kept/."""
    folder = tmp_path_factory.mktemp("home")
    write_flat(folder / "images", IMAGES, width=40, height=36)
    with pytest.MonkeyPatch.context() as patch:
        keep_every_checkpoint(patch)
        assert mimcl(patch, folder, "shard", "images") == 0
        assert mimcl(patch, folder, "prototypes", "build", "--features", "pixels", "--k", "4") == 0
        assert mimcl(patch, folder, *train("plain", FEW_PATCHES)) == 0
        assert mimcl(patch, folder, *train("kept", FEW_PATCHES, KEPT)) == 0
    return folder


def test_it_draws_what_a_run_without_it_draws(home):
    assert (home / "kept/draw_counts.npy").read_bytes() == (home / "plain/draw_counts.npy").read_bytes()
    saved = read_yaml(home / "kept/config.yaml")
    assert (saved["data.keep_decoded"], saved["data.decoder"]) == (True, "reference")


def test_it_resumes_to_the_bit(home, monkeypatch):
    keep_every_checkpoint(monkeypatch)
    copy = back_to(8, home / "kept", home / "copy")
    assert mimcl(monkeypatch, home, "train", "--out", str(copy), "--resume") == 0
    assert_same_run(copy, home / "kept")


@pytest.mark.exhaustive
def test_two_processes_each_keep_a_copy_and_draw_the_same(home):
    ranks.run(home, *train("two", FEW_PATCHES, KEPT), size=2)
    assert_close_runs(home / "two", home / "kept", 1e-4)


def test_a_stopped_run_may_continue_without_it(home, monkeypatch, capsys):
    keep_every_checkpoint(monkeypatch)
    copy = back_to(8, home / "kept", home / "without")
    assert mimcl(monkeypatch, home, "train", "--out", str(copy), "--resume", "--set", "data.keep_decoded=false") == 0
    assert "data.keep_decoded changes from True to False: same draws, but" in capsys.readouterr().err
    assert (copy / "draw_counts.npy").read_bytes() == (home / "plain/draw_counts.npy").read_bytes()


def test_the_memory_is_stated_and_what_does_not_fit_is_refused_in_one_line(home, monkeypatch, capsys):
    assert mimcl(monkeypatch, home, *train("stated", FEW_PATCHES, KEPT, steps=2)) == 0
    needed = kept_pixels.pixel_bytes(ShardIndex.load(home / "shards"))
    assert f"{IMAGES} decoded images kept in memory ({needed / 1e3:.1f} KB)" in capsys.readouterr().out.replace(
        "\n", " "
    )
    monkeypatch.setattr(kept_pixels, "free_memory", lambda: 200_000)
    assert mimcl(monkeypatch, home, *train("refused", KEPT)) == 1
    assert error_line(capsys.readouterr().err) == (
        f"mimcl: data.keep_decoded needs 0.2 MB for {IMAGES} decoded images, more than 80% of the free memory "
        "(0.2 MB); leave it out, or pack smaller images"
    )
    assert not (home / "refused").exists()
    loader = Loader(home / "shards", batch_size=8, epochs=1, keep_decoded=True)
    with pytest.raises(DataError, match=r"data.keep_decoded needs 0\.2 MB"):
        next(iter(loader))


def test_it_is_refused_with_a_smaller_scale_before_anything_is_written(home, monkeypatch, capsys):
    assert mimcl(monkeypatch, home, *train("scaled", KEPT, "data.scaled_decode=true")) == 2
    assert "data.scaled_decode has no effect" in error_line(capsys.readouterr().err)
    assert not (home / "scaled").exists()


@pytest.mark.parametrize("views", [1, 2])
def test_a_loader_has_the_same_batches_and_resumes(home, views):
    def loader(**options):
        return Loader(
            home / "shards", batch_size=8, image_size=32, epochs=2, views=views, decoder="reference", **options
        )

    expected, made = list(loader()), loader(keep_decoded=True)
    found = [batch for _, batch in zip(range(4), made, strict=False)]
    again = loader(keep_decoded=True)
    again.load_state_dict(made.state_dict())
    found += list(again)
    assert len(found) == len(expected) == 2 * IMAGES / 8
    for one, other in zip(found, expected, strict=True):
        assert one.sample_ids.tolist() == other.sample_ids.tolist()
        assert one.images.shape == other.images.shape
        assert (one.images.int() - other.images.int()).abs().float().mean() < 0.1
