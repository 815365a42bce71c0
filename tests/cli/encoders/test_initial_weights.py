"""`mimcl train --init`: real runs that begin with the weights of runs, of MAE's files, of timm and of Hugging Face."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from helpers.images import write_classes
from helpers.typed import mimcl
from safetensors.torch import load_file, save_file

from mimcl.cli import train as training
from mimcl.cli.encoders.initial_weights import begin_with
from mimcl.cli.run.folder import open_run
from mimcl.curriculum.masking import factory
from mimcl.model.checkpoint import CheckpointError
from mimcl.model.mae import build, encoder_weights, sin_cos_positions

SMALL = {
    "data.image_size": 32,
    "data.batch_size": 8,
    "data.micro_batch_size": 8,
    "data.decoder": "reference",
    "model.decoder_width": 32,
    "model.decoder_depth": 1,
    "trainer.precision": "float32",
    "trainer.epochs": 0.5,  # a step
    "optim.base_lr": 0.0,  # which leaves the weights as they were
    "optim.weight_decay": 0.0,
}


def words(out, *more, **changes):
    values = SMALL | {key.replace("__", "."): value for key, value in changes.items()}
    settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return ("train", "--recipe", "cpu_small", "--out", str(out), *settings, *more)


def saved(run):
    (path,) = Path(run).glob("checkpoints/*/weights.safetensors")
    return load_file(path)


def drawn(seed=0):
    """What a run of these settings draws."""
    return build(open_run("cpu_small", SMALL, Path("x"), False).config.model, 32, seed).state_dict()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """shards/ of 16 images, run/ with other weights than seed 0's, and the same as mae.pth, encoder.pth, timm's."""
    folder = tmp_path_factory.mktemp("home")
    write_classes(folder / "images", {"ant": 8, "bee": 8})
    with pytest.MonkeyPatch.context() as patch:
        assert mimcl(patch, folder, "shard", "images") == 0
        assert mimcl(patch, folder, *words("run", seed=9)) == 0
    weights = saved(folder / "run")
    torch.save({"model": weights}, folder / "mae.pth")
    torch.save({"model": encoder_weights(weights)}, folder / "encoder.pth")
    save_file(
        timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8).state_dict(), folder / "timm.safetensors"
    )
    return folder


@pytest.fixture
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def began(here, tmp_path, monkeypatch, capsys):
    """Trains from some weights; returns the line about them and the weights after a step that moves none.

    The line is without its end, that ImageNet's constants are assumed, which is that of bare files alone.
    """

    def run(init, *more, **changes):
        capsys.readouterr()
        out = tmp_path / "new"
        assert mimcl(monkeypatch, here, *words(out, "--init", str(init), *more, **changes)) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("begins with")]
        line, assumed, _ = line.partition(f"; {init} does not tell how pixels are normalised: ImageNet's mean (0.485, ")
        assert bool(assumed) == Path(init).is_file()
        return line, saved(out)

    return run


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "init", ["run", "run/checkpoints/00000001", "run/checkpoints/00000001/weights.safetensors", "mae.pth"]
)
def test_encoder_and_decoder(home, began, init):
    line, weights = began(init)
    path = "run/checkpoints/00000001" if init == "run" else init
    assert line == f"begins with {path}: the encoder and decoder"
    assert_same(weights, saved(home / "run"))
    assert not torch.equal(weights["cls_token"], drawn()["cls_token"])


def test_a_file_without_a_decoder(home, began):
    line, weights = began("encoder.pth")
    assert line == "begins with encoder.pth: the encoder; the decoder is drawn: they have none"
    assert_same(weights, drawn() | encoder_weights(saved(home / "run")))


def test_a_decoder_of_another_size(home, began):
    line, weights = began("mae.pth", model__decoder_depth=2)
    assert line == "begins with mae.pth: the encoder; the decoder is drawn: theirs is 32 wide and 1 deep, not 32 and 2"
    assert_same(encoder_weights(weights), encoder_weights(saved(home / "run")))
    assert not torch.equal(weights["decoder_embed.weight"], saved(home / "run")["decoder_embed.weight"])


def test_what_hugging_face_has(home, began, monkeypatch, tmp_path):
    assert mimcl(monkeypatch, home, "export", "run", "--format", "hf", "--out", str(tmp_path / "hf")) == 0
    line, weights = began(tmp_path / "hf" / "vit_mae")
    assert line.endswith("vit_mae: the encoder and decoder")
    assert_same(weights, saved(home / "run"))


def test_fixed_positions_of_another_grid(home, began):
    line, weights = began("mae.pth", data__image_size=64)
    assert line == (
        "begins with mae.pth: the encoder and decoder; pos_embed fixed, of 8 x 8 patches instead of 4 x 4; "
        "decoder_pos_embed fixed, of 8 x 8 patches instead of 4 x 4"
    )
    positions = {"pos_embed": sin_cos_positions(192, 8), "decoder_pos_embed": sin_cos_positions(32, 8)}
    assert_same(weights, saved(home / "run") | positions)


@pytest.mark.parametrize("size", [32, 64])
def test_learned_positions(home, began, size):
    line, weights = began("timm.safetensors", data__image_size=size)
    learned = load_file(home / "timm.safetensors")["pos_embed"]
    if size == 32:
        assert line.endswith("they have none")
        assert torch.equal(weights["pos_embed"], learned)
        return
    assert line.endswith("they have none; pos_embed learned, interpolated from 4 x 4 to 8 x 8 patches")
    assert torch.equal(weights["pos_embed"][:, 0], learned[:, 0])  # the class token's
    found, before = (p[0, 1:].unflatten(0, (n, n)) for p, n in ((weights["pos_embed"], 8), (learned, 4)))
    torch.testing.assert_close(found.mean(dim=(0, 1)), before.mean(dim=(0, 1)), atol=2e-3, rtol=0)
    # Bicubic: a patch's four quarters together are near what it was, and far from what others were.
    pooled = found.unflatten(0, (4, 2)).unflatten(2, (4, 2)).mean(dim=(1, 3))
    nearest = torch.cdist(pooled.flatten(0, 1), before.flatten(0, 1)).argmin(dim=1)
    assert torch.equal(nearest, torch.arange(16))


def test_teachers_copy_the_weights_that_the_run_begins_with(home, began, monkeypatch):
    made = []
    monkeypatch.setattr(factory, "HardPatchesMasker", lambda *args: made.append(HardPatchesMasker(*args)) or made[-1])
    from mimcl.curriculum.masking.hard_patches import HardPatchesMasker

    seen = {}
    masker = factory.make_masker

    def watched(*args, **options):
        result = masker(*args, **options)
        seen.update({name: tensor.clone() for name, tensor in result.teacher.model.state_dict().items()})
        return result

    monkeypatch.setattr(factory, "make_masker", watched)
    began("mae.pth", "--masking", "hard-patches")
    weights = saved(home / "run")
    assert len(seen) > 100
    assert all(torch.equal(tensor, weights[name]) for name, tensor in seen.items())


def test_a_resumed_run_does_not_read_the_file_again(here, tmp_path, monkeypatch, capsys):
    shutil.copy("mae.pth", tmp_path / "w.pth")
    run, init = tmp_path / "run", ("--init", str(tmp_path / "w.pth"))
    assert mimcl(monkeypatch, here, *words(run, *init)) == 0
    before = saved(run)
    (tmp_path / "w.pth").unlink()
    capsys.readouterr()
    for more in (init, ()):  # the same command, and without what it was
        assert mimcl(monkeypatch, here, *words(run, "--resume", *more)) == 0
        said = capsys.readouterr().out
        assert "going on at draw 8" in said
        assert "begins with" not in said
    assert_same(saved(run), before)
    assert f"init: {tmp_path}/w.pth" in (run / "config.yaml").read_text()
    assert mimcl(monkeypatch, here, *words(run, "--resume", "--init", "mae.pth")) == 2
    assert f"init is 'mae.pth' but the run in {run} has '{tmp_path}/w.pth'" in capsys.readouterr().err


def test_a_run_that_was_killed_before_its_first_checkpoint_reads_it_again(here, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    assert mimcl(monkeypatch, here, *words(run, "--init", "mae.pth")) == 0
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    capsys.readouterr()
    assert mimcl(monkeypatch, here, "train", "--out", str(run), "--resume") == 0
    assert "begins with mae.pth: the encoder and decoder" in capsys.readouterr().out
    assert_same(saved(run), saved("run"))


def test_the_card_names_what_a_run_began_with(here, tmp_path, monkeypatch):
    assert mimcl(monkeypatch, here, *words(tmp_path / "run", "--init", "mae.pth")) == 0
    assert mimcl(monkeypatch, here, "export", str(tmp_path / "run"), "--out", str(tmp_path / "out")) == 0
    assert "| began with | mae.pth |" in (tmp_path / "out" / "README.md").read_text()


def test_what_processes_compare_tells_other_weights_apart(here, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("mimcl.model.distributed.agree", lambda what, digest: told.append((what, digest)))
    prints = []
    for init in ("mae.pth", "run", "encoder.pth"):
        told.clear()
        config = open_run("cpu_small", SMALL | {"init": init}, tmp_path / init, False)
        training.train(config)
        prints.append(dict(told)["what --init names"])
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--init", "nowhere.pth"), "nowhere.pth is neither a run with a checkpoint nor a checkpoint; give runs/NAME"),
        (("--init", "shards/train.arrow"), "train.arrow cannot be read as weights"),
        (("--init", "mae.pth", "--set", "model.name=vit_small"), "mae.pth is vit_tiny/8, the run vit_small/8; give"),
        (("--init", "mae.pth", "--set", "model.patch_size=16"), "mae.pth is vit_tiny/8, the run vit_tiny/16; give"),
    ],
)
def test_bad_input_is_one_line(here, tmp_path, monkeypatch, capfd, more, message):
    assert mimcl(monkeypatch, here, *words(tmp_path / "new", *more)) == 1
    complaint = capfd.readouterr().err
    assert len(complaint.splitlines()) == 1
    assert message in complaint
    assert not (tmp_path / "new").exists()


def test_a_model_is_not_half_changed(here):
    config = open_run("cpu_small", SMALL | {"init": "mae.pth", "model.name": "vit_small"}, Path("x"), False).config
    model = build(config.model, 32, 0)
    with pytest.raises(CheckpointError):
        begin_with(model, config)
    assert_same(model.state_dict(), build(config.model, 32, 0).state_dict())
