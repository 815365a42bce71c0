"""`mimcl train --init` with the weights of runs, of MAE's files, of timm and of Hugging Face."""

import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from helpers.images import write_classes
from helpers.typed import error_line, mimcl
from safetensors.torch import load_file, save_file

from mimcl.cli import train as training
from mimcl.cli.encoders.initial_weights import load_initial_weights
from mimcl.cli.run import builders
from mimcl.cli.run.folder import open_run
from mimcl.curriculum.masking import factory
from mimcl.model.checkpoint import CheckpointError
from mimcl.model.mae import build, encoder_weights
from mimcl.model.positions import sin_cos_positions

pytestmark = pytest.mark.slow  # trains

SMALL = {
    "data.image_size": 32,
    "data.batch_size": 8,
    "data.micro_batch_size": 8,
    "data.decoder": "reference",
    "model.decoder_width": 32,
    "model.decoder_depth": 1,
    "trainer.precision": "float32",
    "trainer.epochs": 0.5,  # a step
    "optim.base_lr": 0.0,  # leaves the weights unchanged
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
    """The random initial weights of a run with these settings."""
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
def trained(here, tmp_path, monkeypatch, capsys):
    """Trains from some weights; returns the printed line about them, and the weights after a step that changes none.

    The note about assumed pixel normalisation, which only files of bare tensors get, is cut off the line.
    """

    def run(init, *more, **changes):
        capsys.readouterr()
        out = tmp_path / "new"
        assert mimcl(monkeypatch, here, *words(out, "--init", str(init), *more, **changes)) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("initial weights:")]
        line, assumed, _ = line.partition(f"; {init} does not say how pixels are normalised")
        assert bool(assumed) == (Path(init).is_file() and "checkpoints" not in str(init))
        return line, saved(out)

    return run


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "init", ["run", "run/checkpoints/00000001", "run/checkpoints/00000001/weights.safetensors", "mae.pth"]
)
def test_encoder_and_decoder(home, trained, init):
    line, weights = trained(init)
    path = "run/checkpoints/00000001" if init.startswith("run") else init
    assert line == f"initial weights: encoder and decoder from {path}"
    assert_same(weights, saved(home / "run"))
    assert not torch.equal(weights["cls_token"], drawn()["cls_token"])


def test_a_file_without_a_decoder(home, trained):
    line, weights = trained("encoder.pth")
    assert re.fullmatch("initial weights: encoder from encoder.pth; decoder initialised at random.*none", line)
    assert_same(weights, drawn() | encoder_weights(saved(home / "run")))


def test_a_decoder_of_another_size(home, trained):
    line, weights = trained("mae.pth", model__decoder_depth=2)
    assert line.startswith("initial weights: encoder from mae.pth; decoder initialised at random")
    assert re.findall(r"\d+", line) == ["32", "1", "32", "2"]
    assert_same(encoder_weights(weights), encoder_weights(saved(home / "run")))
    assert not torch.equal(weights["decoder_embed.weight"], saved(home / "run")["decoder_embed.weight"])


def test_a_decoder_of_another_kind(home, trained):
    line, weights = trained("run", model__decoder="cross")
    assert line == (
        "initial weights: encoder from run/checkpoints/00000001; decoder initialised at random: model.decoder is self "
        "in the file, cross in the run"
    )
    assert_same(encoder_weights(weights), encoder_weights(saved(home / "run")))
    assert "decoder_embed.weight" not in weights
    assert weights["decoder_mixture.weights"].any()


def test_a_hugging_face_folder(home, trained, monkeypatch, tmp_path):
    assert mimcl(monkeypatch, home, "export", "run", "--format", "hf", "--out", str(tmp_path / "hf")) == 0
    line, weights = trained(tmp_path / "hf" / "vit_mae")
    assert line.startswith("initial weights: encoder and decoder from")
    assert_same(weights, saved(home / "run"))


def test_fixed_positions_of_another_grid(home, trained):
    line, weights = trained("mae.pth", data__image_size=64)
    assert re.search("; pos_embed fixed,.* 8 x 8 .* 4 x 4; decoder_pos_embed fixed,.* 8 x 8 .* 4 x 4$", line)
    positions = {"pos_embed": sin_cos_positions(192, 8), "decoder_pos_embed": sin_cos_positions(32, 8)}
    assert_same(weights, saved(home / "run") | positions)


@pytest.mark.parametrize("size", [32, 64])
def test_learned_positions(home, trained, size):
    line, weights = trained("timm.safetensors", data__image_size=size)
    learned = load_file(home / "timm.safetensors")["pos_embed"]
    if size == 32:
        assert "pos_embed" not in line
        assert torch.equal(weights["pos_embed"], learned)
        return
    assert line.endswith("; pos_embed learned, interpolated from 4 x 4 to 8 x 8 patches")
    assert torch.equal(weights["pos_embed"][:, 0], learned[:, 0])  # the class token's
    found, before = (p[0, 1:].unflatten(0, (n, n)) for p, n in ((weights["pos_embed"], 8), (learned, 4)))
    torch.testing.assert_close(found.mean(dim=(0, 1)), before.mean(dim=(0, 1)), atol=2e-3, rtol=0)
    # Bicubic: the mean of a patch's four quarters is nearest to its own old position.
    pooled = found.unflatten(0, (4, 2)).unflatten(2, (4, 2)).mean(dim=(1, 3))
    nearest = torch.cdist(pooled.flatten(0, 1), before.flatten(0, 1)).argmin(dim=1)
    assert torch.equal(nearest, torch.arange(16))


def test_teachers_copy_the_initial_weights(home, trained, monkeypatch):
    made = []
    monkeypatch.setattr(factory, "HardPatchesMasker", lambda *args: made.append(HardPatchesMasker(*args)) or made[-1])
    from mimcl.curriculum.masking.hard_patches import HardPatchesMasker

    seen = {}
    masker = builders.make_masker

    def watched(*args, **options):
        result = masker(*args, **options)
        seen.update({name: tensor.clone() for name, tensor in result.teacher.model.state_dict().items()})
        return result

    monkeypatch.setattr(builders, "make_masker", watched)
    trained("mae.pth", "--masking", "hard-patches")
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
    for more in (init, ()):  # the same command, and without --init
        assert mimcl(monkeypatch, here, *words(run, "--resume", *more)) == 0
        said = capsys.readouterr().out
        assert "at draw 8" in said
        assert "initial weights" not in said
    assert_same(saved(run), before)
    assert f"init: {tmp_path}/w.pth" in (run / "config.yaml").read_text()
    assert mimcl(monkeypatch, here, *words(run, "--resume", "--init", "mae.pth")) == 2
    complaint = capsys.readouterr().err
    assert "'mae.pth'" in complaint
    assert f"'{tmp_path}/w.pth'" in complaint


def test_a_run_killed_before_its_first_checkpoint_reads_the_file_again(here, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    assert mimcl(monkeypatch, here, *words(run, "--init", "mae.pth")) == 0
    shutil.rmtree(run / "checkpoints")
    (run / "metrics.jsonl").unlink()
    capsys.readouterr()
    assert mimcl(monkeypatch, here, "train", "--out", str(run), "--resume") == 0
    assert "initial weights: encoder and decoder from mae.pth" in capsys.readouterr().out
    assert_same(saved(run), saved("run"))


def test_the_model_card_names_the_initial_weights(here, tmp_path, monkeypatch):
    assert mimcl(monkeypatch, here, *words(tmp_path / "run", "--init", "mae.pth")) == 0
    assert mimcl(monkeypatch, here, "export", str(tmp_path / "run"), "--out", str(tmp_path / "out")) == 0
    assert re.search(r"\| .* \| mae.pth \|", (tmp_path / "out" / "README.md").read_text())


def test_processes_with_other_weights_disagree(here, tmp_path, monkeypatch):
    agreed = []
    monkeypatch.setattr("mimcl.model.distributed.agree", lambda what, digest: agreed.append((what, digest)))
    digests = []
    for init in ("mae.pth", "run", "encoder.pth"):
        agreed.clear()
        config = open_run("cpu_small", SMALL | {"init": init}, tmp_path / init, False)
        training.train_run(config)
        digests.append([digest for what, digest in agreed if "--init" in what])
    assert len(digests[0]) == 1
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--init", "nowhere.pth"), "nowhere.pth"),
        (("--init", "shards/train.arrow"), "train.arrow"),
        (("--init", "mae.pth", "--set", "model.name=vit_small"), "mae.pth is vit_tiny/8, but the run uses vit_small/8"),
        (("--init", "mae.pth", "--set", "model.patch_size=16"), "mae.pth is vit_tiny/8, but the run uses vit_tiny/16"),
    ],
)
def test_bad_input_is_one_line(here, tmp_path, monkeypatch, capfd, more, message):
    assert mimcl(monkeypatch, here, *words(tmp_path / "new", *more)) == 1
    complaint = error_line(capfd.readouterr().err)
    assert message in complaint
    assert not (tmp_path / "new").exists()


def test_a_model_is_unchanged_after_an_error(here):
    config = open_run("cpu_small", SMALL | {"init": "mae.pth", "model.name": "vit_small"}, Path("x"), False).config
    model = build(config.model, 32, 0)
    with pytest.raises(CheckpointError):
        load_initial_weights(model, config.model, "mae.pth")
    assert_same(model.state_dict(), build(config.model, 32, 0).state_dict())
